//! Where devices reach the regions of a layout in memory of this process.

use kvtile_device::Device;
use kvtile_kernels::MoveRegion;
use kvtile_layout::broken;
use kvtile_memory::{OwnedMemoryRegion, StorageKind};

use crate::error::TransferError;

/// A part of a region that a device reaches at consecutive addresses. No copy may reach from one part into the next.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ReachedPart {
    /// Offset of the part in its region.
    start: u64,
    address: u64,
    bytes: u64,
}

/// The regions of a layout as devices reach them.
#[derive(Debug)]
pub(crate) enum ReachedMemory {
    /// Memory that is not pinned.
    Pageable,
    /// For each region its parts, in order and without gaps.
    Pinned(Vec<Vec<ReachedPart>>),
}

impl ReachedMemory {
    /// Where `device` reaches these regions, which are all of `kind`.
    pub(crate) fn of(
        device: &Device,
        kind: StorageKind,
        regions: &[OwnedMemoryRegion],
    ) -> Result<ReachedMemory, TransferError> {
        if kind != StorageKind::Pinned {
            return Ok(ReachedMemory::Pageable);
        }
        let parts = regions.iter().map(|region| {
            let mut start = 0;
            let ranges = device.ranges_of(region.as_ref(), 0..region.size())?;
            let parts = ranges.into_iter().map(|(address, bytes)| {
                let part = ReachedPart {
                    start,
                    address,
                    bytes: bytes as u64,
                };
                start += part.bytes;
                part
            });
            Ok(parts.collect())
        });
        let parts = parts.collect::<Result<_, TransferError>>()?;
        Ok(ReachedMemory::Pinned(parts))
    }

    /// The regions, if each is at consecutive addresses.
    pub(crate) fn as_regions(&self) -> Option<Vec<MoveRegion>> {
        let ReachedMemory::Pinned(regions) = self else {
            // Devices do not reach pageable memory.
            return None;
        };
        let regions = regions.iter().map(|parts| {
            let first = parts.first()?;
            let is_next = |part: &ReachedPart| part.address == first.address + part.start;
            let bytes = parts.last().map_or(0, |last| last.start + last.bytes);
            parts.iter().all(is_next).then_some(MoveRegion {
                address: first.address,
                bytes,
            })
        });
        regions.collect()
    }

    pub(super) fn is_pinned(&self) -> bool {
        matches!(self, ReachedMemory::Pinned(_))
    }

    /// Adds the addresses of `bytes` bytes from `offset` of `region` to `parts`. The range lies inside the region.
    pub(crate) fn add_parts(
        &self,
        (region, offset): (u64, u64),
        bytes: u64,
        parts: &mut Vec<(u64, u64)>,
    ) {
        let ReachedMemory::Pinned(regions) = self else {
            broken(format_args!("addresses for a device of pageable memory"))
        };
        let known = usize::try_from(region).ok();
        let Some(known) = known.and_then(|index| regions.get(index)) else {
            broken(format_args!("region {region} of {}", regions.len()))
        };
        let first = known.partition_point(|part| part.start + part.bytes <= offset);
        let (mut at, end) = (offset, offset + bytes);
        for part in known.iter().skip(first).take_while(|part| part.start < end) {
            let next = end.min(part.start + part.bytes);
            parts.push((part.address + (at - part.start), next - at));
            at = next;
        }
        if at != end {
            broken(format_args!(
                "bytes {offset}..{end} of region {region} have no address behind {at}"
            ));
        }
    }
}
