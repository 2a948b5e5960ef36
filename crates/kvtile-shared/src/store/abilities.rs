//! What a store can do.

use std::{ops::RangeInclusive, time::Duration};

/// Whether values of a store expire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum StoreExpiry {
    /// Never: the lifetime of a write is ignored.
    Never,
    /// Each value after the lifetime that its write stated; [`touch`](super::SharedStore::touch)
    /// renews it.
    PerValue,
}

/// What a store can do; constant after opening.
///
/// A store states what differs from the default:
///
/// ```
/// use kvtile_shared::store::SharedStoreAbilities;
///
/// let abilities = SharedStoreAbilities {
///     is_durable: true,
///     ..SharedStoreAbilities::default()
/// };
/// assert!(!abilities.keeps_first);
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SharedStoreAbilities {
    /// A written value outlives the processes and the machines that use the store (default: false).
    pub is_durable: bool,
    /// The size that the store does not exceed, by evicting values or by refusing writes; `None` if
    /// it has no such limit or does not know it (default).
    pub capacity_bytes: Option<u64>,
    /// A write of a present name keeps the value and reports
    /// [`ValueWritten::Present`](super::ValueWritten::Present). Otherwise it replaces the value
    /// (default).
    pub keeps_first: bool,
    /// [`read_range`](super::SharedStore::read_range) reads no bytes before the range (default: it does).
    pub reads_ranges: bool,
    /// Whether values expire (default: never).
    pub expires: StoreExpiry,
    /// Sizes at which the store is efficient. The tier makes its values at most as large as the end
    /// (default: 64 KiB to 8 MiB).
    pub best_bytes: RangeInclusive<u64>,
    /// The most names in one call of `has`, `remove` or `touch`, at least 1 (default: 256).
    pub batch_max: usize,
    /// The most calls at a time, at least 1 (default: 16). The tier makes fewer while the latency is
    /// high.
    pub in_flight_max: usize,
    /// The time of a read of few bytes, until the tier has measured it (default: 5 ms).
    pub latency: Duration,
    /// Bytes per second of one read, until the tier has measured it, at least 1 (default: 100 MB/s).
    pub bytes_per_second: u64,
}

impl Default for SharedStoreAbilities {
    fn default() -> SharedStoreAbilities {
        SharedStoreAbilities {
            is_durable: false,
            capacity_bytes: None,
            keeps_first: false,
            reads_ranges: false,
            expires: StoreExpiry::Never,
            best_bytes: 64 << 10..=8 << 20,
            batch_max: 256,
            in_flight_max: 16,
            latency: Duration::from_millis(5),
            bytes_per_second: 100_000_000,
        }
    }
}
