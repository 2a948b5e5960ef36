//! Keys and values in kvtile blocks, for the engine's computation. This module does not know the
//! cache.

use std::sync::Arc;
use std::time::Instant;

use kvtile::identity::{Identity, Rope, RopeParam};
use kvtile::layout::{LayoutError, PhysicalLayout, Shape, StridedLayout, Unit, Word};
use kvtile::memory::{Prefault, SystemMemory};
use kvtile::transfer::{BlockLease, LayoutHandle, LeaseMode, TransferError, TransferManager};
use zerocopy::FromBytes;

use super::AllocateReport;
use crate::DemoError;
use crate::kv::{KvOrder, KvShape, KvView};
use crate::llama::{Llama, ModelFacts};

/// The order of the first process, `L|BKNHC`.
pub const ENGINE_ORDER: KvOrder = KvOrder::TokenMajor;
/// The order of the second process, `L|BH(kCN,vNC)`.
pub const RESUMED_ORDER: KvOrder = KvOrder::TransposedKeys;

/// Alignment of blocks in memory, in bytes.
const ALIGNMENT: u64 = 64;
/// Alignment of the regions of a layout in one allocation, in bytes.
const PAGE_BYTES: u64 = 4096;

/// Leased blocks of f32 keys and values, in the form that the model uses.
///
/// It borrows nothing: its lease gives it exclusive access to the blocks while it lives. It refuses
/// blocks that are not leased.
#[derive(Debug)]
pub struct BlockKv {
    lease: BlockLease,
    shape: KvShape,
    order: KvOrder,
}

impl BlockKv {
    /// A view of the leased blocks of a layout of this shape and order.
    ///
    /// # Errors
    /// Blocks that are in use, or a handle that is not registered.
    pub fn lease(
        manager: &TransferManager,
        handle: LayoutHandle,
        blocks: &[usize],
        (shape, order): (KvShape, KvOrder),
    ) -> Result<Self, DemoError> {
        let lease = manager.lease(handle, blocks, LeaseMode::Write)?;
        Ok(Self {
            lease,
            shape,
            order,
        })
    }

    fn check(&self, layer: usize, block: usize) -> Result<(u64, u64), DemoError> {
        for (what, index, count) in [
            ("layer", layer, self.shape.layers),
            ("block", block, self.shape.num_blocks),
        ] {
            if index >= count {
                return Err(DemoError::KvIndex { what, index, count });
            }
        }
        Ok((block as u64, layer as u64))
    }
}

impl KvView for BlockKv {
    fn shape(&self) -> KvShape {
        self.shape
    }

    fn order(&self) -> KvOrder {
        self.order
    }

    fn part(&self, layer: usize, block: usize) -> Result<&[f32], DemoError> {
        let (b, l) = self.check(layer, block)?;
        let bytes = self.lease.page(b, l)?;
        <[f32]>::ref_from_bytes(bytes).map_err(|_| not_values(layer, block))
    }

    fn part_mut(&mut self, layer: usize, block: usize) -> Result<&mut [f32], DemoError> {
        let (b, l) = self.check(layer, block)?;
        let bytes = self.lease.page_mut(b, l)?;
        <[f32]>::mut_from_bytes(bytes).map_err(|_| not_values(layer, block))
    }
}

fn not_values(layer: usize, block: usize) -> DemoError {
    DemoError::KvNotValues { layer, block }
}

/// The shape of `blocks` blocks of a model in the layout language.
pub(super) fn shape(kv: KvShape) -> Result<Shape, DemoError> {
    let unit = Unit::new("f32", 4, 1)?;
    Ok(Shape::key_value(
        kv.num_blocks as u64,
        kv.layers as u64,
        kv.page_size as u64,
        kv.kv_heads as u64,
        kv.head_size as u64,
        &unit,
    )?)
}

/// The logical identity of a model's keys and values.
pub(super) fn identity(facts: &ModelFacts, shape: &Shape) -> Result<Identity, DemoError> {
    let pairs = RopeParam::Text(facts.rope_pairs.to_owned());
    let rope = Rope::new("default", f64::from(facts.rope_base))?.with_param("pairs", pairs)?;
    let identity = Identity::new(&facts.name, &facts.weights_sha256, shape)?.with_rope(rope);
    Ok(identity.with_extra("weights", "dequantised to f32")?)
}

/// The blocks of an engine: allocated with mapped pages, as in an engine before the first request.
pub(super) struct EngineBlocks {
    pub(super) layout: PhysicalLayout,
    pub(super) kv_shape: KvShape,
    pub(super) identity: Identity,
    pub(super) order: KvOrder,
    pub(super) report: AllocateReport,
}

impl EngineBlocks {
    /// Allocates a number of blocks of `page_size` tokens.
    pub(super) fn allocate(
        llama: &Llama,
        (blocks, page_size): (usize, usize),
        order: KvOrder,
    ) -> Result<Self, DemoError> {
        let started = Instant::now();
        let kv_shape = llama.config().kv_shape(blocks, page_size);
        let shape = shape(kv_shape)?;
        let identity = identity(llama.facts(), &shape)?;
        let word = Word::parse(order.word()).map_err(LayoutError::from)?;
        let strided = StridedLayout::resolve(&word, &shape, ALIGNMENT)?;
        let regions = strided.region_bytes().iter();
        let bytes: u64 = regions
            .map(|bytes| bytes.next_multiple_of(PAGE_BYTES))
            .sum();
        let bytes = usize::try_from(bytes).unwrap_or(usize::MAX);
        let memory = SystemMemory::options()
            .prefault(Prefault::Populate { threads: 0 })
            .allocate(bytes)
            .map_err(TransferError::from)?;
        let layout = PhysicalLayout::builder()
            .with_logical_fingerprint(identity.fingerprint())
            .with_aligned_shape(shape, ALIGNMENT)
            .layout(word)
            .over_memory(Arc::new(memory))
            .build()?;
        let report = AllocateReport {
            layout: order.word().to_owned(),
            blocks: kv_shape.num_blocks,
            bytes: bytes as u64,
            seconds: started.elapsed().as_secs_f64(),
        };
        Ok(Self {
            layout,
            kv_shape,
            identity,
            order,
            report,
        })
    }
}
