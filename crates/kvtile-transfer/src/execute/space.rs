//! Which bytes a region is, so that two regions over the same bytes are recognised.

use std::{fs::File, os::fd::AsFd, os::unix::fs::MetadataExt};

use kvtile_memory::{MemoryRegion, StorageKind, file_of};

/// What the address of a region counts in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Space {
    /// The addresses of this process.
    Memory,
    /// The addresses of a device.
    Device(u32),
    /// The offsets of a file, however often it is open.
    File {
        /// Device of the filesystem.
        device: u64,
        /// Number of the file on it.
        inode: u64,
    },
}

impl Space {
    /// The space that `region` lies in.
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
            // An open file that cannot be asked: its descriptor is at least its own.
            None => Space::File {
                device: u64::MAX,
                inode: descriptor,
            },
        }
    }
}
