//! The store under test and its content.
//!
//! It has twice the slots that a round uses. Contiguous blocks fill its second half. Scattered
//! blocks lie in every second slot, between blocks that stay.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use kvtile::{
    blocks::BlockKey,
    identity::{Identity, LayoutIdentity},
    layout::{LayoutError, Shape, StridedLayout, Unit, Word},
    memory::{AlignedBuffer, Prefault, SystemMemory},
    tiers::disk::{BlockPieces, SlotRead, SlotStore, SlotStoreSettings, SlotWrite, StoreIdentity},
};
use serde::Serialize;

use super::DEPTH;
use crate::error::BenchError;
use kvtile_random::SplitMix64;

/// Alignment of slots and buffers.
const PAGE: usize = 4096;

/// The placement of the blocks of a round on the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum BlockPlacement {
    /// Side by side, like the blocks of one chain.
    SideBySide,
    /// No two side by side.
    Scattered,
    /// The placement of a cache for the blocks of one chain: side by side.
    ThroughCache,
}

/// The memory of the blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum BlockMemory {
    /// Separate memory for each block, too large for a CPU cache, with huge pages where the kernel
    /// has them: that of a cache's pools.
    Own,
    /// One buffer as large as that of the requests of `fio`, which may stay in a CPU cache, with the
    /// small pages that `fio` has.
    AsFio,
}

pub(super) struct StoreUnderTest {
    store: SlotStore,
    /// Blocks per round.
    blocks: u32,
    block_bytes: usize,
    /// The bytes of all blocks of a round.
    content: SystemMemory,
    /// As many bytes as the requests of `fio` have.
    as_fio: AlignedBuffer,
    arrived: SystemMemory,
    /// Whether every second slot is occupied.
    is_scattered: bool,
}

impl StoreUnderTest {
    /// Creates a store in `folder` that is full except for the blocks of a round, of `bytes` bytes
    /// in total.
    pub(super) fn new(
        folder: &Path,
        block_bytes: u64,
        bytes: u64,
    ) -> Result<StoreUnderTest, BenchError> {
        let too_many = || BenchError::TooManyBytes {
            bytes,
            needed: bytes.saturating_mul(2),
            available: u64::from(u32::MAX),
        };
        let blocks = u32::try_from(bytes / block_bytes.max(1)).map_err(|_| too_many())?;
        let blocks = blocks.max(1);
        let size = usize::try_from(block_bytes).map_err(|_| too_many())?;
        let all = size.checked_mul(blocks as usize).ok_or_else(too_many)?;
        // Room for the slots, the reserve and the records; a remainder stays unused.
        let slots = 2 * u64::from(blocks) + 8;
        let places = slots + slots / 32;
        let capacity = places * (block_bytes.next_multiple_of(PAGE as u64) + 64) + (64 << 10);
        let settings = SlotStoreSettings::new(capacity).preallocate(true);
        let (store, _) =
            SlotStore::create_or_open(&folder.join("store"), &settings, &identity(block_bytes)?)?;
        let mut content = pool_memory(all)?;
        SplitMix64::new(block_bytes).fill(content.as_mut_slice());
        let mut as_fio = AlignedBuffer::new(all.min(size * DEPTH as usize), PAGE)?;
        SplitMix64::new(block_bytes).fill(&mut as_fio);
        let mut arrived = pool_memory(all)?;
        arrived.as_mut_slice().fill(0xa5);
        let mut tested = StoreUnderTest {
            store,
            blocks,
            block_bytes: size,
            content,
            as_fio,
            arrived,
            is_scattered: false,
        };
        // Writes every place once, so that the file system has allocated it.
        let first: Vec<u32> = (0..tested.blocks).collect();
        let second: Vec<u32> = (tested.blocks..2 * tested.blocks).collect();
        tested.write_slots(&first, BlockMemory::Own)?;
        tested.write_slots(&second, BlockMemory::Own)?;
        tested.erase_slots(&second)?;
        Ok(tested)
    }

    pub(super) fn store(&self) -> &SlotStore {
        &self.store
    }

    /// Bytes of a round.
    pub(super) fn bytes(&self) -> u64 {
        u64::from(self.blocks) * self.block_bytes()
    }

    pub(super) fn block_bytes(&self) -> u64 {
        self.block_bytes as u64
    }

    /// The slots of a round.
    fn slots(&self, placement: BlockPlacement) -> Vec<u32> {
        match placement {
            BlockPlacement::SideBySide | BlockPlacement::ThroughCache => {
                (self.blocks..2 * self.blocks).collect()
            }
            BlockPlacement::Scattered => (0..self.blocks).map(|index| 2 * index).collect(),
        }
    }

    /// Erases the blocks of the round before and writes those of a round.
    pub(super) fn write(
        &mut self,
        placement: BlockPlacement,
        memory: BlockMemory,
    ) -> Result<Duration, BenchError> {
        self.erase(placement)?;
        if placement == BlockPlacement::Scattered && !self.is_scattered {
            // Until now all blocks are side by side.
            self.is_scattered = true;
            self.write_slots(&self.slots(BlockPlacement::SideBySide), BlockMemory::Own)?;
            self.erase_slots(&self.slots(BlockPlacement::Scattered))?;
        }
        self.write_slots(&self.slots(placement), memory)
    }

    fn write_slots(&mut self, slots: &[u32], memory: BlockMemory) -> Result<Duration, BenchError> {
        let content = match memory {
            BlockMemory::Own => &*self.content.as_mut_slice(),
            BlockMemory::AsFio => &*self.as_fio,
        };
        let blocks = content.chunks(self.block_bytes).cycle();
        let writes: Vec<SlotWrite<'_>> = slots
            .iter()
            .zip(blocks)
            .map(|(slot, bytes)| SlotWrite {
                slot: *slot,
                key: key(*slot),
                parent: None,
                position: 0,
                tenant: 0,
                bytes,
            })
            .collect();
        let begun = Instant::now();
        let written = self.store.write(&writes);
        let elapsed = begun.elapsed();
        match written.failed.into_iter().next() {
            Some(failed) => Err(failed.error.into()),
            None => Ok(elapsed),
        }
    }

    /// Reads the blocks of a round and, with `compared`, checks each.
    pub(super) fn read(
        &mut self,
        placement: BlockPlacement,
        compared: bool,
    ) -> Result<Duration, BenchError> {
        let slots = self.slots(placement);
        let buffers = self.arrived.as_mut_slice().chunks_mut(self.block_bytes);
        let mut reads: Vec<SlotRead<'_>> = slots
            .iter()
            .zip(buffers)
            .map(|(slot, buffer)| SlotRead {
                start: 0,
                slot: *slot,
                key: key(*slot),
                buffer,
            })
            .collect();
        let begun = Instant::now();
        let outcomes = self.store.read_many(&mut reads);
        let elapsed = begun.elapsed();
        for (slot, outcome) in slots.iter().zip(outcomes) {
            let slot = *slot;
            outcome.map_err(|miss| BenchError::Miss { slot, miss })?;
        }
        let blocks = self.content.as_mut_slice().chunks(self.block_bytes);
        let changed = reads
            .iter()
            .zip(blocks)
            .find(|(read, block)| *read.buffer != **block);
        if let (true, Some((read, _))) = (compared, changed) {
            return Err(BenchError::WrongCopy {
                row: "disk".to_owned(),
                method: "kvtile",
                block: u64::from(read.slot),
            });
        }
        Ok(elapsed)
    }

    /// Frees slots for the next round.
    pub(super) fn erase(&self, placement: BlockPlacement) -> Result<(), BenchError> {
        self.erase_slots(&self.slots(placement))
    }

    fn erase_slots(&self, slots: &[u32]) -> Result<(), BenchError> {
        self.store.erase(slots)?;
        self.store
            .sync()
            .failure
            .map_or(Ok(()), |failure| Err(failure.into()))
    }
}

/// Memory as that of a cache's pools: huge pages where the kernel has them.
fn pool_memory(bytes: usize) -> Result<SystemMemory, BenchError> {
    let options = SystemMemory::options().prefault(Prefault::Populate { threads: 0 });
    Ok(options.allocate(bytes)?)
}

fn key(slot: u32) -> BlockKey {
    let mut bytes = [0x5a; 16];
    bytes[..4].copy_from_slice(&slot.to_le_bytes());
    BlockKey::from_bytes(bytes)
}

/// An identity for blocks of any size: the store does not interpret them.
fn identity(block_bytes: u64) -> Result<StoreIdentity, BenchError> {
    let shape = Shape::key_value(1, 1, 16, 1, 64, Unit::new("bf16", 2, 1)?)?;
    let logical = Identity::new("benchmark", "none", &shape)?;
    let word: Word = "BHLKNC".parse().map_err(LayoutError::from)?;
    let layout = StridedLayout::resolve(&word, &shape, 1)?;
    Ok(StoreIdentity {
        logical,
        block_layout: LayoutIdentity::of_block(&layout),
        pieces: BlockPieces::whole(block_bytes),
    })
}
