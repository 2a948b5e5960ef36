//! The memory of the stand-in.
//!
//! ```text
//! device address   │guard│ no access: a CPU that touches it gets SIGSEGV │guard│
//!                           │ same offset
//! shadow               │ the bytes, for the stand-in alone │
//! ```
//!
//! Pinned and registered memory is its own shadow; registered memory may have another device address.

use kvtile_device::cuda;
use rustix::mm::{MapFlags, MsyncFlags, ProtFlags, mmap_anonymous, msync, munmap};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::ptr;
use std::sync::Arc;

/// What fresh memory contains: no program should rely on zeroes.
const POISON: u8 = 0xA5;

/// Pages of the stand-in, unmapped on drop.
#[derive(Debug)]
pub(crate) struct MappedPages {
    start: usize,
    bytes: usize,
}

impl MappedPages {
    fn map(bytes: usize, rights: ProtFlags) -> Option<MappedPages> {
        let bytes = bytes.checked_next_multiple_of(rustix::param::page_size())?;
        // SAFETY: with a null hint the kernel chooses unused addresses, so no existing memory changes.
        let start = unsafe { mmap_anonymous(ptr::null_mut(), bytes, rights, MapFlags::PRIVATE) };
        Some(MappedPages {
            start: start.ok()?.expose_provenance(),
            bytes,
        })
    }

    /// Addresses that nothing may touch, with a page in front and behind.
    fn reserve(bytes: usize) -> Option<(MappedPages, usize)> {
        let page = rustix::param::page_size();
        let pages = MappedPages::map(bytes.checked_add(3 * page)?, ProtFlags::empty())?;
        let inner = pages.start + page;
        Some((pages, inner))
    }

    /// Bytes that can be read and written, all [`POISON`].
    fn poisoned(bytes: usize) -> Option<MappedPages> {
        let pages = MappedPages::map(bytes, ProtFlags::READ | ProtFlags::WRITE)?;
        let start: *mut u8 = ptr::with_exposed_provenance_mut(pages.start);
        // SAFETY: the pages were just mapped for writing, and no other code has them.
        unsafe { start.write_bytes(POISON, pages.bytes) };
        Some(pages)
    }
}

impl Drop for MappedPages {
    fn drop(&mut self) {
        let start = ptr::with_exposed_provenance_mut(self.start);
        // SAFETY: exactly the pages of this mapping; the world runs all work before it drops memory.
        let _unmapped = unsafe { munmap(start, self.bytes) };
    }
}

/// Where memory is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum MemoryPlace {
    /// Of a device.
    Device(u32),
    /// Of the host, allocated by the driver.
    Pinned,
    /// Of the host, of another owner.
    Registered,
    /// Of a device, opened over a handle of another mapping.
    Opened(u32),
}

/// Memory that devices reach.
#[derive(Debug)]
pub(crate) struct KnownMemory {
    /// The address of the first byte for devices.
    pub(crate) start: u64,
    pub(crate) size: usize,
    pub(crate) place: MemoryPlace,
    pub(crate) is_writable: bool,
    /// Equal for all mappings of the same memory.
    pub(crate) buffer: u64,
    /// The address of the bytes for the stand-in; for host memory the host's.
    shadow: usize,
    pages: Vec<Arc<MappedPages>>,
}

/// All memory that devices reach, by device address.
#[derive(Debug, Default)]
pub(crate) struct MemoryMap {
    known: BTreeMap<u64, KnownMemory>,
    /// Starts of managed memory.
    managed: BTreeSet<u64>,
    last_buffer: u64,
}

/// A range of memory, resolved.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ResolvedRange {
    shadow: usize,
    bytes: usize,
}

impl ResolvedRange {
    /// The same for all mappings of the same bytes.
    pub(crate) fn identity(self) -> Range<u64> {
        self.shadow as u64..self.shadow as u64 + self.bytes as u64
    }

    /// Host memory that no driver knows.
    pub(crate) fn pageable(address: u64, bytes: usize) -> Option<ResolvedRange> {
        Some(ResolvedRange {
            shadow: usize::try_from(address).ok()?,
            bytes,
        })
    }

    fn pointer(self) -> *mut u8 {
        ptr::with_exposed_provenance_mut(self.shadow)
    }

    /// # Safety
    ///
    /// Both ranges are of memory that is still mapped, and no reference to it exists.
    pub(crate) unsafe fn copy_to(self, to: ResolvedRange) {
        // SAFETY: both have the bytes, as the caller guarantees; they may overlap.
        unsafe { ptr::copy(self.pointer(), to.pointer(), self.bytes.min(to.bytes)) };
    }

    /// # Safety
    ///
    /// As [`ResolvedRange::copy_to`].
    pub(crate) unsafe fn fill(self, value: u8) {
        // SAFETY: the caller guarantees that the bytes are mapped.
        unsafe { self.pointer().write_bytes(value, self.bytes) };
    }

    /// # Safety
    ///
    /// As [`ResolvedRange::copy_to`].
    pub(crate) unsafe fn read(self, into: &mut [u8]) {
        let bytes = self.bytes.min(into.len());
        // SAFETY: the caller guarantees that the bytes are mapped; `into` is no memory of devices.
        unsafe { ptr::copy(self.pointer(), into.as_mut_ptr(), bytes) };
    }

    /// # Safety
    ///
    /// As [`ResolvedRange::copy_to`].
    pub(crate) unsafe fn write(self, from: &[u8]) {
        let bytes = self.bytes.min(from.len());
        // SAFETY: the caller guarantees that the bytes are mapped; `from` is no memory of devices.
        unsafe { ptr::copy(from.as_ptr(), self.pointer(), bytes) };
    }
}

impl MemoryMap {
    /// All memory.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &KnownMemory> {
        self.known.values()
    }

    /// Bytes of all memory for which `of` holds.
    pub(crate) fn bytes(&self, of: impl Fn(MemoryPlace) -> bool) -> usize {
        let counted = self.iter().filter(|known| of(known.place));
        counted.map(|known| known.size).sum()
    }

    /// The memory at an address that lies anywhere inside.
    pub(crate) fn at(&self, address: u64) -> Option<&KnownMemory> {
        let (_, known) = self.known.range(..=address).next_back()?;
        (address - known.start < known.size as u64).then_some(known)
    }

    /// A range, if it lies inside one piece of memory; `Err(true)` if it begins inside and ends outside.
    pub(crate) fn resolve(
        &self,
        address: u64,
        bytes: usize,
        is_write: bool,
    ) -> Result<ResolvedRange, bool> {
        let known = self.at(address).ok_or(false)?;
        let offset = usize::try_from(address - known.start).map_err(|_| true)?;
        if bytes > known.size - offset || (is_write && !known.is_writable) {
            return Err(true);
        }
        Ok(ResolvedRange {
            shadow: known.shadow + offset,
            bytes,
        })
    }

    fn insert(&mut self, mut known: KnownMemory) -> u64 {
        let start = known.start;
        if known.buffer == 0 {
            self.last_buffer += 1;
            known.buffer = self.last_buffer;
        }
        self.known.insert(start, known);
        start
    }

    /// Memory of a device, at addresses that the CPU cannot touch.
    pub(crate) fn allocate_device(&mut self, ordinal: u32, size: usize) -> Result<u64, u32> {
        let (reserved, start) = MappedPages::reserve(size).ok_or(cuda::OUT_OF_MEMORY)?;
        let shadow = MappedPages::poisoned(size).ok_or(cuda::OUT_OF_MEMORY)?;
        Ok(self.insert(KnownMemory {
            start: start as u64,
            size,
            place: MemoryPlace::Device(ordinal),
            is_writable: true,
            buffer: 0,
            shadow: shadow.start,
            pages: vec![Arc::new(reserved), Arc::new(shadow)],
        }))
    }

    /// Memory that the driver would move between the host and a device. Nothing is copied here: programs refuse it.
    pub(crate) fn allocate_managed(&mut self, ordinal: u32, size: usize) -> Result<u64, u32> {
        let start = self.allocate_device(ordinal, size)?;
        self.managed.insert(start);
        Ok(start)
    }

    /// Whether memory that starts at an address is managed.
    pub(crate) fn is_managed(&self, start: u64) -> bool {
        self.managed.contains(&start)
    }

    /// Pinned memory of the host.
    pub(crate) fn allocate_pinned(&mut self, size: usize) -> Result<u64, u32> {
        let pages = MappedPages::poisoned(size).ok_or(cuda::OUT_OF_MEMORY)?;
        Ok(self.insert(KnownMemory {
            start: pages.start as u64,
            size,
            place: MemoryPlace::Pinned,
            is_writable: true,
            buffer: 0,
            shadow: pages.start,
            pages: vec![Arc::new(pages)],
        }))
    }

    /// Host memory of another owner, at its own address or at one that the CPU cannot touch.
    pub(crate) fn register(
        &mut self,
        host: usize,
        size: usize,
        is_writable: bool,
        has_alias: bool,
    ) -> Result<(), u32> {
        let end = host.checked_add(size).ok_or(cuda::INVALID_VALUE)?;
        let overlaps = |known: &KnownMemory| {
            matches!(known.place, MemoryPlace::Pinned | MemoryPlace::Registered)
                && known.shadow < end
                && host < known.shadow + known.size
        };
        if self.iter().any(overlaps) {
            return Err(cuda::ALREADY_REGISTERED);
        }
        let (start, pages) = if has_alias {
            let (pages, start) = MappedPages::reserve(size).ok_or(cuda::OUT_OF_MEMORY)?;
            (start, vec![Arc::new(pages)])
        } else {
            (host, Vec::new())
        };
        self.insert(KnownMemory {
            start: start as u64,
            size,
            place: MemoryPlace::Registered,
            is_writable,
            buffer: 0,
            shadow: host,
            pages,
        });
        Ok(())
    }

    /// Another mapping of memory of a device.
    pub(crate) fn open(&mut self, original: u64) -> Result<u64, u32> {
        let known = self.known.get(&original).ok_or(cuda::INVALID_VALUE)?;
        let MemoryPlace::Device(ordinal) = known.place else {
            return Err(cuda::INVALID_VALUE);
        };
        let (size, shadow, buffer) = (known.size, known.shadow, known.buffer);
        let mut pages = known.pages.clone();
        let (reserved, start) = MappedPages::reserve(size).ok_or(cuda::OUT_OF_MEMORY)?;
        pages.push(Arc::new(reserved));
        Ok(self.insert(KnownMemory {
            start: start as u64,
            size,
            place: MemoryPlace::Opened(ordinal),
            is_writable: true,
            buffer,
            shadow,
            pages,
        }))
    }

    /// The host memory that starts at a host address.
    pub(crate) fn of_host(&self, host: usize, place: MemoryPlace) -> Option<&KnownMemory> {
        self.iter()
            .find(|known| known.place == place && known.shadow == host)
    }

    /// The host memory around a host address: the device address of that byte.
    pub(crate) fn device_address(&self, host: usize) -> Option<u64> {
        let known = self.iter().find(|known| {
            matches!(known.place, MemoryPlace::Pinned | MemoryPlace::Registered)
                && host.wrapping_sub(known.shadow) < known.size
        })?;
        Some(known.start + (host - known.shadow) as u64)
    }

    /// Removes the memory that starts at a device address.
    pub(crate) fn remove(&mut self, start: u64) -> Option<KnownMemory> {
        self.managed.remove(&start);
        self.known.remove(&start)
    }
}

impl KnownMemory {
    /// Whether the owner of registered memory still has all its pages mapped.
    pub(crate) fn is_mapped(&self) -> bool {
        let page = rustix::param::page_size();
        let start = self.shadow - self.shadow % page;
        let bytes = self.shadow + self.size - start;
        let start = ptr::with_exposed_provenance_mut(start);
        // SAFETY: the call reads and writes no byte; for a page that is not mapped it returns an error.
        unsafe { msync(start, bytes, MsyncFlags::ASYNC) }.is_ok()
    }

    /// All its bytes.
    pub(crate) fn identity(&self) -> Range<u64> {
        ResolvedRange {
            shadow: self.shadow,
            bytes: self.size,
        }
        .identity()
    }
}
