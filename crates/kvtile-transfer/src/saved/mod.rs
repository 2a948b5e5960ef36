//! Saved caches: blocks in a file, with everything that must be known before they may be used.
//!
//! ```text
//! 0                preamble, 64 bytes   magic, version, lengths, BLAKE3 of header and checksums
//! 64               header, JSON         identity, shape, word, regions, user's notes
//! …                checksums            CRC-64/NVME of each block's stored bytes, u64 little-endian
//! data (aligned)   region 0, region 1, …  each at a multiple of 4096
//! ```
//!
//! A file is written under another name and renamed when all of it is on the disk, so that a name
//! never stands for half a cache; what a killed process left behind is removed by the next save
//! of that name. When it is opened, header and checksum table are verified as a
//! whole; a block is verified when it is loaded, and one that fails is never served.

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
