//! What a descriptor from outside must pass.

use kvtile_layout::{LayoutError, StridedLayout, tradition::LayoutTypeDetails};
use kvtile_memory::{MemoryDescriptor, StorageKind};

use super::LayoutDescriptor;
use crate::{error::TransferError, physical::NixlMetadata};

/// Version 0, and any that is not written today.
pub(super) fn version(version: u32) -> Result<(), TransferError> {
    if version == LayoutDescriptor::CURRENT_VERSION {
        return Ok(());
    }
    Err(TransferError::DescriptorVersion {
        version,
        supported: LayoutDescriptor::CURRENT_VERSION,
    })
}

/// The location says the same as the memory type; for devices and files the same number too.
pub(super) fn location(location: StorageKind, nixl: &NixlMetadata) -> Result<(), TransferError> {
    let numbered = matches!(location, StorageKind::Device(_) | StorageKind::Disk(_));
    let same_number = !numbered || location.device_id() == nixl.device_id;
    if location.mem_type() == nixl.mem_type && same_number {
        return Ok(());
    }
    Err(TransferError::DescriptorLocation {
        location,
        mem_type: nixl.mem_type,
        device_id: nixl.device_id,
    })
}

/// Every range is one of addresses, and no two share a byte.
pub(super) fn ranges(memory: &[MemoryDescriptor], kind: StorageKind) -> Result<(), TransferError> {
    let mut sorted = Vec::with_capacity(memory.len());
    for (index, range) in memory.iter().enumerate() {
        let end = range.addr.checked_add(range.size);
        match end.filter(|_| range.size > 0) {
            Some(end) => sorted.push((range.addr, end, index)),
            None => {
                return Err(TransferError::DescriptorRange {
                    index,
                    addr: range.addr as u64,
                    size: range.size as u64,
                });
            }
        }
    }
    sorted.sort_unstable();
    for pair in sorted.windows(2) {
        if let [(_, end, first), (start, _, second)] = pair
            && end > start
        {
            return Err(TransferError::RegionsOverlap {
                first: *first,
                second: *second,
                kind,
            });
        }
    }
    Ok(())
}

/// Digits that go from region to region reach each region once at most: a product of them cannot
/// be more than there are.
pub(super) fn region_steps(details: &LayoutTypeDetails) -> Result<(), TransferError> {
    let LayoutTypeDetails::Digits(details) = details else {
        // The named layouts have no digits of their own to check.
        return Ok(());
    };
    let max = details.region_bytes.len() as u64;
    for plane in &details.planes {
        let far = plane.digits.iter().filter(|d| !d.step.is_local());
        let regions = far.fold(1, |product: u64, d| product.saturating_mul(d.extent));
        if regions > max {
            return Err(LayoutError::TooManyRegions { regions, max }.into());
        }
    }
    Ok(())
}

/// As many ranges as regions, each large enough and aligned.
pub(super) fn fits(
    layout: &StridedLayout,
    memory: &[MemoryDescriptor],
) -> Result<(), TransferError> {
    let needed = layout.region_bytes();
    if memory.len() != needed.len() {
        return Err(TransferError::RegionCount {
            given: memory.len(),
            needed: needed.len(),
        });
    }
    for (index, (range, &bytes)) in memory.iter().zip(needed).enumerate() {
        if (range.size as u64) < bytes {
            return Err(TransferError::RegionTooSmall {
                region: index,
                have: range.size as u64,
                need: bytes,
            });
        }
        if !(range.addr as u64).is_multiple_of(layout.alignment()) {
            return Err(TransferError::RegionMisaligned {
                region: index,
                addr: range.addr as u64,
                alignment: layout.alignment(),
            });
        }
    }
    Ok(())
}
