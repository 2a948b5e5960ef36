//! Finding blocks by their keys: the longest prefix of a chain, single ones, or just how many.

use super::BlockPool;
use super::pinned::PinnedBlocks;
use super::settings::Claim;
use super::slot::{KeyWords, NONE, Pinning};
use super::visits::VisitBatch;
use crate::{BlockId, BlockKey};
use std::sync::Arc;

/// Keys that are looked up before the first of them is pinned: reads do not wait for one another,
/// but for the compare-and-swap before them.
const CHUNK: usize = 64;

/// Room for so many blocks is made at once.
const RESERVE: usize = 256;

/// Blocks that were found one by one.
#[derive(Debug)]
pub struct Pinned {
    /// The blocks, in the order of the keys.
    pub blocks: PinnedBlocks,
    /// For each of them the position of its key.
    pub positions: Vec<usize>,
}

impl BlockPool {
    /// Finds and pins the longest prefix of a chain that is stored, and tells the policy.
    ///
    /// It takes no exclusive lock and allocates nothing where nothing is found.
    pub fn match_prefix(self: &Arc<Self>, keys: &[BlockKey], claim: &Claim) -> PinnedBlocks {
        let mut ids = Vec::new();
        for chunk in keys.chunks(CHUNK) {
            if ids.capacity() - ids.len() < chunk.len() && self.contains_first(chunk) {
                ids.reserve((keys.len() - ids.len()).min(RESERVE));
            }
            if !self.pin_chunk(chunk, &mut ids) {
                break;
            }
        }
        self.counters.look_up(keys.len(), ids.len());
        self.visit(&ids, keys.len(), claim);
        PinnedBlocks::new(self, ids, claim)
    }

    fn contains_first(&self, chunk: &[BlockKey]) -> bool {
        let key = chunk.first().map(KeyWords::new);
        key.is_some_and(|key| self.index.glance(&self.slots, key).is_some())
    }

    /// Whether all keys of the chunk were found.
    fn pin_chunk(&self, chunk: &[BlockKey], ids: &mut Vec<BlockId>) -> bool {
        let mut places = [NONE; CHUNK];
        self.index.glance_at(&self.slots, chunk, &mut places);
        for (key, &place) in chunk.iter().zip(&places) {
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

    /// Pins the block with this key, wherever it is.
    pub(super) fn pin_key(&self, key: KeyWords) -> Option<BlockId> {
        let pin = |id| self.pin_block(BlockId(id), key);
        self.index.find(&self.slots, key, pin)
    }

    /// Pins this block, if it has this key.
    fn pin_block(&self, id: BlockId, key: KeyWords) -> Option<BlockId> {
        match self.slots.of(id).pin(key) {
            Pinning::Pinned => Some(id),
            Pinning::NotRegistered => None,
            Pinning::AnotherKey => {
                self.unpin(&mut [id]);
                None
            }
        }
    }

    /// Tells each policy what was found of its blocks.
    fn visit(&self, ids: &[BlockId], wanted: usize, claim: &Claim) {
        let share = |id: &BlockId| self.slots.of(*id).share();
        let mut seen = 0;
        for run in ids.chunk_by(|a, b| self.shares.len() == 1 || share(a) == share(b)) {
            seen += run.len();
            let mut hints = claim.hints;
            hints.partial_tail &= seen == wanted;
            let batch = VisitBatch {
                blocks: run.len(),
                continues: seen < wanted,
                hints,
                now: claim.now,
            };
            let index = run.first().map_or(0, share);
            if !self.share(index).visit(run, batch) {
                self.counters.lose_visit();
            }
        }
    }

    /// How many blocks [`match_prefix`](Self::match_prefix) would find now. Nothing is pinned and
    /// nobody is told.
    #[must_use]
    pub fn peek(&self, keys: &[BlockKey]) -> usize {
        keys.iter().take_while(|key| self.has(key)).count()
    }

    /// Whether a block with this key is stored now, whatever is stored before it. It takes no lock and
    /// pins nothing, and the policy does not count it as a use.
    #[must_use]
    pub fn has(&self, key: &BlockKey) -> bool {
        self.registered(KeyWords::new(key)).is_some()
    }

    /// Whether a block that is stored now follows this key, which need not be stored itself. It takes the
    /// lock of the children's table for one search.
    #[must_use]
    pub fn has_child(&self, key: &BlockKey) -> bool {
        let children = self.children.lock();
        children.has_key(self.of_keys(), KeyWords::new(key))
    }

    /// Pins those of the keys that are stored, in any order and with any gaps between them, and leaves out
    /// the others. It takes no lock (a claim with a deadline takes the ledger's once), and the policy does
    /// not count it as a use: it is for moving blocks, and for holding what a store builds on while it
    /// allocates.
    pub fn pin(self: &Arc<Self>, keys: &[BlockKey], claim: &Claim) -> Pinned {
        let mut ids = Vec::new();
        let mut positions = Vec::new();
        for (position, key) in keys.iter().enumerate() {
            if let Some(id) = self.pin_key(KeyWords::new(key)) {
                ids.push(id);
                positions.push(position);
            }
        }
        Pinned {
            blocks: PinnedBlocks::new(self, ids, claim),
            positions,
        }
    }
}
