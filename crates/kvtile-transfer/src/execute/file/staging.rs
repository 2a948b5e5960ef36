//! Queues and staging memory that transfers of files reuse.
//!
//! A pool of the process keeps a few workers. A worker may move to another thread, but not to
//! another process: a forked process has neither the parent's threads nor its ring.

use kvtile_layout::broken;
use kvtile_memory::{MemoryRegion, SystemMemory};
use parking_lot::Mutex;

use super::queue::{FileQueue, FileWay};
use crate::error::{CopyError, TransferError};

/// Maximum number of pooled workers: this many concurrent readers find a queue without making one.
const KEPT_MAX: usize = 4;

/// Maximum number of pooled workers that keep their staging memory.
const STAGED_MAX: usize = 2;

/// Allocation granularity of staging memory: a huge page.
const GRAIN_BYTES: usize = 2 << 20;

static POOL: Mutex<Vec<FileWorker>> = Mutex::new(Vec::new());

/// A queue, made on first use, and the staging memory of rounds.
pub(super) struct FileWorker {
    way: FileWay,
    process: u32,
    queue: Option<FileQueue>,
    pub(super) staging: StagingMemory,
}

impl FileWorker {
    /// Takes a worker from the pool, or makes a new one.
    pub(super) fn take(way: FileWay) -> FileWorker {
        let process = std::process::id();
        // Blocking here could deadlock, if the lock was held when this process was forked.
        if let Some(mut pool) = POOL.try_lock() {
            while let Some(index) = pool.iter().position(|worker| worker.way == way) {
                let worker = pool.swap_remove(index);
                if worker.process == process {
                    return worker;
                }
                // Its resources belong to the parent, including threads that cannot be joined here.
                std::mem::forget(worker);
            }
        }
        FileWorker {
            way,
            process,
            queue: None,
            staging: StagingMemory::default(),
        }
    }

    /// Returns the worker to the pool, if it is reusable.
    pub(super) fn give_back(mut self) {
        let is_sound = self.queue.as_ref().is_none_or(FileQueue::is_sound);
        if let Some(mut pool) = POOL.try_lock()
            && is_sound
            && pool.len() < KEPT_MAX
        {
            let staged = pool.iter().filter(|worker| worker.staging.total() > 0);
            if staged.count() >= STAGED_MAX {
                self.staging = StagingMemory::default();
            }
            pool.push(self);
        }
    }

    pub(super) fn queue(&mut self) -> &mut FileQueue {
        let way = self.way;
        self.queue.get_or_insert_with(|| FileQueue::new(way))
    }

    /// The queue, if it was made.
    pub(super) fn queue_if_made(&mut self) -> Option<&mut FileQueue> {
        self.queue.as_mut()
    }
}

/// Staging memory in slots, one for each round in progress.
#[derive(Default)]
pub(super) struct StagingMemory {
    slots: Vec<StagingSlot>,
}

#[derive(Default)]
struct StagingSlot {
    memory: Option<SystemMemory>,
    is_taken: bool,
}

impl StagingSlot {
    fn size(&self) -> usize {
        self.memory.as_ref().map_or(0, SystemMemory::size)
    }
}

/// Staging memory of one round, until its slot is released.
#[derive(Clone, Copy, Debug)]
pub(super) struct TakenSlot {
    pub(super) slot: usize,
    /// The first byte, at a page boundary; valid for the requested bytes.
    pub(super) start: *mut u8,
}

impl StagingMemory {
    /// Takes a slot of `bytes` bytes. `None` if the slots in use would then exceed `max` together;
    /// a slot that is alone in use may be larger.
    pub(super) fn take(
        &mut self,
        bytes: usize,
        max: usize,
    ) -> Result<Option<TakenSlot>, TransferError> {
        let taken = |slot: &&StagingSlot| slot.is_taken;
        let in_use: usize = self.slots.iter().filter(taken).map(StagingSlot::size).sum();
        if in_use > 0 && in_use.saturating_add(bytes) > max {
            return Ok(None);
        }
        let free = self.slots.iter().enumerate().filter(|(_, s)| !s.is_taken);
        // The smallest slot that is large enough, else the largest one, which then grows.
        let best = free.min_by_key(|(_, slot)| match slot.size() {
            size if size < bytes => (true, usize::MAX - size),
            size => (false, size),
        });
        let index = best.map_or(self.slots.len(), |(index, _)| index);
        if index == self.slots.len() {
            self.slots.push(StagingSlot::default());
        }
        self.make_large_enough(index, bytes, max)?;
        let slot = self.slots.get_mut(index);
        let placed = slot.and_then(|slot| {
            let memory = slot.memory.as_ref()?;
            slot.is_taken = true;
            Some(TakenSlot {
                slot: index,
                start: std::ptr::with_exposed_provenance_mut(memory.addr()),
            })
        });
        // The caller of a `None` waits for other slots. Missing memory is an error instead.
        placed
            .map(Some)
            .ok_or(TransferError::Copy(CopyError::Missing {
                what: "staging memory of slot",
                index: index as u64,
            }))
    }

    /// Total size of all slots.
    pub(super) fn total(&self) -> usize {
        self.slots.iter().map(StagingSlot::size).sum()
    }

    /// Grows a slot. Frees the memory of free slots where the limit requires it.
    fn make_large_enough(
        &mut self,
        index: usize,
        bytes: usize,
        max: usize,
    ) -> Result<(), TransferError> {
        let size = match self.slots.get_mut(index) {
            Some(slot) if slot.size() >= bytes.max(1) => return Ok(()),
            Some(slot) => {
                slot.memory = None;
                bytes.max(1).next_multiple_of(GRAIN_BYTES)
            }
            None => broken(format_args!("slot {index} of {}", self.slots.len())),
        };
        let mut total = self.total();
        for slot in self.slots.iter_mut().filter(|slot| !slot.is_taken) {
            if total.saturating_add(size) <= max {
                break;
            }
            total -= slot.size();
            slot.memory = None;
        }
        let memory = SystemMemory::allocate(size)?;
        if let Some(slot) = self.slots.get_mut(index) {
            slot.memory = Some(memory);
        }
        Ok(())
    }

    /// Releases a slot.
    pub(super) fn give_back(&mut self, slot: usize) {
        if let Some(slot) = self.slots.get_mut(slot) {
            slot.is_taken = false;
        }
    }

    /// Whether no slot is in use.
    #[cfg(test)]
    pub(super) fn is_free(&self) -> bool {
        self.slots.iter().all(|slot| !slot.is_taken)
    }

    /// Releases all slots.
    pub(super) fn give_back_all(&mut self) {
        for slot in &mut self.slots {
            slot.is_taken = false;
        }
    }
}
