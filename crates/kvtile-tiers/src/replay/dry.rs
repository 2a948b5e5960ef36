//! A cache without bytes: a policy, and the books of what is stored.

use kvtile_blocks::{
    BlockId, BlockKey, Tick,
    policy::{EvictionPolicy, Hints, Insertion, Offer, PolicySettings, Visit},
};

use super::{run::ReplayTarget, trace::Request};
use crate::TierError;

/// A cache without bytes.
///
/// Policies that know chains get them from the first block on; one that gives up the end of the
/// chain that is being stored does not want the rest of it. The others get the last block of a request
/// first: then the head of a chain is the last to go, which is how one uses them best.
pub struct DryCache {
    policy: Box<dyn EvictionPolicy>,
    /// Where each block of the trace is stored.
    slots: Vec<Option<BlockId>>,
    /// Which block of the trace each slot holds.
    holds: Vec<u32>,
    free: Vec<BlockId>,
    found: Vec<BlockId>,
}

impl DryCache {
    /// An empty cache of `capacity` blocks, for traces of `distinct` blocks.
    #[must_use]
    pub fn new(settings: &PolicySettings, capacity: u32, distinct: usize) -> DryCache {
        DryCache {
            policy: settings.build(capacity),
            slots: vec![None; distinct],
            holds: vec![0; capacity as usize],
            free: (0..capacity).rev().map(BlockId).collect(),
            found: Vec::new(),
        }
    }

    /// The policy's name.
    #[must_use]
    pub fn policy(&self) -> &'static str {
        self.policy.name()
    }

    fn slot(&self, block: u32) -> Option<BlockId> {
        self.slots.get(block as usize).copied().flatten()
    }

    /// From the first block on.
    fn store_forward(&mut self, request: &Request<'_>, hints: Hints) {
        let now = Tick(request.timestamp_ms);
        let mut found = std::mem::take(&mut self.found);
        found.clear();
        found.extend(request.blocks.iter().map_while(|&block| self.slot(block)));
        self.policy.visited(&Visit {
            blocks: &found,
            continues: found.len() < request.blocks.len(),
            hints,
            now,
        });
        let mut parent = found.last().copied();
        let missing = request.blocks.get(found.len()..).unwrap_or_default();
        for (at, &block) in missing.iter().enumerate() {
            let Some(slot) = self.room(now) else {
                break;
            };
            // The policy gave up the very block behind which this one belongs: the chain ends there.
            if parent == Some(slot) {
                self.free.push(slot);
                break;
            }
            let last = at + 1 == missing.len();
            let mut hints = hints;
            hints.partial_tail &= last;
            self.store(block, slot, parent, hints, now);
            parent = Some(slot);
        }
        self.found = found;
    }

    /// From the last block on.
    fn store_backward(&mut self, request: &Request<'_>, hints: Hints) {
        let now = Tick(request.timestamp_ms);
        for &block in request.blocks.iter().rev() {
            if let Some(slot) = self.slot(block) {
                self.policy.visited(&Visit {
                    blocks: &[slot],
                    continues: false,
                    hints,
                    now,
                });
            } else if let Some(slot) = self.room(now) {
                self.store(block, slot, None, hints, now);
            }
        }
    }

    fn store(
        &mut self,
        block: u32,
        slot: BlockId,
        parent: Option<BlockId>,
        hints: Hints,
        now: Tick,
    ) {
        if let Some(place) = self.slots.get_mut(block as usize) {
            *place = Some(slot);
        }
        if let Some(holds) = self.holds.get_mut(slot.index()) {
            *holds = block;
        }
        self.policy.inserted(&Insertion {
            parent,
            blocks: &[slot],
            keys: &[key(block)],
            hints,
            now,
        });
    }

    /// A free slot.
    fn room(&mut self, now: Tick) -> Option<BlockId> {
        if let Some(slot) = self.free.pop() {
            return Some(slot);
        }
        let DryCache {
            policy,
            slots,
            holds,
            ..
        } = self;
        let mut freed = None;
        policy.evict(1, now, &mut |slot| {
            let block = holds.get(slot.index()).copied().unwrap_or_default();
            if let Some(place) = slots.get_mut(block as usize) {
                *place = None;
            }
            freed = Some(slot);
            Offer::Taken(key(block))
        });
        freed
    }
}

impl ReplayTarget for DryCache {
    fn request(&mut self, request: &Request<'_>) -> Result<usize, TierError> {
        let stored = |block: &&u32| self.slot(**block).is_some();
        let hits = request.blocks.iter().take_while(stored).count();
        let mut hints = Hints::default();
        hints.output_tokens = request.output_tokens;
        hints.partial_tail = request.partial_tail;
        if self.policy.keeps_prefixes() {
            self.store_forward(request, hints);
        } else {
            self.store_backward(request, hints);
        }
        if let Some(lesson) = self.policy.lesson() {
            self.policy.learn(lesson.study());
        }
        Ok(hits)
    }
}

fn key(block: u32) -> BlockKey {
    BlockKey::from_bytes(u128::from(block).to_le_bytes())
}
