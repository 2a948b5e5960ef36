//! The blocks that are published, and what an event or a snapshot changes of them.
//!
//! On the wire a block is in a kind of memory, while a cache may have several tiers of one kind. So a block is
//! removed from a kind of memory when its last tier of that kind has lost it.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use kvtile_blocks::{
    BlockKey, GroupId,
    events::{Event, EventKind, StoredBlock, TierId, TierKind},
};

use crate::{chains::parents_first, settings::UnknownTokens};

/// Most tiers of one cache whose blocks are published.
const TIERS_MAX: usize = 64;

/// A change on the wire.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum WireChange {
    /// A tier has a block.
    Stored {
        tier: TierId,
        group: GroupId,
        key: BlockKey,
        parent: Option<BlockKey>,
        tokens: Option<Arc<[u32]>>,
    },
    /// No tier of a kind has the block any more.
    Removed {
        kind: TierKind,
        group: GroupId,
        key: BlockKey,
    },
    /// No tier has any block.
    AllCleared,
}

#[derive(Debug)]
struct PublishedBlock {
    parent: Option<BlockKey>,
    tokens: Option<Arc<[u32]>>,
    /// A bit for each tier that has it.
    tiers: u64,
}

/// The token ids of a block, if they were given.
pub(crate) type TokensOf<'a> = &'a dyn Fn(&BlockKey) -> Option<Arc<[u32]>>;

/// The published blocks.
#[derive(Debug)]
pub(crate) struct PublishedState {
    blocks: HashMap<(GroupId, BlockKey), PublishedBlock>,
    /// The tier of each bit.
    tiers: Vec<TierId>,
    unknown: UnknownTokens,
    left_out: u64,
}

impl PublishedState {
    pub(crate) fn new(unknown: UnknownTokens) -> PublishedState {
        PublishedState {
            blocks: HashMap::new(),
            tiers: Vec::new(),
            unknown,
            left_out: 0,
        }
    }

    /// The number of different blocks.
    pub(crate) fn len(&self) -> usize {
        self.blocks.len()
    }

    /// Stored blocks that were not published, as their token ids were not given.
    pub(crate) fn left_out(&self) -> u64 {
        self.left_out
    }

    /// Applies an event. What is published already changes nothing, so events may come twice.
    pub(crate) fn apply(&mut self, event: &Event, tokens: TokensOf<'_>, to: &mut Vec<WireChange>) {
        let (tier, group) = (event.tier, event.group);
        match event.kind {
            EventKind::Stored { key, parent } => {
                let block = StoredBlock {
                    tier,
                    group,
                    key,
                    parent,
                };
                self.store(&block, tokens, to);
            }
            EventKind::Removed { key } => self.remove(tier, (group, key), to),
            EventKind::Cleared => {
                let before = to.len();
                let keys: Vec<_> = self.blocks.keys().copied().collect();
                for place in keys.into_iter().filter(|(of, _)| *of == group) {
                    self.remove(tier, place, to);
                }
                if self.blocks.is_empty() && to.len() > before {
                    to.truncate(before);
                    to.push(WireChange::AllCleared);
                }
            }
        }
    }

    /// Changes the published blocks to those of a snapshot.
    pub(crate) fn become_equal(
        &mut self,
        blocks: Vec<StoredBlock>,
        tokens: TokensOf<'_>,
        to: &mut Vec<WireChange>,
    ) {
        let there: HashSet<(TierId, GroupId, BlockKey)> = blocks
            .iter()
            .map(|block| (block.tier, block.group, block.key))
            .collect();
        for block in self.list() {
            if !there.contains(&(block.tier, block.group, block.key)) {
                self.remove(block.tier, (block.group, block.key), to);
            }
        }
        for block in parents_first(blocks) {
            self.store(&block, tokens, to);
        }
    }

    /// All blocks as stored, parents first, for subscribers that came late. Token ids that were given
    /// since then are among them.
    pub(crate) fn again(&mut self, tokens: TokensOf<'_>) -> Vec<WireChange> {
        for ((_, key), block) in &mut self.blocks {
            block.tokens = block.tokens.take().or_else(|| tokens(key));
        }
        let blocks = parents_first(self.list());
        let again = blocks.into_iter().map(|block| WireChange::Stored {
            tier: block.tier,
            group: block.group,
            key: block.key,
            parent: block.parent,
            tokens: self
                .blocks
                .get(&(block.group, block.key))
                .and_then(|known| known.tokens.clone()),
        });
        again.collect()
    }

    /// Removes all blocks. The cache is closed.
    pub(crate) fn clear(&mut self) -> WireChange {
        self.blocks.clear();
        WireChange::AllCleared
    }

    fn list(&self) -> Vec<StoredBlock> {
        let mut blocks = Vec::new();
        for (&(group, key), block) in &self.blocks {
            let of_block = self.tiers.iter().enumerate();
            let of_block = of_block.filter(|(bit, _)| block.tiers & (1 << bit) != 0);
            blocks.extend(of_block.map(|(_, &tier)| StoredBlock {
                tier,
                group,
                key,
                parent: block.parent,
            }));
        }
        blocks
    }

    fn store(&mut self, block: &StoredBlock, tokens: TokensOf<'_>, to: &mut Vec<WireChange>) {
        let bit = self.bit(block.tier);
        if bit == 0 {
            return;
        }
        let place = (block.group, block.key);
        if !self.blocks.contains_key(&place) {
            let tokens = tokens(&block.key);
            if tokens.is_none() && self.unknown == UnknownTokens::LeaveOut {
                self.left_out += 1;
                return;
            }
            let parent = block.parent;
            let published = PublishedBlock {
                parent,
                tokens,
                tiers: 0,
            };
            self.blocks.insert(place, published);
        }
        let Some(known) = self.blocks.get_mut(&place) else {
            return;
        };
        if known.tiers & bit != 0 {
            return;
        }
        known.tiers |= bit;
        to.push(WireChange::Stored {
            tier: block.tier,
            group: block.group,
            key: block.key,
            parent: block.parent,
            tokens: known.tokens.clone(),
        });
    }

    fn remove(&mut self, tier: TierId, place: (GroupId, BlockKey), to: &mut Vec<WireChange>) {
        let bit = self.bit(tier);
        let of_kind = self.bits_of(tier.kind());
        let Some(known) = self.blocks.get_mut(&place) else {
            return;
        };
        if known.tiers & bit == 0 {
            return;
        }
        known.tiers &= !bit;
        if known.tiers & of_kind == 0 {
            let (group, key) = place;
            let kind = tier.kind();
            to.push(WireChange::Removed { kind, group, key });
        }
        if known.tiers == 0 {
            self.blocks.remove(&place);
        }
    }

    /// The bit of a tier; 0 for a tier after the first [`TIERS_MAX`].
    fn bit(&mut self, tier: TierId) -> u64 {
        let at = self.tiers.iter().position(|known| *known == tier);
        match at {
            Some(at) => 1 << at,
            None if self.tiers.len() < TIERS_MAX => {
                self.tiers.push(tier);
                1 << (self.tiers.len() - 1)
            }
            None => 0,
        }
    }

    fn bits_of(&self, kind: TierKind) -> u64 {
        let tiers = self.tiers.iter().enumerate();
        let of_kind = tiers.filter(|(_, tier)| tier.kind() == kind);
        of_kind.map(|(bit, _)| 1 << bit).sum()
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, num::NonZeroUsize};

    use kvtile_blocks::events::EventLog;
    use kvtile_random::SplitMix64;

    use super::*;

    const TIERS: [&str; 4] = ["host", "disk", "disk:scratch", "shared"];

    fn key(number: u64) -> BlockKey {
        BlockKey::from_opaque(&number.to_be_bytes())
    }

    /// What a router knows that follows the changes: the blocks of each kind of memory.
    type RouterView = BTreeSet<(TierKind, GroupId, BlockKey)>;

    fn follow(view: &mut RouterView, changes: Vec<WireChange>) {
        for change in changes {
            match change {
                WireChange::Stored {
                    tier, group, key, ..
                } => {
                    view.insert((tier.kind(), group, key));
                }
                WireChange::Removed { kind, group, key } => {
                    assert!(view.remove(&(kind, group, key)), "it was published before");
                }
                WireChange::AllCleared => view.clear(),
            }
        }
    }

    /// A cache with several tiers, and a publisher whose log forgets events.
    #[test]
    fn a_router_knows_the_blocks_of_every_kind_of_memory_through_gaps() {
        for seed in 0..150 {
            let mut random = SplitMix64::new(seed);
            let log = Arc::new(EventLog::new(NonZeroUsize::new(8).unwrap()).unwrap());
            let mut subscriber = log.subscribe();
            let mut truth: BTreeSet<(TierId, GroupId, BlockKey)> = BTreeSet::new();
            let mut state = PublishedState::new(UnknownTokens::Publish);
            let mut view = RouterView::new();
            for _ in 0..200 {
                let tier: TierId = TIERS[usize::try_from(random.below(4)).unwrap()]
                    .parse()
                    .unwrap();
                let group = GroupId(u32::try_from(random.below(2)).unwrap());
                let key = key(random.below(6));
                match random.below(12) {
                    0 => {
                        truth.retain(|one| (one.0, one.1) != (tier, group));
                        log.cleared(tier, group);
                    }
                    1..5 if truth.remove(&(tier, group, key)) => log.removed(tier, group, &[key]),
                    _ if truth.insert((tier, group, key)) => log.stored(tier, group, None, &[key]),
                    _ => {}
                }
                if random.below(6) > 0 {
                    continue;
                }
                let (mut events, mut changes) = (Vec::new(), Vec::new());
                if subscriber.poll(&mut events, 100).is_err() {
                    let snapshot = log.snapshot(|blocks| {
                        let listed = truth.iter().map(|&(tier, group, key)| StoredBlock {
                            tier,
                            group,
                            key,
                            parent: None,
                        });
                        blocks.extend(listed);
                    });
                    subscriber.resynchronise(&snapshot);
                    state.become_equal(snapshot.blocks, &|_| None, &mut changes);
                }
                for event in &events {
                    state.apply(event, &|_| None, &mut changes);
                }
                follow(&mut view, changes);
                let kinds = |one: &(TierId, GroupId, BlockKey)| (one.0.kind(), one.1, one.2);
                assert_eq!(view, truth.iter().map(kinds).collect(), "seed {seed}");
                let mut late = RouterView::new();
                follow(&mut late, state.again(&|_| None));
                assert_eq!(late, view, "seed {seed}");
            }
        }
    }

    #[test]
    fn blocks_without_tokens_can_be_left_out() {
        let known: Arc<[u32]> = Arc::from([1, 2]);
        let tokens = |asked: &BlockKey| (*asked == key(1)).then(|| Arc::clone(&known));
        let mut state = PublishedState::new(UnknownTokens::LeaveOut);
        let mut changes = Vec::new();
        for number in [0, 1] {
            for kind in [
                EventKind::Stored {
                    key: key(number),
                    parent: None,
                },
                EventKind::Removed { key: key(number) },
            ] {
                let event = Event {
                    sequence: 0,
                    tier: TierId::HOST,
                    group: GroupId(0),
                    kind,
                };
                state.apply(&event, &tokens, &mut changes);
            }
        }
        assert_eq!((changes.len(), state.left_out(), state.len()), (2, 1, 0));
        assert!(matches!(&changes[0], WireChange::Stored { tokens: Some(t), .. } if **t == [1, 2]));
    }
}
