//! What a subscriber knows to be stored: a snapshot and the events after it. It is what a router
//! keeps; no pool uses it.

use super::{Event, EventKind, Snapshot, Tier};
use crate::BlockKey;
use std::collections::HashMap;

/// The blocks of all tiers of one log, as far as the events that were applied.
#[derive(Clone, Debug, Default)]
pub struct Mirror {
    tiers: [HashMap<BlockKey, Option<BlockKey>>; Tier::ALL.len()],
    /// The next event to apply.
    next: u64,
    /// From here on the state is exact.
    exact_from: u64,
}

impl Mirror {
    /// Of a log that nothing was appended to yet.
    #[must_use]
    pub fn new() -> Mirror {
        Mirror::default()
    }

    /// Starts from a snapshot. All that was known before is forgotten.
    #[must_use]
    pub fn from_snapshot(snapshot: &Snapshot) -> Mirror {
        let mut mirror = Mirror {
            next: snapshot.from,
            exact_from: snapshot.until,
            ..Mirror::default()
        };
        for block in &snapshot.blocks {
            mirror.tier_mut(block.tier).insert(block.key, block.parent);
        }
        mirror
    }

    /// Applies an event, the last of a key winning. Events that are in the snapshot already are
    /// passed over. Returns false, and does nothing, where events are missing before this one.
    #[must_use = "where events are missing, the state is wrong until a snapshot is taken"]
    pub fn apply(&mut self, event: &Event) -> bool {
        if event.sequence > self.next {
            return false;
        }
        if event.sequence < self.next {
            return true;
        }
        self.next += 1;
        let blocks = self.tier_mut(event.tier);
        match event.kind {
            EventKind::Stored { key, parent } => {
                blocks.insert(key, parent);
            }
            EventKind::Removed { key } => {
                blocks.remove(&key);
            }
            EventKind::Cleared => blocks.clear(),
        }
        true
    }

    /// Whether the state is that of the log after the events that were applied. Between a
    /// snapshot's `from` and `until` it is not yet.
    #[must_use]
    pub fn is_exact(&self) -> bool {
        self.next >= self.exact_from
    }

    /// Whether a tier holds a block.
    #[must_use]
    pub fn contains(&self, tier: Tier, key: &BlockKey) -> bool {
        self.tier(tier).contains_key(key)
    }

    /// The blocks of a tier, each with the one before it, in no order.
    pub fn blocks(&self, tier: Tier) -> impl Iterator<Item = (BlockKey, Option<BlockKey>)> {
        self.tier(tier).iter().map(|(&key, &parent)| (key, parent))
    }

    /// How many blocks a tier holds.
    #[must_use]
    pub fn len(&self, tier: Tier) -> usize {
        self.tier(tier).len()
    }

    /// Whether a tier holds nothing.
    #[must_use]
    pub fn is_empty(&self, tier: Tier) -> bool {
        self.tier(tier).is_empty()
    }

    fn tier(&self, tier: Tier) -> &HashMap<BlockKey, Option<BlockKey>> {
        let [device, host, disk, object, remote] = &self.tiers;
        match tier {
            Tier::Device => device,
            Tier::Host => host,
            Tier::Disk => disk,
            Tier::Object => object,
            Tier::Remote => remote,
        }
    }

    fn tier_mut(&mut self, tier: Tier) -> &mut HashMap<BlockKey, Option<BlockKey>> {
        let [device, host, disk, object, remote] = &mut self.tiers;
        match tier {
            Tier::Device => device,
            Tier::Host => host,
            Tier::Disk => disk,
            Tier::Object => object,
            Tier::Remote => remote,
        }
    }
}
