//! The addresses by which devices reach the bytes of any region.

use super::pinned::device_address_of;
use super::{DeviceMemory, ImportedMemory, PinnedMemory, RegisteredMemory};
use crate::{Device, DeviceError};
use kvtile_memory::{MemoryError, MemoryRegion, RegionView, StorageKind};
use std::ops::Range;

impl Device {
    /// The device over which `region`, or the region of which it is a view, was allocated, registered or imported. None
    /// for memory of other owners.
    #[must_use]
    pub fn of_region(region: &dyn MemoryRegion) -> Option<&Device> {
        let any = region.as_any();
        if let Some(view) = any.downcast_ref::<RegionView>() {
            return Device::of_region(&**view.parent());
        }
        let device = any.downcast_ref().map(DeviceMemory::device);
        let device = device.or_else(|| any.downcast_ref().map(ImportedMemory::device));
        let device = device.or_else(|| any.downcast_ref().map(PinnedMemory::device));
        device.or_else(|| any.downcast_ref().map(RegisteredMemory::device))
    }

    /// The bytes `range` of `region` as devices reach them: address and bytes of each part. No copy may reach from one
    /// part into the next. All kinds of regions have one part, except registered memory, which is cut where its pieces
    /// end.
    ///
    /// # Errors
    ///
    /// [`DeviceError::NotReachable`] for memory that is not pinned, and for files; [`DeviceError::Memory`] for a range
    /// outside of the region; for pinned memory of other owners the driver's error, [`DeviceError::Lost`],
    /// [`DeviceError::Forked`].
    pub fn ranges_of(
        &self,
        region: &dyn MemoryRegion,
        range: Range<usize>,
    ) -> Result<Vec<(u64, usize)>, DeviceError> {
        let bytes = range.end.checked_sub(range.start);
        let Some(bytes) = bytes.filter(|_| range.end <= region.size()) else {
            return Err(DeviceError::Memory(MemoryError::OutOfBounds {
                offset: range.start as u64,
                len: range.end.saturating_sub(range.start),
                size: region.size(),
            }));
        };
        if bytes == 0 {
            return Ok(Vec::new());
        }
        let any = region.as_any();
        if let Some(view) = any.downcast_ref::<RegionView>() {
            // The view lies inside its parent, and the range inside the view.
            let start = view.offset() + range.start;
            return self.ranges_of(&**view.parent(), start..start + bytes);
        }
        if let Some(memory) = any.downcast_ref::<RegisteredMemory>() {
            return Ok(memory.device_ranges(range).collect());
        }
        let owned = any
            .downcast_ref::<DeviceMemory>()
            .map(DeviceMemory::device_address);
        let owned = owned.or_else(|| any.downcast_ref().map(ImportedMemory::device_address));
        let owned = owned.or_else(|| any.downcast_ref().map(PinnedMemory::device_address));
        let first = match (owned, region.storage_kind()) {
            (Some(address), _) => address,
            // Of other owners.
            (None, StorageKind::Device(_)) => region.addr() as u64,
            (None, StorageKind::Pinned) => {
                let start = std::ptr::with_exposed_provenance_mut(region.addr());
                device_address_of(self, start)?
            }
            (None, kind) => return Err(DeviceError::NotReachable { kind }),
        };
        Ok(vec![(first + range.start as u64, bytes)])
    }
}
