//! The counters of a shared tier.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::bundle::{BundleFault, HeaderFault};

macro_rules! counters {
    ($($(#[doc = $doc:literal])+ $name:ident,)*) => {
        /// What a shared tier has done since it was opened. Every counter counts bundles unless its
        /// name contains bytes or blocks.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        #[non_exhaustive]
        pub struct SharedTierCounters {
            $($(#[doc = $doc])+ pub $name: u64,)*
        }

        impl SharedTierCounters {
            /// The counters with their names.
            #[must_use]
            pub fn fields(&self) -> Vec<(&'static str, u64)> {
                vec![$((stringify!($name), self.$name),)*]
            }

            /// The names of the counters, each with what it counts.
            pub const DESCRIBED: &[(&str, &str)] = &[
                $((stringify!($name), concat!($($doc),+)),)*
            ];
        }

        #[derive(Debug, Default)]
        pub(crate) struct TierCounts {
            $(pub(crate) $name: AtomicU64,)*
        }

        impl TierCounts {
            pub(crate) fn read(&self) -> SharedTierCounters {
                SharedTierCounters {
                    $($name: self.$name.load(Ordering::Relaxed),)*
                }
            }
        }
    };
}

counters! {
    /// Bundles that were queried at the store.
    asked,
    /// Queried bundles that the store has.
    asked_present,
    /// Bundles that were read and verified.
    read,
    /// Required blocks of the bundles that were read.
    read_blocks,
    /// Bytes read back from the store, also those that were of no use.
    read_bytes,
    /// Blocks that were read from staging memory, before their bundle was written.
    read_staged_blocks,
    /// Bundles that were not there when they were read.
    absent,
    /// Bundles with a flipped or torn byte, in the header or in a block.
    damaged,
    /// Values of another identity, layout, part, size or version, or no bundles at all.
    other_identity,
    /// Values that end too early, or too late.
    short,
    /// Reads of bundles that did not end by their deadline.
    late,
    /// Reads of bundles that the store failed.
    read_failed,
    /// Reads and queries of bundles that were refused while the breaker was open.
    breaker_open,
    /// Bundles that were written.
    written,
    /// Bytes of the bundles that were written.
    written_bytes,
    /// Bundles that were not written, because the store had them already.
    present,
    /// Bundles that were not written, because the store failed, refused them or was late.
    write_failed,
    /// Blocks that were dropped because their bundle did not become whole in time, or for lack of
    /// staging memory.
    incomplete_blocks,
    /// Blocks that found no room in staging memory.
    no_room_blocks,
    /// Damaged values that were removed from the store.
    removed,
    /// Values whose lifetime was renewed.
    renewed,
}

/// Adds to a counter.
pub(crate) fn count(counter: &AtomicU64, by: u64) {
    counter.fetch_add(by, Ordering::Relaxed);
}

impl TierCounts {
    /// Counts a value that is not what its name promises.
    pub(crate) fn fault(&self, fault: BundleFault) {
        let counter = match fault {
            BundleFault::Short | BundleFault::Long | BundleFault::Header(HeaderFault::Short) => {
                &self.short
            }
            BundleFault::Header(HeaderFault::Seal)
            | BundleFault::Checksum
            | BundleFault::Packing
            | BundleFault::OtherBlock
            | BundleFault::OtherBundle => &self.damaged,
            BundleFault::Header(_) => &self.other_identity,
        };
        count(counter, 1);
    }
}
