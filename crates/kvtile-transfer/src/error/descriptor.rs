//! A descriptor that cannot be made or read.

use kvtile_layout::LayoutError;
use kvtile_memory::{MemType, StorageKind};
use thiserror::Error;

/// A descriptor that cannot be made or read.
#[derive(Clone, Debug, Error)]
#[non_exhaustive]
pub enum DescriptorError {
    /// No layout config describes the layout. The layout is usable, but has no config, no
    /// traditional details and no [`Layout`](crate::Layout) view.
    #[error("no layout config describes this layout: {constraint}")]
    NoLayoutConfig {
        /// The constraint of a config that the layout does not meet.
        constraint: Box<LayoutError>,
    },
    /// The text is not the JSON of a descriptor.
    #[error("not a layout descriptor: {problem}")]
    DescriptorSyntax {
        /// The parser's message.
        problem: String,
    },
    /// The descriptor has an unsupported version.
    #[error("descriptor version {version} is not supported; versions 1 to {supported} are")]
    DescriptorVersion {
        /// The version found.
        version: u32,
        /// The newest supported version; all versions from 1 on are supported.
        supported: u32,
    },
    /// The descriptor's text exceeds the length limit.
    #[error("a descriptor of {bytes} bytes; at most {max} are read")]
    DescriptorTooLong {
        /// Its length in bytes.
        bytes: usize,
        /// The limit.
        max: usize,
    },
    /// A memory descriptor is empty or wraps around the address space.
    #[error("memory descriptor {index}: {size} bytes at {addr:#x} are not a valid address range")]
    DescriptorRange {
        /// Index of the memory descriptor.
        index: usize,
        /// Its address.
        addr: u64,
        /// Its size in bytes.
        size: u64,
    },
    /// The location contradicts the NIXL memory type.
    #[error("location {location} contradicts NIXL memory type {mem_type:?}, device {device_id}")]
    DescriptorLocation {
        /// The location.
        location: StorageKind,
        /// The memory type.
        mem_type: MemType,
        /// The device id.
        device_id: u64,
    },
}
