//! The region trait, the kinds of regions and their plain description.
//!
//! It knows neither how regions are made nor what they contain.

mod nixl;
mod view;

pub use nixl::{MemType, NixlDescriptor};
pub use view::RegionView;

use serde::{Deserialize, Serialize};
use std::any::Any;
use std::fmt::{self, Debug};
use std::sync::Arc;

/// One contiguous piece of memory or of a file.
///
/// A region gives the address of its bytes; it does not synchronise access to them. Code that turns
/// the address into a reference or copies through it needs that guarantee from elsewhere (a lease,
/// an exclusive owner).
///
/// # Safety
///
/// Unsafe code reads and writes through the address of a region, so an implementation guarantees,
/// from construction until it is dropped:
///
/// - `addr`, `size`, `storage_kind`, `is_writable` and `nixl_descriptor` do not change; `size` is
///   at least 1 and `addr + size` does not pass the end of the address space.
/// - For [`StorageKind::System`] and [`StorageKind::Pinned`], the bytes `addr..addr + size` are
///   mapped, initialised, readable, at most `isize::MAX` in number and never move; they are
///   writable if `is_writable` returns true. The provenance of their pointer is exposed, so that
///   [`std::ptr::with_exposed_provenance_mut`] of the address reaches all of them.
/// - For [`StorageKind::Device`], the bytes `addr..addr + size` are memory of that device that
///   stays allocated as long as the region lives.
/// - For [`StorageKind::Disk`], `addr` is the byte offset in the file at which the region starts,
///   the number is the open file descriptor, and the region is a [`crate::FileMemory`] or a
///   [`RegionView`] of one.
/// - `as_any` returns `self` and no part of it: a view of a view keeps alive what the inner view
///   keeps alive, and nothing else.
///
/// Safe code cannot give these guarantees, so it cannot invent a region at an arbitrary address:
///
/// ```compile_fail,E0200
/// # use kvtile_memory::{MemoryRegion, StorageKind};
/// #[derive(Debug)]
/// struct MadeUp;
/// impl MemoryRegion for MadeUp {
///     fn addr(&self) -> usize { 0xDEAD_BEEF }
///     fn size(&self) -> usize { 1 << 40 }
///     fn storage_kind(&self) -> StorageKind { StorageKind::System }
///     fn as_any(&self) -> &dyn std::any::Any { self }
/// }
/// ```
pub unsafe trait MemoryRegion: Debug + Send + Sync {
    /// Address of the first byte; for [`StorageKind::Disk`] the byte offset in the file.
    fn addr(&self) -> usize;

    /// Size in bytes, never zero.
    fn size(&self) -> usize;

    /// Where the bytes are.
    fn storage_kind(&self) -> StorageKind;

    /// The concrete region, for callers that need more than an address.
    fn as_any(&self) -> &dyn Any;

    /// Whether the bytes may be written; `false` for a file opened read-only, for example.
    fn is_writable(&self) -> bool {
        true
    }

    /// The region's NIXL descriptor; `None` unless it is registered with a NIXL agent.
    fn nixl_descriptor(&self) -> Option<NixlDescriptor> {
        None
    }
}

/// A reference-counted region, freed with its last reference.
pub type OwnedMemoryRegion = Arc<dyn MemoryRegion>;

/// Where the bytes of a region are.
///
/// Serialised as `"System"`, `"Pinned"`, `{"Device": 0}`, `{"Disk": 3}`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[non_exhaustive]
pub enum StorageKind {
    /// Ordinary memory of this process.
    System,
    /// Memory of this process that a device driver has pinned.
    Pinned,
    /// Memory of the device with this ordinal.
    Device(u32),
    /// A file; the number is its file descriptor in the process that describes it.
    Disk(u64),
}

impl fmt::Display for StorageKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            StorageKind::System => f.write_str("memory of this process"),
            StorageKind::Pinned => f.write_str("pinned memory of this process"),
            StorageKind::Device(device) => write!(f, "memory of device {device}"),
            StorageKind::Disk(file) => write!(f, "the file with descriptor {file}"),
        }
    }
}

impl StorageKind {
    /// Whether the CPU of this process can read the bytes at their address.
    #[must_use]
    pub const fn is_addressable(self) -> bool {
        matches!(self, Self::System | Self::Pinned)
    }

    /// The NIXL memory type that regions of this kind have.
    #[must_use]
    pub const fn mem_type(self) -> MemType {
        match self {
            Self::System | Self::Pinned => MemType::Dram,
            Self::Device(_) => MemType::Vram,
            Self::Disk(_) => MemType::File,
        }
    }

    /// The NIXL device id: the device ordinal, the file descriptor, else 0.
    #[must_use]
    pub fn device_id(self) -> u64 {
        match self {
            Self::System | Self::Pinned => 0,
            Self::Device(ordinal) => u64::from(ordinal),
            Self::Disk(descriptor) => descriptor,
        }
    }
}

/// Address and size of a region, as plain data.
///
/// It owns nothing and proves nothing; a deserialised one is an unchecked claim.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct MemoryDescriptor {
    /// Address of the first byte, or byte offset in a file.
    pub addr: usize,
    /// Size in bytes.
    pub size: usize,
}

impl MemoryDescriptor {
    /// Describes `region`.
    #[must_use]
    pub fn of(region: &dyn MemoryRegion) -> Self {
        Self {
            addr: region.addr(),
            size: region.size(),
        }
    }

    /// First address after the last byte; `None` if that passes the end of the address space.
    #[must_use]
    pub const fn end(&self) -> Option<usize> {
        self.addr.checked_add(self.size)
    }

    /// Whether the two have a byte in common. A descriptor that wraps overlaps every non-empty
    /// range that ends above its start.
    #[must_use]
    pub fn overlaps(&self, other: &Self) -> bool {
        let starts_before_end_of = |a: &Self, b: &Self| b.end().is_none_or(|end| a.addr < end);
        self.size > 0
            && other.size > 0
            && starts_before_end_of(self, other)
            && starts_before_end_of(other, self)
    }

    /// Whether every byte of `other` lies in `self`; `false` if either wraps.
    #[must_use]
    pub fn contains(&self, other: &Self) -> bool {
        match (self.end(), other.end()) {
            (Some(end), Some(other_end)) => self.addr <= other.addr && other_end <= end,
            _ => false,
        }
    }
}

/// Refuses sizes that no region can have: zero, and more than `isize::MAX` bytes.
pub(crate) fn check_size(bytes: usize) -> Result<(), crate::MemoryError> {
    if bytes == 0 {
        return Err(crate::MemoryError::ZeroSize);
    }
    if isize::try_from(bytes).is_err() {
        return Err(crate::MemoryError::TooLarge {
            bytes: bytes as u64,
        });
    }
    Ok(())
}
