//! Limits on the work in progress of one transfer.

use super::queue::FileWay;

/// The settings of a transfer. Code outside this folder does not set them.
#[derive(Clone, Copy, Debug)]
pub(super) struct FileLimits {
    pub(super) way: FileWay,
    /// Maximum bytes of a round: enough to merge small pieces into large ones, and few enough to
    /// stay in a shared cache.
    pub(super) round_bytes: u64,
    /// Maximum number of tiles of a round, and so of its windows.
    pub(super) round_tiles: usize,
    /// Maximum bytes of source windows that a round reads: pieces may lie far apart.
    pub(super) round_read_bytes: u64,
    /// Maximum staging memory of all rounds in progress, unless one alone needs more.
    pub(super) staging_bytes: usize,
    /// Minimum length of runs that go between memory and file without staging.
    pub(super) direct_run_bytes: u64,
    /// Maximum length to which adjacent runs are merged.
    pub(super) joined_run_bytes: usize,
    /// Source windows with a smaller gap are read as one.
    pub(super) read_gap_bytes: u64,
    /// Maximum bytes of one read or write.
    pub(super) piece_bytes: usize,
    /// Maximum bytes of all reads and writes in flight, unless one alone is longer.
    pub(super) in_flight_bytes: usize,
}

/// Maximum bytes of a round of a large transfer.
const ROUND_BYTES: u64 = 4 << 20;

impl FileLimits {
    /// Limits for a transfer of `bytes` bytes. Small transfers use smaller rounds, so that their
    /// reads, permutations and writes overlap too.
    pub(super) fn for_transfer(bytes: u64) -> FileLimits {
        FileLimits {
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
