//! A subscriber's view of the stored blocks: a snapshot plus the events after it. Routers keep one;
//! no pool uses it.

use super::{Event, EventKind, EventSnapshot, TierId};
use crate::{BlockKey, GroupId};
use std::collections::{BTreeMap, HashMap};

/// Blocks, each with its parent.
type MirrorBlocks = HashMap<BlockKey, Option<BlockKey>>;

/// The blocks of all tiers of one log, as of the last applied event.
#[derive(Clone, Debug, Default)]
pub struct EventMirror {
    tiers: BTreeMap<(TierId, GroupId), MirrorBlocks>,
    /// The sequence number of the next event to apply.
    next: u64,
    /// The state is exact from this sequence number on.
    exact_from: u64,
}

impl EventMirror {
    /// A mirror of an empty log.
    #[must_use]
    pub fn new() -> EventMirror {
        EventMirror::default()
    }

    /// Starts from a snapshot.
    #[must_use]
    pub fn from_snapshot(snapshot: &EventSnapshot) -> EventMirror {
        let mut mirror = EventMirror {
            next: snapshot.from,
            exact_from: snapshot.until,
            ..EventMirror::default()
        };
        for block in &snapshot.blocks {
            let blocks = mirror.tiers.entry((block.tier, block.group)).or_default();
            blocks.insert(block.key, block.parent);
        }
        mirror
    }

    /// Applies an event; the last event of a key wins. Events that the snapshot already covers are
    /// skipped. If events are missing before this one, it returns false and changes nothing.
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

    /// Whether the state equals that of the log after the applied events. Between a snapshot's
    /// `from` and `until` it does not yet.
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

    /// The blocks of a group in a tier, each with its parent, in no order.
    pub fn blocks(
        &self,
        tier: TierId,
        group: GroupId,
    ) -> impl Iterator<Item = (BlockKey, Option<BlockKey>)> {
        let blocks = self.group(tier, group).into_iter().flatten();
        blocks.map(|(&key, &parent)| (key, parent))
    }

    /// The number of blocks that a tier holds, over all groups.
    #[must_use]
    pub fn len(&self, tier: TierId) -> usize {
        let blocks = self.groups(tier);
        blocks
            .filter_map(|group| self.group(tier, group))
            .map(HashMap::len)
            .sum()
    }

    /// Whether a tier holds no block.
    #[must_use]
    pub fn is_empty(&self, tier: TierId) -> bool {
        self.groups(tier).next().is_none()
    }

    fn group(&self, tier: TierId, group: GroupId) -> Option<&MirrorBlocks> {
        self.tiers.get(&(tier, group))
    }
}
