//! The checks on an incoming descriptor.

use kvtile_layout::{
    LayoutError, PlaneDigits, ResolveError, StridedLayout, tradition::LayoutTypeDetails,
};
use kvtile_memory::{MemoryDescriptor, StorageKind};

use crate::{
    error::{BindError, DescriptorError, TransferError},
    physical::{DescribedLayout, DescribedOrder, NixlMetadata},
};

/// The location must match the memory type; for devices and files, the device id must match too.
pub(super) fn location(location: StorageKind, nixl: &NixlMetadata) -> Result<(), TransferError> {
    let numbered = matches!(location, StorageKind::Device(_) | StorageKind::Disk(_));
    let same_number = !numbered || location.device_id() == nixl.device_id;
    if location.mem_type() == nixl.mem_type && same_number {
        return Ok(());
    }
    Err(TransferError::Descriptor(
        DescriptorError::DescriptorLocation {
            location,
            mem_type: nixl.mem_type,
            device_id: nixl.device_id,
        },
    ))
}

/// Every range must be a valid address range, and no two may overlap.
pub(super) fn ranges(memory: &[MemoryDescriptor], kind: StorageKind) -> Result<(), TransferError> {
    let mut sorted = Vec::with_capacity(memory.len());
    for (index, range) in memory.iter().enumerate() {
        let end = range.addr.checked_add(range.size);
        match end.filter(|_| range.size > 0) {
            Some(end) => sorted.push((range.addr, end, index)),
            None => {
                return Err(TransferError::Descriptor(
                    DescriptorError::DescriptorRange {
                        index,
                        addr: range.addr as u64,
                        size: range.size as u64,
                    },
                ));
            }
        }
    }
    sorted.sort_unstable();
    for pair in sorted.windows(2) {
        if let [(_, end, first), (start, _, second)] = pair
            && end > start
        {
            return Err(TransferError::Bind(BindError::RegionsOverlap {
                first: *first,
                second: *second,
                kind,
            }));
        }
    }
    Ok(())
}

/// Each region is reached by at most one combination of region digits. So the product of their
/// extents must not exceed the number of regions.
pub(super) fn region_steps(layout: &DescribedLayout) -> Result<(), TransferError> {
    let Some((planes, region_bytes)) = digits(layout) else {
        // Words and traditional kinds are resolved, which bounds their regions.
        return Ok(());
    };
    let max = region_bytes.len() as u64;
    for plane in planes {
        let far = plane.digits.iter().filter(|d| !d.step.is_local());
        let regions = far.fold(1, |product: u64, d| product.saturating_mul(d.extent));
        if regions > max {
            return Err(LayoutError::Resolve(ResolveError::TooManyRegions { regions, max }).into());
        }
    }
    Ok(())
}

/// The digits and the region bytes of a layout that is described by digits.
fn digits(layout: &DescribedLayout) -> Option<(&[PlaneDigits], &[u64])> {
    match layout {
        DescribedLayout::Traditional {
            details: LayoutTypeDetails::Digits(digits),
            ..
        } => Some((&digits.planes, &digits.region_bytes)),
        DescribedLayout::General {
            order:
                DescribedOrder::Digits {
                    planes,
                    region_bytes,
                },
            ..
        } => Some((planes, region_bytes)),
        DescribedLayout::Traditional { .. } | DescribedLayout::General { .. } => None,
    }
}

/// The descriptor must have one range per region, each large enough and aligned.
pub(super) fn fits(
    layout: &StridedLayout,
    memory: &[MemoryDescriptor],
) -> Result<(), TransferError> {
    let needed = layout.region_bytes();
    if memory.len() != needed.len() {
        return Err(TransferError::Bind(BindError::RegionCount {
            given: memory.len(),
            needed: needed.len(),
        }));
    }
    for (index, (range, &bytes)) in memory.iter().zip(needed).enumerate() {
        if (range.size as u64) < bytes {
            return Err(TransferError::Bind(BindError::RegionTooSmall {
                region: index,
                have: range.size as u64,
                need: bytes,
            }));
        }
        if !(range.addr as u64).is_multiple_of(layout.alignment()) {
            return Err(TransferError::Bind(BindError::RegionMisaligned {
                region: index,
                addr: range.addr as u64,
                alignment: layout.alignment(),
            }));
        }
    }
    Ok(())
}
