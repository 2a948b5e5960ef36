//! What a subscriber knows to be stored: a snapshot and the events after it. It is what a router
//! keeps; no pool uses it.

use super::{Event, EventKind, Snapshot, TierId};
use crate::{BlockKey, GroupId};
use std::collections::{BTreeMap, HashMap};

/// Blocks, each with the one before it.
type Blocks = HashMap<BlockKey, Option<BlockKey>>;

/// The blocks of all tiers of one log, as far as the events that were applied.
#[derive(Clone, Debug, Default)]
pub struct Mirror {
    tiers: BTreeMap<(TierId, GroupId), Blocks>,
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
            let blocks = mirror.tiers.entry((block.tier, block.group)).or_default();
            blocks.insert(block.key, block.parent);
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
        let blocks = self.tiers.entry((event.tier, event.group)).or_default();
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
    pub fn contains(&self, tier: TierId, group: GroupId, key: &BlockKey) -> bool {
        self.group(tier, group)
            .is_some_and(|blocks| blocks.contains_key(key))
    }

    /// The groups that a tier holds blocks of.
    pub fn groups(&self, tier: TierId) -> impl Iterator<Item = GroupId> {
        let of_tier = (tier, GroupId(0))..=(tier, GroupId(u32::MAX));
        let some = self.tiers.range(of_tier);
        let some = some.filter(|(_, blocks)| !blocks.is_empty());
        some.map(|(&(_, group), _)| group)
    }

    /// The blocks of a group in a tier, each with the one before it, in no order.
    pub fn blocks(
        &self,
        tier: TierId,
        group: GroupId,
    ) -> impl Iterator<Item = (BlockKey, Option<BlockKey>)> {
        let blocks = self.group(tier, group).into_iter().flatten();
        blocks.map(|(&key, &parent)| (key, parent))
    }

    /// How many blocks a tier holds, of all groups.
    #[must_use]
    pub fn len(&self, tier: TierId) -> usize {
        let blocks = self.groups(tier);
        blocks
            .filter_map(|group| self.group(tier, group))
            .map(HashMap::len)
            .sum()
    }

    /// Whether a tier holds nothing.
    #[must_use]
    pub fn is_empty(&self, tier: TierId) -> bool {
        self.groups(tier).next().is_none()
    }

    fn group(&self, tier: TierId, group: GroupId) -> Option<&Blocks> {
        self.tiers.get(&(tier, group))
    }
}
