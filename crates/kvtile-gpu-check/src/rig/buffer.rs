//! Memory that the device reaches: its own, and pinned memory of the host.

use std::{fmt, ops::Range, sync::Arc};

use kvtile_device::{DeviceMemory, PinnedMemory};
use kvtile_memory::MemoryRegion;

use super::Rig;
use crate::error::GpuCheckError;

/// Where a buffer is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BufferPlace {
    Device,
    Host,
}

/// Memory of a rig; clones are the same memory.
#[derive(Clone)]
pub(crate) struct RigBuffer {
    memory: Arc<BufferMemory>,
}

struct BufferMemory {
    rig: u64,
    region: BufferRegion,
}

enum BufferRegion {
    Device(DeviceMemory),
    Host(PinnedMemory),
}

impl RigBuffer {
    pub(crate) fn bytes(&self) -> usize {
        match &self.memory.region {
            BufferRegion::Device(memory) => memory.size(),
            BufferRegion::Host(memory) => memory.size(),
        }
    }

    /// The address by which the device reaches the first byte.
    pub(super) fn address(&self) -> u64 {
        match &self.memory.region {
            BufferRegion::Device(memory) => memory.device_address(),
            BufferRegion::Host(memory) => memory.device_address(),
        }
    }

    /// Whether both are the same memory.
    pub(super) fn is(&self, other: &RigBuffer) -> bool {
        Arc::ptr_eq(&self.memory, &other.memory)
    }

    pub(super) fn is_of(&self, rig: u64) -> bool {
        self.memory.rig == rig
    }

    /// The address of the first byte of a range, which lies inside the buffer.
    pub(super) fn check(&self, range: &Range<usize>) -> Result<u64, GpuCheckError> {
        if range.start > range.end || range.end > self.bytes() {
            return Err(GpuCheckError::OutsideBuffer {
                start: range.start,
                end: range.end,
                bytes: self.bytes(),
            });
        }
        Ok(self.address() + range.start as u64)
    }
}

impl fmt::Debug for RigBuffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let place = match &self.memory.region {
            BufferRegion::Device(_) => "of the device",
            BufferRegion::Host(_) => "of the host",
        };
        write!(f, "{} bytes {place}", self.bytes())
    }
}

impl Rig {
    /// Allocates a buffer.
    pub(crate) fn buffer(
        &self,
        place: BufferPlace,
        bytes: usize,
    ) -> Result<RigBuffer, GpuCheckError> {
        let region = match place {
            BufferPlace::Device => {
                BufferRegion::Device(DeviceMemory::allocate(&self.device, bytes)?)
            }
            BufferPlace::Host => BufferRegion::Host(PinnedMemory::allocate(&self.device, bytes)?),
        };
        Ok(RigBuffer {
            memory: Arc::new(BufferMemory {
                rig: self.number,
                region,
            }),
        })
    }

    /// The bytes of a range of a host buffer, after all enqueued work.
    pub(crate) fn read(
        &self,
        buffer: &RigBuffer,
        range: Range<usize>,
    ) -> Result<Vec<u8>, GpuCheckError> {
        let start = self.host_address(buffer, &range)?;
        let mut bytes = vec![0; range.len()];
        let from: *const u8 = std::ptr::with_exposed_provenance(start);
        // SAFETY: the range lies inside pinned memory that lives as long as `buffer`. No work accesses it, because all
        // queues of its only rig are idle, and the rig is on this thread.
        unsafe { from.copy_to_nonoverlapping(bytes.as_mut_ptr(), bytes.len()) };
        Ok(bytes)
    }

    /// Writes `bytes` at offset `at` of a host buffer, after all enqueued work.
    pub(crate) fn write(
        &self,
        buffer: &RigBuffer,
        at: usize,
        bytes: &[u8],
    ) -> Result<(), GpuCheckError> {
        let start = self.host_address(buffer, &(at..at.saturating_add(bytes.len())))?;
        let to: *mut u8 = std::ptr::with_exposed_provenance_mut(start);
        // SAFETY: as in `read`.
        unsafe { to.copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) };
        Ok(())
    }

    fn host_address(
        &self,
        buffer: &RigBuffer,
        range: &Range<usize>,
    ) -> Result<usize, GpuCheckError> {
        let _inside = buffer.check(range)?;
        let BufferRegion::Host(memory) = &buffer.memory.region else {
            return Err(GpuCheckError::NotHostMemory);
        };
        if !buffer.is_of(self.number) {
            return Err(GpuCheckError::ForeignBuffer);
        }
        self.idle()?;
        Ok(memory.addr() + range.start)
    }
}
