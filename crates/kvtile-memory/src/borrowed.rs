//! Memory of another owner: an engine's cache, a driver's allocation.

use crate::MemoryError;
use crate::region::{MemoryRegion, StorageKind};
use std::any::Any;
use std::fmt;
use std::ptr::NonNull;
use std::sync::Arc;

/// A region at an address that another component allocated, with an `Arc` that keeps it allocated.
#[derive(Clone)]
pub struct BorrowedMemory {
    addr: usize,
    size: usize,
    kind: StorageKind,
    writable: bool,
    keep_alive: Arc<dyn Any + Send + Sync>,
}

impl BorrowedMemory {
    /// The `size` bytes at `pointer`, which stay valid as long as `keep_alive` is held.
    ///
    /// ```
    /// use kvtile_memory::{BorrowedMemory, MemoryRegion, StorageKind};
    /// use std::{ptr::NonNull, sync::Arc};
    ///
    /// let bytes: &'static mut [u8] = Box::leak(vec![0; 4096].into_boxed_slice());
    /// let size = bytes.len();
    /// let pointer = NonNull::from(bytes).cast();
    /// // SAFETY: the bytes are leaked, and no other code uses them.
    /// let region =
    ///     unsafe { BorrowedMemory::new(pointer, size, Arc::new(()), StorageKind::System) }?;
    /// assert_eq!(region.size(), 4096);
    /// # Ok::<(), kvtile_memory::MemoryError>(())
    /// ```
    ///
    /// # Safety
    ///
    /// As long as `keep_alive` is held, the bytes are as [`MemoryRegion`] demands for `kind`. For
    /// `System` and `Pinned` they are mapped, initialised, readable, writable (unless
    /// [`BorrowedMemory::read_only`] follows) and do not move; for `Device` they are allocated
    /// memory of that device. No code accesses them in conflict with the leases under which other
    /// code copies through this region.
    ///
    /// # Errors
    ///
    /// [`MemoryError::ZeroSize`], [`MemoryError::TooLarge`] (more than `isize::MAX` bytes of
    /// addressable memory), [`MemoryError::AddressWrap`], and [`MemoryError::UnsupportedKind`] for
    /// `Disk`, which [`crate::FileMemory`] is for.
    pub unsafe fn new(
        pointer: NonNull<u8>,
        size: usize,
        keep_alive: Arc<dyn Any + Send + Sync>,
        kind: StorageKind,
    ) -> Result<Self, MemoryError> {
        let addr = pointer.as_ptr().expose_provenance();
        if size == 0 {
            return Err(MemoryError::ZeroSize);
        }
        if addr.checked_add(size).is_none() {
            return Err(MemoryError::AddressWrap { addr, size });
        }
        if kind.is_addressable() && isize::try_from(size).is_err() {
            return Err(MemoryError::TooLarge { bytes: size as u64 });
        }
        if matches!(kind, StorageKind::Disk(_)) {
            return Err(MemoryError::UnsupportedKind { kind });
        }
        Ok(Self {
            addr,
            size,
            kind,
            writable: true,
            keep_alive,
        })
    }

    /// Marks the region read-only.
    #[must_use]
    pub fn read_only(mut self) -> Self {
        self.writable = false;
        self
    }

    /// The value that keeps the memory allocated.
    #[must_use]
    pub fn keep_alive(&self) -> &Arc<dyn Any + Send + Sync> {
        &self.keep_alive
    }
}

impl fmt::Debug for BorrowedMemory {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("BorrowedMemory")
            .field("addr", &format_args!("{:#x}", self.addr))
            .field("size", &self.size)
            .field("kind", &self.kind)
            .field("writable", &self.writable)
            .finish_non_exhaustive()
    }
}

// SAFETY: the caller of `new` guaranteed the bytes for as long as `keep_alive` is held, and `self`
// holds it. `new` checked that the size is not zero, fits and does not wrap, exposed the provenance
// of the pointer, and refused files. No method changes anything through `&self`.
unsafe impl MemoryRegion for BorrowedMemory {
    fn addr(&self) -> usize {
        self.addr
    }

    fn size(&self) -> usize {
        self.size
    }

    fn storage_kind(&self) -> StorageKind {
        self.kind
    }

    fn as_any(&self) -> &dyn Any {
        self
    }

    fn is_writable(&self) -> bool {
        self.writable
    }
}
