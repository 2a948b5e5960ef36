//! A checked part of another region.

use super::{MemoryRegion, NixlDescriptor, OwnedMemoryRegion, StorageKind};
use crate::MemoryError;
use std::any::Any;

/// A part of a region, which it keeps alive.
///
/// A view of a view is a view of the innermost region: [`RegionView::parent`] is never a
/// `RegionView`, and [`RegionView::offset`] counts from the parent's start.
#[derive(Debug, Clone)]
pub struct RegionView {
    parent: OwnedMemoryRegion,
    offset: usize,
    size: usize,
}

impl RegionView {
    /// The `size` bytes of `parent` from byte `offset`.
    ///
    /// # Errors
    ///
    /// [`MemoryError::ZeroSize`] for a size of zero, [`MemoryError::OutOfBounds`] if the range
    /// does not lie inside `parent`.
    pub fn new(parent: OwnedMemoryRegion, offset: usize, size: usize) -> Result<Self, MemoryError> {
        if size == 0 {
            return Err(MemoryError::ZeroSize);
        }
        if offset
            .checked_add(size)
            .is_none_or(|end| end > parent.size())
        {
            return Err(MemoryError::OutOfBounds {
                offset: offset as u64,
                len: size,
                size: parent.size(),
            });
        }
        Ok(match parent.as_any().downcast_ref::<Self>() {
            // Both offsets lie inside the innermost region, so their sum does not wrap.
            Some(view) => Self {
                parent: OwnedMemoryRegion::clone(&view.parent),
                offset: view.offset + offset,
                size,
            },
            None => Self {
                parent,
                offset,
                size,
            },
        })
    }

    /// The region that this is a part of.
    #[must_use]
    pub fn parent(&self) -> &OwnedMemoryRegion {
        &self.parent
    }

    /// The byte offset in [`RegionView::parent`] at which this part starts.
    #[must_use]
    pub fn offset(&self) -> usize {
        self.offset
    }
}

// SAFETY: `new` checked that `offset..offset + size` lies inside the parent, whose guarantees are
// constant and hold as long as `self.parent` is held; so they hold for that part of it. For files,
// `as_any` is a `RegionView`, whose parent is no view (see `new`) and therefore a `FileMemory`.
unsafe impl MemoryRegion for RegionView {
    fn addr(&self) -> usize {
        self.parent.addr() + self.offset
    }

    fn size(&self) -> usize {
        self.size
    }

    fn storage_kind(&self) -> StorageKind {
        self.parent.storage_kind()
    }

    fn as_any(&self) -> &dyn Any {
        self
    }

    fn is_writable(&self) -> bool {
        self.parent.is_writable()
    }

    fn nixl_descriptor(&self) -> Option<NixlDescriptor> {
        let parent = self.parent.nixl_descriptor()?;
        Some(NixlDescriptor {
            addr: parent.addr.checked_add(self.offset as u64)?,
            size: self.size,
            ..parent
        })
    }
}
