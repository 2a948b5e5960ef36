//! How a NIXL agent describes a region. Plain data; no NIXL library is involved.

use serde::{Deserialize, Serialize};

/// What a NIXL agent needs to reach a region.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct NixlDescriptor {
    /// Address of the first byte, or byte offset in a file.
    pub addr: u64,
    /// Size in bytes.
    pub size: usize,
    /// The memory type.
    pub mem_type: MemType,
    /// Device ordinal, file descriptor or 0, as [`crate::StorageKind::device_id`].
    pub device_id: u64,
}

/// The memory types of NIXL, serialised by these names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum MemType {
    /// Host memory.
    Dram,
    /// Device memory.
    Vram,
    /// A block device.
    Block,
    /// An object in an object store.
    Object,
    /// A file.
    File,
    /// Not known.
    Unknown,
}
