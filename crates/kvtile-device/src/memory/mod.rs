//! Memory that devices reach, as regions: of a device, pinned by the driver, registered with it, and imported.
//!
//! A region frees or unregisters its memory with its last holder. Code that enqueues work on it holds it until that
//! work has ended.

mod allocated;
mod imported;
mod pinned;
mod registered;

pub use allocated::DeviceMemory;
pub use imported::{ImportedMemory, IpcMemoryHandle};
pub use pinned::PinnedMemory;
pub use registered::{DevicePiece, RegisterOptions, RegisteredMemory};

use kvtile_memory::MemoryError;

/// Refuses sizes that no region can have.
fn check_size(bytes: usize) -> Result<(), MemoryError> {
    if bytes == 0 {
        return Err(MemoryError::ZeroSize);
    }
    if isize::try_from(bytes).is_err() {
        return Err(MemoryError::TooLarge {
            bytes: bytes as u64,
        });
    }
    Ok(())
}

/// An address of the driver as that of a region; this crate is for machines with addresses of 64 bits.
fn region_address(address: u64) -> usize {
    const { assert!(usize::BITS == 64) };
    usize::try_from(address).unwrap_or(usize::MAX)
}
