//! The contenders that copy the blocks of a cell in turns.

use std::{
    hint::black_box,
    thread,
    time::{Duration, Instant},
};

use kvtile::{
    layout::{LayoutSpec, PhysicalLayout, PlaneDigits, RangePair, StridedLayout},
    transfer::{LayoutHandle, TransferManager, TransferOptions},
};
use serde::{Deserialize, Serialize};

use crate::{
    arena::{ArenaPacking, Arenas},
    error::BenchError,
    walk::BlockWalk,
};

/// A method of copying.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum CopyMethod {
    /// A transfer manager.
    #[serde(rename = "kvtile")]
    Kvtile,
    /// One flat copy of the same number of bytes.
    #[serde(rename = "memcpy")]
    Memcpy,
    /// A loop of copies for each block, layer and plane, or for each row where pieces are smaller.
    #[serde(rename = "memcpy loop")]
    MemcpyLoop,
    /// Views with permuted axes, assigned to each other.
    #[serde(rename = "ndarray")]
    Ndarray,
    /// `index_select` and `permute().contiguous()`.
    #[serde(rename = "torch")]
    Torch,
    /// The file benchmark `fio`.
    #[serde(rename = "fio")]
    Fio,
}

impl CopyMethod {
    /// The name in reports.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            CopyMethod::Kvtile => "kvtile",
            CopyMethod::Memcpy => "memcpy",
            CopyMethod::MemcpyLoop => "memcpy loop",
            CopyMethod::Ndarray => "ndarray",
            CopyMethod::Torch => "torch",
            CopyMethod::Fio => "fio",
        }
    }
}

/// Block `source[i]` goes to block `destination[i]`.
#[derive(Clone, Debug)]
pub(crate) struct BlockOrders {
    pub(crate) source: Vec<usize>,
    pub(crate) destination: Vec<usize>,
}

impl BlockOrders {
    pub(crate) fn pairs(&self) -> impl Iterator<Item = (usize, usize)> {
        let source = self.source.iter().copied();
        source.zip(self.destination.iter().copied())
    }
}

/// A method that copies blocks between two layouts in the shared memory.
pub(crate) trait Contender {
    fn method(&self) -> CopyMethod;

    fn threads(&self) -> u32 {
        1
    }

    /// Copies all blocks `repeats` times and returns the total time. With `warm`, it may copy once
    /// before the clock starts.
    fn run(
        &mut self,
        arenas: &mut Arenas,
        orders: &BlockOrders,
        repeats: u32,
        warm: bool,
    ) -> Result<Duration, BenchError>;
}

/// A manager with this many copy threads.
pub(crate) fn manager_with(threads: u32) -> TransferManager {
    let threads = usize::try_from(threads).unwrap_or(usize::MAX);
    TransferManager::builder().copy_threads(threads).build()
}

/// Both layouts of a cell, and their packing in memory.
#[derive(Debug)]
pub(crate) struct CellSides {
    pub(crate) source: (StridedLayout, ArenaPacking),
    pub(crate) destination: (StridedLayout, ArenaPacking),
    /// The copied heads, where they are not all heads of both sides.
    pub(crate) heads: Option<RangePair>,
}

/// kvtile's transfers.
pub(crate) struct Transfers<'a> {
    manager: TransferManager,
    threads: u32,
    sides: &'a CellSides,
}

impl<'a> Transfers<'a> {
    pub(crate) fn new(sides: &'a CellSides, threads: u32) -> Transfers<'a> {
        Transfers {
            manager: manager_with(threads),
            threads,
            sides,
        }
    }

    fn copy(
        &self,
        handles: (LayoutHandle, LayoutHandle),
        orders: &BlockOrders,
    ) -> Result<(), BenchError> {
        let (from, to) = handles;
        let (source, destination) = (&orders.source, &orders.destination);
        let options = match self.sides.heads {
            None => TransferOptions::new(),
            Some(heads) => TransferOptions::new().heads(heads),
        };
        let done = self
            .manager
            .execute_transfer(from, source, to, destination, options)?;
        done.wait()?;
        Ok(())
    }
}

impl Contender for Transfers<'_> {
    fn method(&self) -> CopyMethod {
        CopyMethod::Kvtile
    }

    fn threads(&self) -> u32 {
        self.threads
    }

    fn run(
        &mut self,
        arenas: &mut Arenas,
        orders: &BlockOrders,
        repeats: u32,
        warm: bool,
    ) -> Result<Duration, BenchError> {
        let ((source, from), (destination, to)) = (&self.sides.source, &self.sides.destination);
        let (from, to) = arenas.regions(from, to)?;
        let register = |layout: &StridedLayout, regions| -> Result<LayoutHandle, BenchError> {
            let builder = PhysicalLayout::builder()
                .with_aligned_shape(layout.shape().clone(), layout.alignment())
                .layout(spec_of(layout))
                .with_memory_regions(regions);
            Ok(self.manager.register(builder.build()?)?)
        };
        let handles = (register(source, from)?, register(destination, to)?);
        if warm {
            self.copy(handles, orders)?;
        }
        let start = Instant::now();
        for _ in 0..repeats {
            self.copy(handles, orders)?;
        }
        let elapsed = start.elapsed();
        self.manager.unregister(handles.0)?;
        self.manager.unregister(handles.1)?;
        Ok(elapsed)
    }
}

/// The spec that reproduces the layout.
pub(crate) fn spec_of(layout: &StridedLayout) -> LayoutSpec {
    if let Some(word) = layout.word() {
        return LayoutSpec::Word(word.clone());
    }
    let planes = layout.planes().map(|(plane, piece)| PlaneDigits {
        plane: plane.name().to_string(),
        region: piece.region(),
        offset: piece.offset(),
        digits: piece.digits().to_vec(),
    });
    LayoutSpec::Digits {
        planes: planes.collect(),
        region_bytes: layout.region_bytes().to_vec(),
    }
}

/// One flat copy of the same number of bytes, on one thread or split over several.
pub(crate) struct FlatCopy {
    pub(crate) bytes: usize,
    pub(crate) threads: u32,
}

impl FlatCopy {
    fn copy(&self, source: &[u8], destination: &mut [u8]) {
        if self.threads <= 1 {
            destination.copy_from_slice(source);
            return;
        }
        let share = self.bytes.div_ceil(self.threads as usize).max(1);
        thread::scope(|scope| {
            let pieces = source.chunks(share).zip(destination.chunks_mut(share));
            for (from, to) in pieces {
                scope.spawn(move || to.copy_from_slice(from));
            }
        });
    }
}

impl Contender for FlatCopy {
    fn method(&self) -> CopyMethod {
        CopyMethod::Memcpy
    }

    fn threads(&self) -> u32 {
        self.threads
    }

    fn run(
        &mut self,
        arenas: &mut Arenas,
        _orders: &BlockOrders,
        repeats: u32,
        warm: bool,
    ) -> Result<Duration, BenchError> {
        let (source, destination) = arenas.slices()?;
        let (source, destination) = (source.get(..self.bytes), destination.get_mut(..self.bytes));
        let (Some(source), Some(destination)) = (source, destination) else {
            return Ok(Duration::ZERO);
        };
        if warm {
            self.copy(source, destination);
        }
        let start = Instant::now();
        for _ in 0..repeats {
            self.copy(black_box(source), destination);
            black_box(&mut *destination);
        }
        Ok(start.elapsed())
    }
}

/// The copy loop that a user would write.
pub(crate) struct CopyLoop<'a> {
    pub(crate) walk: &'a BlockWalk,
}

impl Contender for CopyLoop<'_> {
    fn method(&self) -> CopyMethod {
        CopyMethod::MemcpyLoop
    }

    fn run(
        &mut self,
        arenas: &mut Arenas,
        orders: &BlockOrders,
        repeats: u32,
        warm: bool,
    ) -> Result<Duration, BenchError> {
        let (source, destination) = arenas.slices()?;
        let mut copy = || {
            for blocks in orders.pairs() {
                self.walk.copy(blocks, source, destination);
            }
            black_box(&mut *destination);
        };
        if warm {
            copy();
        }
        let start = Instant::now();
        (0..repeats).for_each(|_| copy());
        Ok(start.elapsed())
    }
}
