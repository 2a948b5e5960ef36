//! The settings of a shared tier.

use std::time::Duration;

use crate::bundle::PartName;

/// The settings of a shared tier.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct SharedTierSettings {
    /// The beginning of the names of all values (default: empty). A store that is opened for a
    /// folder or a bucket needs none.
    pub prefix: String,
    /// The part of the model that the blocks hold (default: `all`).
    pub part: PartName,
    /// Blocks of one bundle, 1 to 64; `None` takes the largest power of two that the store's
    /// [`best_bytes`](crate::store::SharedStoreAbilities::best_bytes) allow (default), and 1 for a model with windows,
    /// chunks or states. With more, such a model finds stops at multiples of that many pages only, because the tail of a
    /// chain is not written. All caches that share a store need the same number to find each other's blocks, which is
    /// in the names.
    pub bundle_blocks: Option<u32>,
    /// Whether blocks are compressed when they are written, without loss (default: no). Caches read compressed
    /// blocks with or without it. It pays where bytes cost more than the processor's time.
    pub compress: bool,
    /// Memory for blocks that wait for their bundle to become whole, or to be written (default 256
    /// MiB).
    pub staging_bytes: u64,
    /// How long a batch of writes waits for room in that memory, from the call on (default 250 ms). After that the
    /// blocks that find none are not written, and counted: the caller's memory does not wait for a slow store.
    pub room_within: Duration,
    /// How long the first blocks of a bundle wait for the others (default 60 s). After that they
    /// are dropped.
    pub stage_within: Duration,
    /// The time limit for reading a bundle, and for asking which bundles there are (default 5 s).
    pub read_within: Duration,
    /// The time limit for writing a bundle (default 30 s).
    pub write_within: Duration,
    /// The time for which values are stored, in stores whose values expire; `None` stores them for
    /// ever (default). A quarter of it after the last renewal, a hit renews a value.
    pub lifetime: Option<Duration>,
    /// How long an absent bundle counts as absent without asking again (default 2 s).
    pub absent_for: Duration,
    /// The most blocks that the tier knows, that is, whose presence it remembers (default 262,144).
    pub known_blocks_max: usize,
    /// The age at which the list of the parts that other ranks wrote is read again, by a tier of
    /// [`SharedParts`](crate::parts::SharedParts) (default 30 s).
    pub list_parts_after: Duration,
    /// How long closing waits for bundles that are being written (default 5 s).
    pub close_within: Duration,
}

impl Default for SharedTierSettings {
    fn default() -> SharedTierSettings {
        SharedTierSettings {
            prefix: String::new(),
            part: PartName::default(),
            bundle_blocks: None,
            compress: false,
            staging_bytes: 256 << 20,
            room_within: Duration::from_millis(250),
            stage_within: Duration::from_secs(60),
            read_within: Duration::from_secs(5),
            write_within: Duration::from_secs(30),
            lifetime: None,
            absent_for: Duration::from_secs(2),
            known_blocks_max: 1 << 18,
            list_parts_after: Duration::from_secs(30),
            close_within: Duration::from_secs(5),
        }
    }
}

impl SharedTierSettings {
    /// The defaults.
    #[must_use]
    pub fn new() -> SharedTierSettings {
        SharedTierSettings::default()
    }

    /// Sets [`prefix`](Self::prefix).
    #[must_use]
    pub fn prefix(mut self, prefix: impl Into<String>) -> SharedTierSettings {
        self.prefix = prefix.into();
        self
    }

    /// Sets [`part`](Self::part).
    #[must_use]
    pub fn part(mut self, part: PartName) -> SharedTierSettings {
        self.part = part;
        self
    }

    /// Sets [`bundle_blocks`](Self::bundle_blocks).
    #[must_use]
    pub fn bundle_blocks(mut self, blocks: impl Into<Option<u32>>) -> SharedTierSettings {
        self.bundle_blocks = blocks.into();
        self
    }

    /// Sets [`compress`](Self::compress).
    #[must_use]
    pub fn compress(mut self, compress: bool) -> SharedTierSettings {
        self.compress = compress;
        self
    }

    /// Sets [`staging_bytes`](Self::staging_bytes).
    #[must_use]
    pub fn staging_bytes(mut self, bytes: u64) -> SharedTierSettings {
        self.staging_bytes = bytes;
        self
    }

    /// Sets [`room_within`](Self::room_within).
    #[must_use]
    pub fn room_within(mut self, time: Duration) -> SharedTierSettings {
        self.room_within = time;
        self
    }

    /// Sets [`stage_within`](Self::stage_within).
    #[must_use]
    pub fn stage_within(mut self, time: Duration) -> SharedTierSettings {
        self.stage_within = time;
        self
    }

    /// Sets [`read_within`](Self::read_within).
    #[must_use]
    pub fn read_within(mut self, time: Duration) -> SharedTierSettings {
        self.read_within = time;
        self
    }

    /// Sets [`write_within`](Self::write_within).
    #[must_use]
    pub fn write_within(mut self, time: Duration) -> SharedTierSettings {
        self.write_within = time;
        self
    }

    /// Sets [`lifetime`](Self::lifetime).
    #[must_use]
    pub fn lifetime(mut self, lifetime: impl Into<Option<Duration>>) -> SharedTierSettings {
        self.lifetime = lifetime.into();
        self
    }

    /// Sets [`absent_for`](Self::absent_for).
    #[must_use]
    pub fn absent_for(mut self, time: Duration) -> SharedTierSettings {
        self.absent_for = time;
        self
    }

    /// Sets [`known_blocks_max`](Self::known_blocks_max).
    #[must_use]
    pub fn known_blocks_max(mut self, blocks: usize) -> SharedTierSettings {
        self.known_blocks_max = blocks;
        self
    }

    /// Sets [`list_parts_after`](Self::list_parts_after).
    #[must_use]
    pub fn list_parts_after(mut self, time: Duration) -> SharedTierSettings {
        self.list_parts_after = time;
        self
    }

    /// Sets [`close_within`](Self::close_within).
    #[must_use]
    pub fn close_within(mut self, time: Duration) -> SharedTierSettings {
        self.close_within = time;
        self
    }
}
