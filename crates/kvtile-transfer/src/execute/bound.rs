//! A layout bound to its regions. Only this module adds offsets to base addresses.

use std::sync::Arc;

use kvtile_layout::{Location, StridedLayout};
use kvtile_memory::{FileMemory, OwnedMemoryRegion, StorageKind, file_of};

use super::{lane::LaneEnd, space::AddressSpace};
use crate::error::{BindError, CopyError, TransferError};

/// One region of memory, as the executors see it.
#[derive(Clone, Copy, Debug)]
pub(super) struct RawRegion {
    pub(super) base: *mut u8,
    pub(super) bytes: usize,
}

// SAFETY: a `RawRegion` is an address and a size; leases, not the thread that uses it, decide
// whether it may be read or written.
unsafe impl Send for RawRegion {}
// SAFETY: as above.
unsafe impl Sync for RawRegion {}

/// The kind of storage of the bytes.
#[derive(Debug)]
pub(super) enum RegionBacking {
    /// Memory that this process can address.
    Memory(Vec<RawRegion>),
    /// Files; one entry a region.
    File,
}

/// A layout whose regions exist in this process and are large enough, aligned, disjoint and of one
/// kind.
#[derive(Debug)]
pub(crate) struct BoundLayout {
    layout: Arc<StridedLayout>,
    regions: Vec<OwnedMemoryRegion>,
    backing: RegionBacking,
    kind: StorageKind,
    bytes: u64,
}

impl BoundLayout {
    /// Binds `layout` to `regions`. This checks every bound, once.
    pub(crate) fn new(
        layout: Arc<StridedLayout>,
        regions: Vec<OwnedMemoryRegion>,
    ) -> Result<BoundLayout, TransferError> {
        let needed = layout.region_bytes();
        if regions.len() != needed.len() {
            return Err(TransferError::Bind(BindError::RegionCount {
                given: regions.len(),
                needed: needed.len(),
            }));
        }
        for (index, (region, &bytes)) in regions.iter().zip(needed).enumerate() {
            if (region.size() as u64) < bytes {
                return Err(TransferError::Bind(BindError::RegionTooSmall {
                    region: index,
                    have: region.size() as u64,
                    need: bytes,
                }));
            }
            if !(region.addr() as u64).is_multiple_of(layout.alignment()) {
                return Err(TransferError::Bind(BindError::RegionMisaligned {
                    region: index,
                    addr: region.addr() as u64,
                    alignment: layout.alignment(),
                }));
            }
        }
        let kind = one_kind(&regions)?;
        let backing = match kind {
            kind if kind.is_addressable() => RegionBacking::Memory(
                regions
                    .iter()
                    .map(|region| RawRegion {
                        base: std::ptr::with_exposed_provenance_mut(region.addr()),
                        bytes: region.size(),
                    })
                    .collect(),
            ),
            StorageKind::Disk(_) if regions.iter().all(|r| file_of(r.as_ref()).is_some()) => {
                RegionBacking::File
            }
            kind => return Err(TransferError::Bind(BindError::NotReachable { kind })),
        };
        check_apart(&regions, kind)?;
        let bytes = needed.iter().fold(0u64, |sum, b| sum.saturating_add(*b));
        Ok(BoundLayout {
            bytes,
            layout,
            regions,
            backing,
            kind,
        })
    }

    pub(crate) fn layout(&self) -> &Arc<StridedLayout> {
        &self.layout
    }

    pub(crate) fn regions(&self) -> &[OwnedMemoryRegion] {
        &self.regions
    }

    pub(crate) fn kind(&self) -> StorageKind {
        self.kind
    }

    pub(super) fn backing(&self) -> &RegionBacking {
        &self.backing
    }

    /// Its kind as the end of a lane.
    pub(crate) fn end(&self) -> LaneEnd {
        match self.backing {
            RegionBacking::Memory(_) => LaneEnd::Memory,
            RegionBacking::File => LaneEnd::File,
        }
    }

    /// Whether there are at least as many regions as layers.
    pub(super) fn has_region_per_layer(&self) -> bool {
        self.regions.len() as u64 >= self.layout.shape().num_layers()
    }

    /// Bytes of its regions that the layout needs.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Whether every region may be written.
    pub(crate) fn is_writable(&self) -> bool {
        self.regions.iter().all(|region| region.is_writable())
    }

    /// The file that backs region `index`, and the region's offset in it.
    pub(super) fn file(&self, index: u64) -> Result<(&FileMemory, u64), TransferError> {
        usize::try_from(index)
            .ok()
            .and_then(|index| self.regions.get(index))
            .and_then(|region| file_of(region.as_ref()))
            .ok_or(TransferError::Copy(CopyError::OutsidePlan {
                region: index,
            }))
    }

    /// The address of `bytes` bytes at `location`, which must lie inside the region.
    pub(super) fn pointer(&self, location: Location, bytes: u64) -> Result<*mut u8, TransferError> {
        let outside = TransferError::Copy(CopyError::OutsidePlan {
            region: location.region,
        });
        let RegionBacking::Memory(regions) = &self.backing else {
            return Err(outside);
        };
        let region = usize::try_from(location.region)
            .ok()
            .and_then(|index| regions.get(index));
        match region {
            Some(region)
                if location
                    .offset
                    .checked_add(bytes)
                    .is_some_and(|end| end <= region.bytes as u64) =>
            {
                let offset = usize::try_from(location.offset).map_err(|_| outside)?;
                Ok(region.base.wrapping_add(offset))
            }
            _ => Err(outside),
        }
    }
}

/// The kind that all regions share. Regions may lie in several files.
fn one_kind(regions: &[OwnedMemoryRegion]) -> Result<StorageKind, TransferError> {
    let Some(first) = regions.first().map(|region| region.storage_kind()) else {
        return Err(TransferError::Bind(BindError::RegionCount {
            given: 0,
            needed: 1,
        }));
    };
    let same =
        |a: StorageKind, b: StorageKind| std::mem::discriminant(&a) == std::mem::discriminant(&b);
    match regions.iter().find(|r| !same(r.storage_kind(), first)) {
        None => Ok(first),
        Some(other) => Err(TransferError::Bind(BindError::MixedStorage {
            first,
            second: other.storage_kind(),
        })),
    }
}

/// Checks that no two regions share a byte.
fn check_apart(regions: &[OwnedMemoryRegion], kind: StorageKind) -> Result<(), TransferError> {
    let mut sorted: Vec<(AddressSpace, usize, usize, usize)> = regions
        .iter()
        .enumerate()
        .map(|(index, region)| {
            let space = AddressSpace::of(region.as_ref());
            (space, region.addr(), region.size(), index)
        })
        .collect();
    sorted.sort_unstable();
    for pair in sorted.windows(2) {
        if let [(space, addr, size, first), (next_space, next, _, second)] = pair
            && space == next_space
            && addr.checked_add(*size).is_none_or(|end| end > *next)
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
