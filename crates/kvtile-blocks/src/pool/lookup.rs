//! Finding blocks by key: the longest prefix of a chain, single keys, or only the number of hits.

use super::BlockPool;
use super::pinned::PinnedBlocks;
use super::settings::PinClaim;
use super::slot::{KeyWords, NONE, PinAttempt};
use super::visits::VisitBatch;
use crate::{BlockId, BlockKey};
use std::sync::Arc;

/// Keys searched in the index before the first of them is pinned, so that their reads overlap.
const CHUNK: usize = 64;

/// Blocks to reserve room for at a time.
const RESERVE: usize = 256;

/// The result of [`BlockPool::pin`].
#[derive(Debug)]
pub struct PinnedKeys {
    /// The blocks, in the order of the keys.
    pub blocks: PinnedBlocks,
    /// For each block the position of its key.
    pub positions: Vec<usize>,
}

impl BlockPool {
    /// Finds and pins the longest stored prefix of a chain, and queues the visit for the policy.
    ///
    /// It never waits for a policy's lock, and it allocates nothing on a miss.
    pub fn match_prefix(self: &Arc<Self>, keys: &[BlockKey], claim: &PinClaim) -> PinnedBlocks {
        let mut ids = Vec::new();
        for chunk in keys.chunks(CHUNK) {
            let first = self.glance_first(chunk, ids.last().copied());
            if ids.capacity() - ids.len() < chunk.len() && first.is_some() {
                ids.reserve((keys.len() - ids.len()).min(RESERVE));
            }
            if !self.pin_chunk(chunk, first, &mut ids) {
                break;
            }
        }
        self.counters.look_up(keys.len(), ids.len());
        self.visit(&ids, keys.len(), claim);
        PinnedBlocks::new(self, ids, claim)
    }

    /// The block with the first key of the chunk; `before` has the key before it.
    fn glance_first(&self, chunk: &[BlockKey], before: Option<BlockId>) -> Option<u32> {
        let key = KeyWords::new(chunk.first()?);
        let beside = before.and_then(|id| self.slots.beside(id.0, key));
        beside.or_else(|| self.index.glance(&self.slots, key))
    }

    /// Pins the blocks of the chunk's keys up to the first miss. `first` is a guess of the first
    /// one. Returns whether all were found.
    fn pin_chunk(&self, chunk: &[BlockKey], first: Option<u32>, ids: &mut Vec<BlockId>) -> bool {
        let (_, rest) = chunk.split_at(self.pin_neighbours(chunk, first, ids));
        if rest.is_empty() {
            return true;
        }
        let mut places = [NONE; CHUNK];
        self.index.glance_at(&self.slots, rest, &mut places);
        for (key, &place) in rest.iter().zip(&places) {
            let key = KeyWords::new(key);
            let pinned = if place == NONE {
                self.pin_key(key)
            } else {
                self.pin_block(BlockId(place), key)
                    .or_else(|| self.pin_key(key))
            };
            match pinned {
                Some(id) => ids.push(id),
                None => return false,
            }
        }
        true
    }

    /// Pins the blocks of leading keys, as far as their slots are consecutive, from `first` on in
    /// either direction. Returns their number. It saves most searches, its reads are in the order of
    /// the memory, and the processor overlaps them with the compare-and-swap of the block before.
    fn pin_neighbours(
        &self,
        chunk: &[BlockKey],
        first: Option<u32>,
        ids: &mut Vec<BlockId>,
    ) -> usize {
        let second = chunk.get(1).map(KeyWords::new);
        let beside = |first| Some((first, self.slots.beside(first, second?)?));
        let Some((first, second)) = first.and_then(beside) else {
            return 0;
        };
        let step = second.wrapping_sub(first);
        let mut at = first;
        for (known, key) in chunk.iter().enumerate() {
            let key = KeyWords::new(key);
            if !self.slots.has(at, key) || self.pin_block(BlockId(at), key).is_none() {
                return known;
            }
            ids.push(BlockId(at));
            at = at.wrapping_add(step);
        }
        chunk.len()
    }

    /// Finds the block with this key and pins it.
    pub(super) fn pin_key(&self, key: KeyWords) -> Option<BlockId> {
        let pin = |id| self.pin_block(BlockId(id), key);
        self.index.find(&self.slots, key, pin)
    }

    /// Pins this block if it has this key.
    fn pin_block(&self, id: BlockId, key: KeyWords) -> Option<BlockId> {
        match self.slots.of(id).pin(key) {
            PinAttempt::Pinned => Some(id),
            PinAttempt::NotRegistered => None,
            PinAttempt::AnotherKey => {
                self.unpin(&mut [id]);
                None
            }
        }
    }

    /// Queues the hits for the policies of their shares.
    fn visit(&self, ids: &[BlockId], wanted: usize, claim: &PinClaim) {
        if self.shares.len() == 1 {
            return self.visit_share(0, ids, (ids.len(), wanted), claim);
        }
        let share = |id: &BlockId| self.slots.of(*id).share();
        let mut seen = 0;
        for run in ids.chunk_by(|a, b| share(a) == share(b)) {
            seen += run.len();
            let index = run.first().map_or(0, share);
            self.visit_share(index, run, (seen, wanted), claim);
        }
    }

    /// Queues hits for the policy of one share. Including them, `seen` of the `wanted` blocks were
    /// found.
    fn visit_share(
        &self,
        index: usize,
        ids: &[BlockId],
        (seen, wanted): (usize, usize),
        claim: &PinClaim,
    ) {
        if ids.is_empty() {
            return;
        }
        let mut hints = claim.hints;
        hints.partial_tail &= seen == wanted;
        let batch = VisitBatch {
            blocks: ids.len(),
            continues: seen < wanted,
            hints,
            now: claim.now,
        };
        if !self.share(index).visit(ids, batch) {
            self.counters.lose_visit();
        }
    }

    /// The number of blocks that [`match_prefix`](Self::match_prefix) would find now. It pins
    /// nothing and reports nothing to the policy.
    #[must_use]
    pub fn peek(&self, keys: &[BlockKey]) -> usize {
        keys.iter().take_while(|key| self.has(key)).count()
    }

    /// Whether a block with this key is stored now, regardless of its ancestors. It takes no lock
    /// and pins nothing, and the policy does not count it as a use.
    #[must_use]
    pub fn has(&self, key: &BlockKey) -> bool {
        self.registered(KeyWords::new(key)).is_some()
    }

    /// Whether a stored block has this key as its parent, which need not be stored itself. It takes
    /// the lock of the children's table for one search.
    #[must_use]
    pub fn has_child(&self, key: &BlockKey) -> bool {
        let children = self.children.lock();
        children.has_key(self.of_keys(), KeyWords::new(key))
    }

    /// Pins those of the keys that are stored, in any order and with any gaps between them, and
    /// skips the others. It takes no lock (a claim with a deadline takes the ledger's once), and
    /// the policy does not count it as a use. It is for moving blocks, and for holding the
    /// ancestors of a store during its allocation.
    pub fn pin(self: &Arc<Self>, keys: &[BlockKey], claim: &PinClaim) -> PinnedKeys {
        let mut ids = Vec::new();
        let mut positions = Vec::new();
        for (position, key) in keys.iter().enumerate() {
            if let Some(id) = self.pin_key(KeyWords::new(key)) {
                ids.push(id);
                positions.push(position);
            }
        }
        PinnedKeys {
            blocks: PinnedBlocks::new(self, ids, claim),
            positions,
        }
    }
}
