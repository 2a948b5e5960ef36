//! Memory regions: system, shared, file and borrowed memory, and their ownership.
//!
//! A [`MemoryRegion`] is one contiguous piece of memory or of a file, with an address, a size and a
//! kind. This crate allocates regions, keeps them alive and frees them. It does not know blocks,
//! layers or layouts, and it copies nothing between regions.
//!
//! | kind | made by | survives the process | reachable by other processes |
//! | --- | --- | --- | --- |
//! | [`SystemMemory`] | anonymous mapping, huge pages by default | no | no |
//! | [`SharedMemory`] | sealed memfd, handed over a Unix socket | while a process maps it | yes |
//! | [`SharedReadMemory`] | received shared memory, mapped for reading | while a process maps it | yes |
//! | [`FileMemory`] | a named file, or an unnamed scratch file | yes, unless scratch | by path |
//! | [`BorrowedMemory`] | pointer, size and keep-alive of another owner | up to the owner | up to the owner |
//! | [`RegionView`] | a checked part of any of them | as its parent | as its parent |
//!
//! Every constructor refuses a size of zero and reports failure as a typed [`MemoryError`]. A
//! constructor that fails leaves no mapping, descriptor or file behind.
//!
//! Regions are shared as [`OwnedMemoryRegion`], an `Arc`. Every holder can read the region's
//! address, so no method lends a slice of a region through `&self`. Safe access is either exclusive
//! (`&mut self`) or goes through the kernel (`read_exact_at`, `write_all_at`).
//!
//! ```
//! use kvtile_memory::{MemoryRegion, OwnedMemoryRegion, RegionView, SystemMemory};
//! use std::sync::Arc;
//!
//! let mut memory = SystemMemory::allocate(1 << 20)?;
//! memory.as_mut_slice()[4096] = 7;
//! let region: OwnedMemoryRegion = Arc::new(memory);
//! let view = RegionView::new(Arc::clone(&region), 4096, 8192)?;
//! assert_eq!(view.addr(), region.addr() + 4096);
//! # Ok::<(), kvtile_memory::MemoryError>(())
//! ```

#[cfg(not(target_os = "linux"))]
compile_error!("kvtile-memory needs Linux: it uses memfd seals, madvise and direct I/O");

mod aligned;
mod borrowed;
mod error;
mod file;
pub mod machine;
mod mapping;
mod options;
mod prefault;
mod process;
mod region;
mod shared;
mod system;

pub use aligned::AlignedBuffer;
pub use borrowed::BorrowedMemory;
pub use error::{MemoryError, MemoryLimit};
pub use file::{DirectIo, FileMemory, FileOptions, Preallocation, TransferDivision, file_of};
pub use options::{AllocateOptions, HugePages, Prefault, PrefaultProgress};
pub use process::{ProcessFile, ProcessMark};
pub use region::{
    MemType, MemoryDescriptor, MemoryRegion, NixlDescriptor, OwnedMemoryRegion, RegionView,
    StorageKind,
};
pub use shared::{SharedMemory, SharedReadMemory};
pub use system::SystemMemory;
