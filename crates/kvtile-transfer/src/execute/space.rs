//! Address spaces of regions. They reveal whether two regions have the same bytes.

use std::{fs::File, os::fd::AsFd, os::unix::fs::MetadataExt};

use kvtile_memory::{MemoryRegion, StorageKind, file_of};

/// The address space in which a region's address counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum AddressSpace {
    /// The addresses of this process.
    Memory,
    /// The addresses of a device.
    Device(u32),
    /// The offsets of a file. Several open descriptors of one file have the same space.
    File {
        /// Device of the filesystem.
        device: u64,
        /// Its inode number.
        inode: u64,
    },
}

impl AddressSpace {
    /// The address space of `region`.
    pub(crate) fn of(region: &dyn MemoryRegion) -> AddressSpace {
        let descriptor = match region.storage_kind() {
            StorageKind::Disk(descriptor) => descriptor,
            StorageKind::Device(ordinal) => return AddressSpace::Device(ordinal),
            _ => return AddressSpace::Memory,
        };
        let file = file_of(region).and_then(|(file, _)| {
            let again = File::from(file.as_fd().try_clone_to_owned().ok()?);
            again.metadata().ok()
        });
        match file {
            Some(metadata) => AddressSpace::File {
                device: metadata.dev(),
                inode: metadata.ino(),
            },
            // The file's metadata is unavailable: its descriptor distinguishes it.
            None => AddressSpace::File {
                device: u64::MAX,
                inode: descriptor,
            },
        }
    }
}
