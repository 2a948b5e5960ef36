//! The values of labels, but for tiers: which there are, each cache knows by itself.

use serde::{Deserialize, Serialize};

/// A closed set of values of a label.
pub(super) trait Label: Copy + Ord + 'static {
    /// All of them.
    const ALL: &'static [Self];

    /// As it stands in metrics and in JSON.
    fn name(self) -> &'static str;
}

/// An enum whose variants are the values of a label, in snake case everywhere.
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
            /// All of them.
            pub const ALL: &'static [$name] = &[$($name::$variant,)*];

            /// As it stands in metrics and in JSON.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self {
                    $($name::$variant => $text,)*
                }
            }
        }

        impl Label for $name {
            const ALL: &'static [$name] = $name::ALL;

            fn name(self) -> &'static str {
                $name::name(self)
            }
        }
    };
}

label! {
    /// Why a block that was asked for has to be computed.
    MissReason {
        /// No tier has it.
        Absent = "absent",
        /// A tier may have it, but not one of the blocks before it.
        AfterGap = "after_gap",
        /// Loading it would take longer than computing it.
        SlowerThanComputing = "slower_than_computing",
        /// Its checksum does not match its bytes.
        Checksum = "checksum",
        /// It could not be read.
        ReadFailed = "read_failed",
        /// It was evicted or replaced between lookup and load.
        Evicted = "evicted",
        /// All of the memory that it would be read to is in use.
        HostFull = "host_full",
        /// The queue that would load it is full.
        QueueFull = "queue_full",
        /// The load was cancelled.
        Cancelled = "cancelled",
        /// The load was not done by its deadline.
        Deadline = "deadline",
        /// The tier that has it did not answer in time.
        Late = "late",
    }
}

label! {
    /// Why a block left a tier.
    EvictionReason {
        /// Another block needed its place.
        Capacity = "capacity",
        /// Its tenant has more than its share.
        Quota = "quota",
        /// Its time to live is over.
        Expired = "expired",
        /// The tier was cleared, or its owner removed it.
        Removed = "removed",
        /// Its bytes are damaged, or cannot be read or written.
        Damaged = "damaged",
    }
}

label! {
    /// Where work waits.
    Queue {
        /// Blocks that a request waits for.
        Load = "load",
        /// Blocks that are stored.
        Store = "store",
        /// Blocks that may be asked for soon.
        Prefetch = "prefetch",
        /// Blocks on their way to tiers.
        Spill = "spill",
        /// Questions to tiers that answer later.
        Ask = "ask",
    }
}
