//! Host memory that exists already and is registered with the driver, in pieces.

use super::pinned::device_address_of;
use crate::driver::cuda;
use crate::{Device, DeviceError};
use kvtile_memory::{
    MemoryRegion, OwnedMemoryRegion, Prefault, PrefaultProgress, StorageKind, SystemMemory,
};
use std::any::Any;
use std::ffi::c_void;
use std::ops::Range;
use std::sync::Arc;

/// How memory is registered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RegisterOptions {
    /// Bytes of a piece, a multiple of the page size. Drivers refuse one registration of 512 GiB or more, however
    /// much memory is free.
    pub piece_bytes: usize,
    /// Threads that touch new memory first; 0 means one for each CPU that the process may use. Pages that are there
    /// already are pinned several times as fast.
    pub threads: usize,
}

impl Default for RegisterOptions {
    fn default() -> Self {
        RegisterOptions {
            piece_bytes: 64 << 30,
            threads: 0,
        }
    }
}

/// One registration: bytes that devices reach at consecutive addresses. No copy may reach from one into the next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DevicePiece {
    /// Its bytes in the region.
    pub range: Range<usize>,
    /// The address by which devices reach its first byte, which need not be the host's.
    pub device_address: u64,
}

/// Host memory of any owner that is registered with the driver, unregistered on drop.
#[derive(Debug)]
pub struct RegisteredMemory {
    // The order of the fields is that of the drops: the registrations end while the memory is mapped. Behind it, memory
    // of another owner may have the same addresses.
    pieces: RegisteredPieces,
    region: OwnedMemoryRegion,
}

/// The registrations so far; the drop ends them, also where a later one fails.
#[derive(Debug)]
struct RegisteredPieces {
    device: Device,
    start: usize,
    pieces: Vec<DevicePiece>,
}

impl RegisteredMemory {
    /// Allocates `bytes` of system memory, touches them with several threads, and registers them.
    ///
    /// # Errors
    ///
    /// As [`RegisteredMemory::register`]; [`DeviceError::Memory`] if the memory cannot be allocated.
    pub fn allocate(
        device: &Device,
        bytes: usize,
        options: RegisterOptions,
        progress: impl Fn(PrefaultProgress) + Send + Sync,
    ) -> Result<RegisteredMemory, DeviceError> {
        let prefault = Prefault::Populate {
            threads: options.threads,
        };
        let memory = SystemMemory::options()
            .prefault(prefault)
            .progress(progress);
        let memory = memory.allocate(bytes)?;
        RegisteredMemory::register(device, Arc::new(memory), options)
    }

    /// Registers a region of system or shared memory. A region that may not be written is registered for reading.
    ///
    /// # Errors
    ///
    /// [`DeviceError::NotRegistrable`] for other kinds of memory, and for memory that is pinned already;
    /// [`DeviceError::PieceSize`]; [`DeviceError::OutOfMemory`]; the driver's error (712 where another owner has
    /// registered these pages), [`DeviceError::Lost`], [`DeviceError::Forked`]. After an error nothing is registered.
    pub fn register(
        device: &Device,
        region: OwnedMemoryRegion,
        options: RegisterOptions,
    ) -> Result<RegisteredMemory, DeviceError> {
        if region.storage_kind() != StorageKind::System {
            return Err(DeviceError::NotRegistrable {
                kind: region.storage_kind(),
            });
        }
        let page_bytes = rustix::param::page_size();
        let piece_bytes = options.piece_bytes;
        if piece_bytes == 0 || !piece_bytes.is_multiple_of(page_bytes) {
            return Err(DeviceError::PieceSize {
                piece_bytes,
                page_bytes,
            });
        }
        let mut pieces = RegisteredPieces {
            device: device.clone(),
            start: region.addr(),
            pieces: Vec::new(),
        };
        let mut offset = 0;
        while offset < region.size() {
            // Pieces end where pages end: the first is shorter if the region starts inside a page.
            let inside = (region.addr() + offset) % page_bytes;
            let end = offset.saturating_add(piece_bytes - inside);
            let end = end.min(region.size());
            pieces.add(offset..end, region.is_writable())?;
            offset = end;
        }
        Ok(RegisteredMemory { pieces, region })
    }

    /// Its device.
    #[must_use]
    pub fn device(&self) -> &Device {
        &self.pieces.device
    }

    /// The region that is registered.
    #[must_use]
    pub fn region(&self) -> &OwnedMemoryRegion {
        &self.region
    }

    /// The pieces, in order, without gaps.
    #[must_use]
    pub fn pieces(&self) -> &[DevicePiece] {
        &self.pieces.pieces
    }

    /// A range of the region as the addresses by which devices reach it, cut where pieces end: address and bytes of
    /// each part. The part of the range outside of the region is left out.
    pub fn device_ranges(&self, range: Range<usize>) -> impl Iterator<Item = (u64, usize)> + '_ {
        let first = self
            .pieces()
            .partition_point(|piece| piece.range.end <= range.start);
        let pieces = self.pieces().iter().skip(first);
        let pieces = pieces.take_while(move |piece| piece.range.start < range.end);
        pieces.filter_map(move |piece| {
            let start = range.start.max(piece.range.start);
            let bytes = range.end.min(piece.range.end).checked_sub(start)?;
            let inside = (start - piece.range.start) as u64;
            (bytes > 0).then_some((piece.device_address + inside, bytes))
        })
    }
}

impl RegisteredPieces {
    fn pointer(&self, offset: usize) -> *mut c_void {
        std::ptr::with_exposed_provenance_mut(self.start + offset)
    }

    fn add(&mut self, range: Range<usize>, is_writable: bool) -> Result<(), DeviceError> {
        let (start, bytes) = (self.pointer(range.start), range.len());
        let read_only = if is_writable {
            0
        } else {
            cuda::HOST_REGISTER_READ_ONLY
        };
        let flags = cuda::HOST_REGISTER_FLAGS | read_only;
        let facts = format_args!("{bytes} bytes at {start:p} for {:?}", self.device);
        let call = "cuMemHostRegister_v2";
        self.device.shared.call(call, facts, |table| {
            // SAFETY: the region, which outlives the registration, has these bytes mapped.
            unsafe { (table.host_register)(start, bytes, flags) }
        })?;
        // From here on the drop ends the registration.
        self.pieces.push(DevicePiece {
            range,
            device_address: 0,
        });
        let address = device_address_of(&self.device, start)?;
        if let Some(piece) = self.pieces.last_mut() {
            piece.device_address = address;
        }
        Ok(())
    }
}

impl Drop for RegisteredPieces {
    fn drop(&mut self) {
        for piece in &self.pieces {
            let start = self.pointer(piece.range.start);
            // SAFETY: `add` registered memory at this address, and each registration ends once; work that uses it holds
            // the region.
            self.device
                .shared
                .release(|table| unsafe { (table.host_unregister)(start) });
        }
    }
}

// SAFETY: the guarantees are those of the inner region, which is memory of this process; `register` pinned it, and the
// registration ends only with the drop of `self`.
unsafe impl MemoryRegion for RegisteredMemory {
    fn addr(&self) -> usize {
        self.region.addr()
    }

    fn size(&self) -> usize {
        self.region.size()
    }

    fn storage_kind(&self) -> StorageKind {
        StorageKind::Pinned
    }

    fn as_any(&self) -> &dyn Any {
        self
    }

    fn is_writable(&self) -> bool {
        self.region.is_writable()
    }
}
