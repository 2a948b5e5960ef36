//! Saved caches: blocks in a file, with the metadata that a loader must check before it uses them.
//!
//! ```text
//! 0                preamble, 64 bytes   magic, version, lengths, BLAKE3 of header and checksums
//! 64               header, JSON         identity, shape, word, regions, user's notes
//! …                checksums            CRC-64/NVME of each block's stored bytes, u64 little-endian
//! data (aligned)   region 0, region 1, …  each at a multiple of 4096
//! ```
//!
//! `save` writes a file under a temporary name and renames it after the data is durable, so that
//! the name never refers to an incomplete cache. The next save of that name removes the files that
//! killed processes left behind. Opening a file verifies its header and checksum table as a whole.
//! Loading verifies each block; a block that fails is never served.

mod format;
mod open;
mod partial;
mod stage;
mod write;

pub use format::{SavedHeader, SavedRegion};
pub use open::{BlockCheck, SavedCache};
pub use write::{SaveOptions, save};

#[cfg(test)]
mod hostile_tests;
