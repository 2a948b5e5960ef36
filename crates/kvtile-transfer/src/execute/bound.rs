//! A layout bound to its regions. Only this module adds offsets to base addresses.

use std::sync::{Arc, OnceLock};

use kvtile_device::Device;
use kvtile_kernels::MoveRegion;
use kvtile_layout::{Location, StridedLayout};
use kvtile_memory::{FileMemory, OwnedMemoryRegion, StorageKind, file_of};

use super::{
    device::{DeviceEngine, ReachedMemory},
    lane::LaneEnd,
    space::AddressSpace,
};
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

/// One region of memory of a device, at an address that only the driver uses.
#[derive(Clone, Copy, Debug)]
pub(super) struct DeviceRegion {
    pub(super) address: u64,
    pub(super) bytes: usize,
}

/// The kind of storage of the bytes.
#[derive(Debug)]
pub(super) enum RegionBacking {
    /// Memory that this process can address.
    Memory(Vec<RawRegion>),
    /// Memory of a device, and what copies from and to it.
    Device(Arc<DeviceEngine>, Vec<DeviceRegion>),
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
    /// Where devices reach memory of this process, from the first transfer with a device on.
    reached: OnceLock<ReachedMemory>,
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
            StorageKind::Device(_) => on_device(&regions)?,
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
            reached: OnceLock::new(),
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

    /// The device that has its memory, if it is memory of a device.
    pub(crate) fn device(&self) -> Option<&Device> {
        match &self.backing {
            RegionBacking::Device(engine, _) => Some(engine.device()),
            RegionBacking::Memory(_) | RegionBacking::File => None,
        }
    }

    pub(super) fn backing(&self) -> &RegionBacking {
        &self.backing
    }

    /// Its kind as the end of a lane.
    pub(crate) fn end(&self) -> LaneEnd {
        match self.backing {
            RegionBacking::Memory(_) => LaneEnd::Memory,
            RegionBacking::Device(..) => LaneEnd::Device,
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
        let RegionBacking::Memory(regions) = &self.backing else {
            let kind = self.kind;
            return Err(TransferError::Bind(BindError::NotReachable { kind }));
        };
        let (region, offset) = inside(regions, |region| region.bytes, location, bytes)?;
        Ok(region.base.wrapping_add(offset))
    }

    /// The address by which its device reaches `bytes` bytes at `location`, which must lie inside the region.
    pub(super) fn address(&self, location: Location, bytes: u64) -> Result<u64, TransferError> {
        let RegionBacking::Device(_, regions) = &self.backing else {
            let kind = self.kind;
            return Err(TransferError::Bind(BindError::NotReachable { kind }));
        };
        let (region, offset) = inside(regions, |region| region.bytes, location, bytes)?;
        Ok(region.address.wrapping_add(offset as u64))
    }

    /// Adds the addresses by which `device` reaches `bytes` bytes at `location`, which must lie inside the region, to
    /// `parts`: address and bytes of each part, in order.
    pub(super) fn device_parts(
        &self,
        device: &Device,
        location: Location,
        bytes: u64,
        parts: &mut Vec<(u64, u64)>,
    ) -> Result<(), TransferError> {
        if let RegionBacking::Device(..) = &self.backing {
            parts.push((self.address(location, bytes)?, bytes));
            return Ok(());
        }
        self.pointer(location, bytes)?;
        let place = (location.region, location.offset);
        self.reached(device)?.add_parts(place, bytes, parts);
        Ok(())
    }

    /// The regions as kernels of `device` reach them; `None` where a region is not at consecutive addresses. Kernels are
    /// lowered for these regions, and a plan that leaves one is refused there.
    pub(super) fn move_regions(
        &self,
        device: &Device,
    ) -> Result<Option<Vec<MoveRegion>>, TransferError> {
        if let RegionBacking::Device(_, regions) = &self.backing {
            let regions = regions.iter().map(|region| MoveRegion {
                address: region.address,
                bytes: region.bytes as u64,
            });
            return Ok(Some(regions.collect()));
        }
        Ok(self.reached(device)?.as_regions())
    }

    /// Where `device` reaches memory of this process.
    pub(super) fn reached(&self, device: &Device) -> Result<&ReachedMemory, TransferError> {
        if let Some(reached) = self.reached.get() {
            return Ok(reached);
        }
        let reached = ReachedMemory::of(device, self.kind, &self.regions)?;
        Ok(self.reached.get_or_init(|| reached))
    }
}

/// The region of `location` and the offset in it, where `bytes` bytes from there on lie inside the region. This is the
/// only check of a place in memory.
fn inside<R>(
    regions: &[R],
    size: impl Fn(&R) -> usize,
    location: Location,
    bytes: u64,
) -> Result<(&R, usize), TransferError> {
    let region = usize::try_from(location.region)
        .ok()
        .and_then(|index| regions.get(index));
    let end = location.offset.checked_add(bytes);
    let found = region.filter(|region| end.is_some_and(|end| end <= size(region) as u64));
    found
        .zip(usize::try_from(location.offset).ok())
        .ok_or(TransferError::Copy(CopyError::OutsidePlan {
            region: location.region,
        }))
}

/// Regions of one device as a backing.
fn on_device(regions: &[OwnedMemoryRegion]) -> Result<RegionBacking, TransferError> {
    let mut found = Vec::with_capacity(regions.len());
    let mut engine = None;
    for region in regions {
        let kind = region.storage_kind();
        let Some(device) = Device::of_region(region.as_ref()) else {
            return Err(TransferError::Bind(BindError::NotReachable { kind }));
        };
        // Memory of a device has one part.
        let parts = device.ranges_of(region.as_ref(), 0..region.size())?;
        let [(address, bytes)] = parts.as_slice() else {
            return Err(TransferError::Bind(BindError::NotReachable { kind }));
        };
        found.push(DeviceRegion {
            address: *address,
            bytes: *bytes,
        });
        if engine.is_none() {
            engine = Some(DeviceEngine::of(device));
        }
    }
    match engine {
        Some(engine) => Ok(RegionBacking::Device(engine, found)),
        None => Err(TransferError::Bind(BindError::RegionCount {
            given: 0,
            needed: 1,
        })),
    }
}

/// The kind that all regions share.
fn one_kind(regions: &[OwnedMemoryRegion]) -> Result<StorageKind, TransferError> {
    let Some(first) = regions.first().map(|region| region.storage_kind()) else {
        return Err(TransferError::Bind(BindError::RegionCount {
            given: 0,
            needed: 1,
        }));
    };
    // Regions may lie in several files, but not on several devices.
    let same = |a: StorageKind, b: StorageKind| match (a, b) {
        (StorageKind::Device(one), StorageKind::Device(other)) => one == other,
        _ => std::mem::discriminant(&a) == std::mem::discriminant(&b),
    };
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
