//! Host memory that tests lease to tiers; each lease shows when the tier has released it.

use std::{
    any::Any,
    sync::Arc,
    time::{Duration, Instant},
};

use kvtile_layout::{
    Shape, Unit, Word, broken,
    identity::{Identity, LayoutIdentity},
};
use kvtile_tiers::{
    TierError,
    tier::{BlockName, BlockPieces, HostBlock, StoreIdentity},
};
use kvtile_transfer::{LayoutHandle, LeaseMode, PhysicalLayout, TransferManager};
use parking_lot::{Mutex, MutexGuard};

use crate::disk::SplitMix64;

/// The alignment of blocks in memory, for direct I/O.
const ALIGNMENT: u64 = 4096;

/// A fixed number of host blocks.
pub struct HostMemory {
    manager: TransferManager,
    handle: LayoutHandle,
    identity: StoreIdentity,
    blocks: usize,
    free: Arc<Mutex<Vec<usize>>>,
}

/// A block in use. It is free once this is dropped and the tier has released it.
pub struct ReservedBlock(Arc<ReservedIndex>);

struct ReservedIndex {
    block: usize,
    free: Arc<Mutex<Vec<usize>>>,
}

impl Drop for ReservedIndex {
    fn drop(&mut self) {
        lock(&self.free).push(self.block);
    }
}

impl std::fmt::Debug for ReservedBlock {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("ReservedBlock").field(&self.0.block).finish()
    }
}

impl ReservedBlock {
    /// Whether this is the only owner of the block.
    #[must_use]
    pub fn is_let_go(&self) -> bool {
        Arc::strong_count(&self.0) == 1
    }
}

fn lock(free: &Mutex<Vec<usize>>) -> MutexGuard<'_, Vec<usize>> {
    free.lock()
}

impl std::fmt::Debug for HostMemory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HostMemory")
            .field("blocks", &self.blocks)
            .finish_non_exhaustive()
    }
}

impl HostMemory {
    /// Allocates `blocks` blocks of a small model.
    ///
    /// # Errors
    /// The memory cannot be allocated.
    pub fn new(blocks: usize) -> Result<HostMemory, TierError> {
        HostMemory::with_page_size(blocks, 4)
    }

    /// As [`new`](HostMemory::new), with another number of tokens per block, so that blocks have
    /// 256 bytes for each token.
    ///
    /// # Errors
    /// The memory cannot be allocated.
    pub fn with_page_size(blocks: usize, page_size: u64) -> Result<HostMemory, TierError> {
        let unit = Unit::new("f32", 4, 1)?;
        let shape = Shape::key_value(blocks as u64, 2, page_size, 2, 8, &unit)?;
        let word: Word = "BLHKNC".parse().map_err(kvtile_layout::LayoutError::from)?;
        let layout = PhysicalLayout::builder()
            .with_aligned_shape(shape.clone(), ALIGNMENT)
            .layout(word)
            .allocate_system()
            .build()?;
        let identity = StoreIdentity {
            logical: Identity::new("a-model", "main", &shape.with_num_blocks(1)?)?,
            block_layout: LayoutIdentity::of_block(layout.strided()),
            pieces: layer_by_layer(&layout)?,
        };
        let manager = TransferManager::new();
        let handle = manager.register(layout)?;
        Ok(HostMemory {
            manager,
            handle,
            identity,
            blocks,
            free: Arc::new(Mutex::new((0..blocks).rev().collect())),
        })
    }

    /// The identity of its blocks.
    #[must_use]
    pub fn identity(&self) -> &StoreIdentity {
        &self.identity
    }

    /// The number of its blocks.
    #[must_use]
    pub fn blocks(&self) -> usize {
        self.blocks
    }

    /// The number of free blocks.
    #[must_use]
    pub fn free_blocks(&self) -> usize {
        lock(&self.free).len()
    }

    /// Waits until all blocks are free, for at most `within`; returns whether they are.
    #[must_use]
    pub fn wait_until_free(&self, within: Duration) -> bool {
        let start = Instant::now();
        while self.free_blocks() < self.blocks {
            if start.elapsed() > within {
                return false;
            }
            std::thread::sleep(Duration::from_micros(100));
        }
        true
    }

    /// A block of zeroes, to read into.
    #[must_use]
    pub fn empty(&self) -> (ReservedBlock, HostBlock) {
        let reserved = self.reserve();
        let mut block = self.lend(&reserved, LeaseMode::Write);
        self.bytes_of(&mut block).fill(0);
        (reserved, block)
    }

    /// A block with the content of `name`, to write from.
    #[must_use]
    pub fn filled(&self, name: &BlockName) -> (ReservedBlock, HostBlock) {
        self.filled_with(&content(name, self.block_bytes()))
    }

    /// A block with this content, to write from.
    ///
    /// # Panics
    /// Content of another size than a block.
    #[must_use]
    pub fn filled_with(&self, content: &[u8]) -> (ReservedBlock, HostBlock) {
        let reserved = self.reserve();
        let mut block = self.lend(&reserved, LeaseMode::Write);
        self.bytes_of(&mut block).copy_from_slice(content);
        drop(block);
        let block = self.lend(&reserved, LeaseMode::Read);
        (reserved, block)
    }

    /// The bytes of a block that the tier has released.
    #[must_use]
    pub fn bytes(&self, reserved: &ReservedBlock) -> Vec<u8> {
        let block = self.lend(reserved, LeaseMode::Read);
        match block.bytes() {
            Ok(bytes) => bytes.to_vec(),
            Err(error) => broken(format_args!("{reserved:?}: {error}")),
        }
    }

    /// Bytes of one block.
    #[must_use]
    pub fn block_bytes(&self) -> usize {
        usize::try_from(self.identity.block_bytes()).unwrap_or(usize::MAX)
    }

    /// Pieces of a block of zeroes, to read into.
    #[must_use]
    pub fn empty_part(&self, pieces: std::ops::Range<usize>) -> (ReservedBlock, HostBlock) {
        let (reserved, whole) = self.empty();
        drop(whole);
        let place: Arc<dyn Any + Send + Sync> = Arc::clone(&reserved.0) as _;
        let start = self.identity.pieces.bytes(pieces.clone()).start;
        // In this layout a piece is a layer.
        let layers = pieces.start as u64..pieces.end as u64;
        let ids = [reserved.0.block];
        let lease = self
            .manager
            .lease_layers(self.handle, &ids, layers, LeaseMode::Write);
        let part = lease.map_err(TierError::from);
        match part.and_then(|lease| HostBlock::part(lease, start, place)) {
            Ok(part) => (reserved, part),
            Err(error) => broken(format_args!("{reserved:?} is not released: {error}")),
        }
    }

    fn bytes_of<'a>(&self, block: &'a mut HostBlock) -> &'a mut [u8] {
        match block.bytes_mut() {
            Ok(bytes) => bytes,
            Err(error) => broken(format_args!("host memory that was just leased: {error}")),
        }
    }

    fn reserve(&self) -> ReservedBlock {
        let Some(block) = lock(&self.free).pop() else {
            broken(format_args!("all {} host blocks are in use", self.blocks))
        };
        let free = Arc::clone(&self.free);
        ReservedBlock(Arc::new(ReservedIndex { block, free }))
    }

    fn lend(&self, reserved: &ReservedBlock, mode: LeaseMode) -> HostBlock {
        let place: Arc<dyn Any + Send + Sync> = Arc::clone(&reserved.0) as _;
        let lease = self.manager.lease(self.handle, &[reserved.0.block], mode);
        let block = lease.map_err(TierError::from);
        match block.and_then(|lease| HostBlock::new(lease, place)) {
            Ok(block) => block,
            Err(error) => broken(format_args!("{reserved:?} is not released: {error}")),
        }
    }
}

/// One piece per layer, however short the layers are.
fn layer_by_layer(layout: &PhysicalLayout) -> Result<BlockPieces, TierError> {
    let Some(layers) = layout.layer_ranges() else {
        broken(format_args!("the layers of a block are not contiguous"))
    };
    let ends: Vec<u64> = layers.iter().map(|layer| layer.end).collect();
    BlockPieces::ending_at(&ends)
}

/// The content of a block, different for each name and at each offset.
#[must_use]
pub fn content(name: &BlockName, bytes: usize) -> Vec<u8> {
    let seed = name
        .key
        .as_bytes()
        .iter()
        .chain(&name.group.0.to_le_bytes())
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
        });
    let mut numbers = SplitMix64::new(seed);
    let is_smooth = numbers.once_in(2);
    let mut content: Vec<u8> = Vec::with_capacity(bytes + 8);
    while content.len() < bytes {
        content.extend(numbers.any().to_le_bytes());
    }
    content.truncate(bytes);
    // Half of the blocks can be compressed.
    if is_smooth {
        for byte in content.iter_mut().skip(1).step_by(2) {
            *byte &= 3;
        }
    }
    content
}
