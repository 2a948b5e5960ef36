//! How much a transfer has under way at once.

use super::queue::FileWay;

/// Settings of a transfer; nothing outside this folder sets them.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    pub(super) way: FileWay,
    /// Bytes that a round moves at most: enough to merge small pieces into large ones, and small
    /// enough to stay in a shared cache.
    pub(super) round_bytes: u64,
    /// Tiles of a round at most, and so windows.
    pub(super) round_tiles: usize,
    /// Bytes of source windows that a round reads at most: pieces may lie far apart.
    pub(super) round_read_bytes: u64,
    /// Staging memory of all rounds under way, unless one alone needs more.
    pub(super) staging_bytes: usize,
    /// Runs from this length on go between memory and file without staging.
    pub(super) direct_run_bytes: u64,
    /// Runs that continue each other are joined up to this length.
    pub(super) joined_run_bytes: usize,
    /// Source windows closer than this are read as one.
    pub(super) read_gap_bytes: u64,
    /// Bytes of one read or write.
    pub(super) piece_bytes: usize,
    /// Bytes of all reads and writes in flight, unless one alone is longer.
    pub(super) in_flight_bytes: usize,
}

/// A round of a large transfer.
const ROUND_BYTES: u64 = 4 << 20;

impl Limits {
    /// For a transfer of `bytes` bytes: small ones go in smaller rounds, so that their reads,
    /// permutations and writes overlap too.
    pub(super) fn for_transfer(bytes: u64) -> Limits {
        Limits {
            way: FileWay::Best,
            round_bytes: (bytes / 8).next_power_of_two().clamp(1 << 20, ROUND_BYTES),
            round_tiles: 1 << 15,
            round_read_bytes: 16 << 20,
            staging_bytes: 32 << 20,
            direct_run_bytes: 256 << 10,
            joined_run_bytes: 64 << 20,
            read_gap_bytes: 32 << 10,
            piece_bytes: 1 << 20,
            in_flight_bytes: 16 << 20,
        }
    }
}
