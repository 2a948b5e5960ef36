//! Address spaces of regions. They reveal whether two regions have the same bytes.

use std::{fs::File, os::fd::AsFd, os::unix::fs::MetadataExt};

use kvtile_memory::{MemoryRegion, StorageKind, file_of};

/// The address space in which a region's address counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Space {
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

impl Space {
    /// The address space of `region`.
    pub(crate) fn of(region: &dyn MemoryRegion) -> Space {
        let descriptor = match region.storage_kind() {
            StorageKind::Disk(descriptor) => descriptor,
            StorageKind::Device(ordinal) => return Space::Device(ordinal),
            _ => return Space::Memory,
        };
        let file = file_of(region).and_then(|(file, _)| {
            let again = File::from(file.as_fd().try_clone_to_owned().ok()?);
            again.metadata().ok()
        });
        match file {
            Some(metadata) => Space::File {
                device: metadata.dev(),
                inode: metadata.ino(),
            },
            // The file's metadata is unavailable: its descriptor distinguishes it.
            None => Space::File {
                device: u64::MAX,
                inode: descriptor,
            },
        }
    }
}
