//! Ordinary memory of this process.

use crate::MemoryError;
use crate::mapping::Mapping;
use crate::options::{AllocateOptions, HugePages};
use crate::prefault::{self, MappingBacking};
use crate::region::{MemoryRegion, StorageKind, check_size};
use std::any::Any;

/// Zeroed, page-aligned memory private to this process, unmapped on drop.
///
/// It starts at a huge-page boundary if it is at least one huge page long and huge pages were
/// requested.
#[derive(Debug)]
pub struct SystemMemory {
    mapping: Mapping,
    size: usize,
    huge_pages: HugePages,
}

impl SystemMemory {
    /// Options: huge pages (on), pre-fault (off), progress.
    #[must_use]
    pub fn options<'a>() -> AllocateOptions<'a, Self> {
        AllocateOptions::new()
    }

    /// Allocates `bytes` with the default options.
    ///
    /// # Errors
    ///
    /// As [`AllocateOptions::<SystemMemory>::allocate`].
    pub fn allocate(bytes: usize) -> Result<Self, MemoryError> {
        Self::options().allocate(bytes)
    }

    /// Whether the kernel may use huge pages here.
    #[must_use]
    pub fn huge_pages(&self) -> &HugePages {
        &self.huge_pages
    }

    /// All bytes, for the exclusive owner. A region in an `Arc` lends none, because another holder
    /// may write it:
    ///
    /// ```compile_fail,E0596
    /// # use std::sync::Arc;
    /// let memory = Arc::new(kvtile_memory::SystemMemory::allocate(4096)?);
    /// memory.as_mut_slice()[0] = 1;
    /// # Ok::<(), kvtile_memory::MemoryError>(())
    /// ```
    #[must_use]
    pub fn as_mut_slice(&mut self) -> &mut [u8] {
        // SAFETY: `&mut self` proves that this is the only handle: no other `Arc` holds the
        // region, and users of its address hold the region.
        unsafe { self.mapping.as_mut_slice(self.size) }
    }
}

impl AllocateOptions<'_, SystemMemory> {
    /// Allocates `bytes`.
    ///
    /// # Errors
    ///
    /// [`MemoryError::ZeroSize`], [`MemoryError::TooLarge`], [`MemoryError::AllocationFailed`] if
    /// the kernel refuses (a process limit, no address space), and
    /// [`MemoryError::LimitExceeded`] if pre-faulting would exhaust the machine or the control
    /// group. On an error nothing stays mapped.
    pub fn allocate(self, bytes: usize) -> Result<SystemMemory, MemoryError> {
        check_size(bytes)?;
        prefault::check_room(&self, bytes)?;
        let alignment = prefault::alignment(&self, bytes);
        let mapping =
            Mapping::anonymous(bytes, alignment).or_else(|_| Mapping::anonymous(bytes, 1))?;
        // SAFETY: the mapping was just made here, and no other code has its address yet.
        let huge_pages = unsafe { prefault::prepare(&mapping, &self, MappingBacking::Anonymous) }?;
        Ok(SystemMemory {
            mapping,
            size: bytes,
            huge_pages,
        })
    }
}

// SAFETY: the mapping covers `size` (checked in `allocate`), is readable and writable, zeroed by
// the kernel, at most `isize::MAX` bytes, with exposed provenance, and is unmapped only when
// `self.mapping` is dropped. Nothing changes it before.
unsafe impl MemoryRegion for SystemMemory {
    fn addr(&self) -> usize {
        self.mapping.address()
    }

    fn size(&self) -> usize {
        self.size
    }

    fn storage_kind(&self) -> StorageKind {
        StorageKind::System
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}
