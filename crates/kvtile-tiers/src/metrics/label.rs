//! The label values of metrics, except tiers, which each cache names itself.

use serde::{Deserialize, Serialize};

/// A closed set of label values.
pub(super) trait MetricLabel: Copy + Ord + 'static {
    /// All values.
    const ALL: &'static [Self];

    /// The name in metrics and in JSON.
    fn name(self) -> &'static str;
}

/// Defines an enum whose variants are the values of a label, in snake case in metrics and in JSON.
macro_rules! label {
    ($(#[$about:meta])* $name:ident { $($(#[$doc:meta])* $variant:ident = $text:literal,)* }) => {
        $(#[$about])*
        #[derive(
            Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize,
        )]
        #[serde(rename_all = "snake_case")]
        #[non_exhaustive]
        pub enum $name {
            $($(#[$doc])* $variant,)*
        }

        impl $name {
            /// All values.
            pub const ALL: &'static [$name] = &[$($name::$variant,)*];

            /// The name in metrics and in JSON.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self {
                    $($name::$variant => $text,)*
                }
            }
        }

        impl MetricLabel for $name {
            const ALL: &'static [$name] = $name::ALL;

            fn name(self) -> &'static str {
                $name::name(self)
            }
        }
    };
}

label! {
    /// Why a requested block must be computed.
    MissReason {
        /// No tier has it.
        Absent = "absent",
        /// A tier may have it, but a block before it is missing.
        AfterGap = "after_gap",
        /// Loading it would take longer than computing it.
        SlowerThanComputing = "slower_than_computing",
        /// Its checksum does not match its bytes.
        Checksum = "checksum",
        /// It could not be read.
        ReadFailed = "read_failed",
        /// It was evicted or replaced between lookup and load.
        Evicted = "evicted",
        /// All host memory that it could be read into is in use.
        HostFull = "host_full",
        /// The queue that would load it is full.
        QueueFull = "queue_full",
        /// The load was cancelled.
        Cancelled = "cancelled",
        /// The load, or the rest of it, had not begun by its deadline.
        Deadline = "deadline",
        /// The tier that has it, or may have it, did not answer or complete in time.
        Late = "late",
    }
}

label! {
    /// Why a block left a tier.
    EvictionReason {
        /// Another block needed its slot.
        Capacity = "capacity",
        /// Its tenant exceeds its quota.
        Quota = "quota",
        /// Its time to live has passed.
        Expired = "expired",
        /// The tier was cleared, or its owner removed it.
        Removed = "removed",
        /// Its bytes are damaged, or cannot be read or written.
        Damaged = "damaged",
    }
}

label! {
    /// The queues of a cache.
    Queue {
        /// Loads that a request waits for.
        Load = "load",
        /// Stores of blocks.
        Store = "store",
        /// Prefetches of blocks that may be requested soon.
        Prefetch = "prefetch",
        /// Spills of blocks to tiers.
        Spill = "spill",
    }
}
