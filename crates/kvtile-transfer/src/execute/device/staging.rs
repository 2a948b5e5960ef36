//! Pinned staging memory of a device: a bounded number of slots, which copies use one after the other.

use std::collections::VecDeque;

use kvtile_device::{Device, DeviceMark, DeviceQueue, PinnedMemory};
use kvtile_layout::broken;
use kvtile_memory::MemoryRegion;
use parking_lot::{Condvar, Mutex};

use super::{
    engine::quiesce,
    waits::{DeviceWait, note_host_access},
};
use crate::error::TransferError;

/// Most bytes of a slot.
pub(super) const SLOT_BYTES_MAX: usize = 8 << 20;

/// Fewest bytes of a slot.
const SLOT_BYTES_MIN: usize = 64 << 10;

/// Most slots of a device: so many copies through staging memory run at once, and further ones wait.
pub(super) const SLOTS_MAX: usize = 4;

/// The slots of a device.
#[derive(Debug)]
pub(super) struct PinnedStaging {
    device: Device,
    state: Mutex<PinnedSlots>,
    freed: Condvar,
}

#[derive(Debug, Default)]
struct PinnedSlots {
    /// The one that was freed first is in front.
    free: VecDeque<FreeSlot>,
    /// Free and taken ones.
    made: usize,
}

#[derive(Debug)]
struct FreeSlot {
    memory: PinnedMemory,
    /// Behind the last copy that uses it.
    mark: Option<DeviceMark>,
}

/// A slot in use; free again on drop.
#[derive(Debug)]
pub(super) struct PinnedSlot<'s> {
    staging: &'s PinnedStaging,
    memory: Option<PinnedMemory>,
    /// The queue whose work uses the slot, while no mark is behind that work.
    lent_to: Option<DeviceQueue>,
    mark: Option<DeviceMark>,
}

impl PinnedStaging {
    pub(super) fn new(device: &Device) -> PinnedStaging {
        PinnedStaging {
            device: device.clone(),
            state: Mutex::default(),
            freed: Condvar::new(),
        }
    }

    /// A slot of at least `bytes` bytes, at most [`SLOT_BYTES_MAX`], that no copy uses any more. Waits while all are taken:
    /// a thread that holds one must not take another.
    pub(super) fn take(&self, bytes: usize) -> Result<PinnedSlot<'_>, TransferError> {
        let bytes = bytes.clamp(SLOT_BYTES_MIN, SLOT_BYTES_MAX);
        let mut state = self.state.lock();
        let free = loop {
            let may_make = state.made < SLOTS_MAX;
            let is_ready = |slot: &FreeSlot| {
                let passed = slot.mark.as_ref().map(DeviceMark::is_passed);
                // An error comes again below, where it is returned.
                matches!(passed, None | Some(Ok(true) | Err(_)))
            };
            if state
                .free
                .front()
                .is_some_and(|slot| !may_make || is_ready(slot))
            {
                break state.free.pop_front();
            }
            if may_make {
                state.made += 1;
                break None;
            }
            self.freed.wait(&mut state);
        };
        drop(state);
        let mut slot = PinnedSlot {
            staging: self,
            memory: None,
            lent_to: None,
            mark: None,
        };
        if let Some(free) = free {
            (slot.memory, slot.mark) = (Some(free.memory), free.mark);
            // On an error the slot is freed with its mark.
            slot.wait(DeviceWait::SlotReused)?;
        }
        if slot
            .memory
            .as_ref()
            .is_none_or(|memory| memory.size() < bytes)
        {
            slot.memory = None;
            slot.memory = Some(PinnedMemory::allocate(
                &self.device,
                bytes.next_power_of_two(),
            )?);
        }
        Ok(slot)
    }

    fn give_back(&self, memory: Option<PinnedMemory>, mark: Option<DeviceMark>) {
        let mut state = self.state.lock();
        match memory {
            Some(memory) => state.free.push_back(FreeSlot { memory, mark }),
            None => state.made -= 1,
        }
        drop(state);
        self.freed.notify_one();
    }
}

impl PinnedSlot<'_> {
    fn memory(&self) -> &PinnedMemory {
        match &self.memory {
            Some(memory) => memory,
            None => broken(format_args!("a slot of staging memory without memory")),
        }
    }

    /// The address by which devices reach its first byte.
    pub(super) fn address(&self) -> u64 {
        self.memory().device_address()
    }

    /// The place of `bytes` bytes from offset `at` on, which the host is about to read or write. No work uses the slot.
    pub(super) fn place(&self, at: usize, bytes: usize, is_write: bool) -> *mut u8 {
        let is_inside = at.checked_add(bytes).is_some_and(|end| end <= self.size());
        if self.lent_to.is_some() || self.mark.is_some() || !is_inside {
            let size = self.size();
            broken(format_args!(
                "bytes {at} and {bytes} more of a slot of {size} in use"
            ));
        }
        note_host_access(self.address() + at as u64, bytes, is_write);
        let start: *mut u8 = std::ptr::with_exposed_provenance_mut(self.memory().addr());
        start.wrapping_add(at)
    }

    /// Its bytes.
    pub(super) fn size(&self) -> usize {
        self.memory().size()
    }

    /// The first `bytes` bytes. No work uses the slot.
    pub(super) fn bytes(&self, bytes: usize) -> &[u8] {
        let start = self.place(0, bytes, false);
        // SAFETY: pinned memory is initialised and has these bytes; only the owner of the slot writes it, and it is
        // borrowed.
        unsafe { std::slice::from_raw_parts(start, bytes) }
    }

    /// `bytes` bytes from offset `at` on, for writing. No work uses the slot.
    pub(super) fn piece_mut(&mut self, at: usize, bytes: usize) -> &mut [u8] {
        let start = self.place(at, bytes, true);
        // SAFETY: pinned memory is initialised and has these bytes; only the owner of the slot uses it, and it is borrowed
        // exclusively.
        unsafe { std::slice::from_raw_parts_mut(start, bytes) }
    }

    /// Writes `words` to its start. No work uses the slot.
    pub(super) fn write_words(&mut self, words: &[u64]) {
        let bytes = words.iter().flat_map(|word| word.to_ne_bytes());
        for (to, from) in self.piece_mut(0, size_of_val(words)).iter_mut().zip(bytes) {
            *to = from;
        }
    }

    /// Work of `queue` uses the slot from now on, until the next mark or wait.
    pub(super) fn lend(&mut self, queue: &DeviceQueue) {
        self.lent_to = Some(queue.clone());
    }

    /// Records a mark behind the work that uses the slot.
    pub(super) fn mark(&mut self) -> Result<(), TransferError> {
        if let Some(queue) = &self.lent_to {
            self.mark = Some(queue.record()?);
            self.lent_to = None;
        }
        Ok(())
    }

    /// Waits as `wait` until no work uses the slot.
    pub(super) fn wait(&mut self, wait: DeviceWait) -> Result<(), TransferError> {
        self.mark()?;
        if let Some(mark) = &self.mark {
            wait.until_passed(mark)?;
            self.mark = None;
        }
        Ok(())
    }
}

impl Drop for PinnedSlot<'_> {
    fn drop(&mut self) {
        if let Some(queue) = &self.lent_to {
            quiesce(DeviceWait::SlotUnmarked, queue);
        }
        self.staging.give_back(self.memory.take(), self.mark.take());
    }
}
