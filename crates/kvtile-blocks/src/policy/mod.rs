//! Eviction policies: which block of a pool has to go.
//!
//! A policy knows the blocks that are stored by their ids, how they follow each other, and when
//! they were used. It does not know bytes, pins, threads or other tiers: the pool calls it under
//! one lock, tells it what happened in the order in which it happened, and may refuse what it
//! offers.
//!
//! | module | what it is |
//! | --- | --- |
//! | `gittins` | the default: the leaf whose best expected hits per time is lowest, learned |
//! | `lru`, `s3_fifo`, `adaptive` | what others use, to compare with |
//! | `settings` | which one, as plain data |
//! | `column`, `links`, `ghosts` | arrays by block, lists through them, and who has left |

mod adaptive;
mod column;
mod ghosts;
mod gittins;
mod links;
mod lru;
mod s3_fifo;
mod settings;
#[cfg(test)]
mod tests;

pub use adaptive::AdaptiveReplacement;
pub use gittins::{Gittins, Learned, Lesson};
pub use lru::Lru;
pub use s3_fifo::S3Fifo;
pub use settings::{PolicyKind, PolicySettings};

use crate::{BlockId, BlockKey, Tick};

/// What the caller of a request says about its blocks. Hints are soft: they weigh in and decay,
/// and never keep a block for ever.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Hints {
    /// How much longer than others the blocks should be kept: 0 is usual, each step doubles what a
    /// block is worth, negative ones halve it. The weight halves with every octave of age.
    pub priority: i8,
    /// From this moment on the blocks are worth nothing.
    pub expires: Option<Tick>,
    /// Tokens that were generated for the request, 0 while that is unknown.
    pub output_tokens: u32,
    /// Whether the last block of the list is not full (a tail that few requests share).
    pub partial_tail: bool,
}

/// Blocks that a request found: a prefix of its chain, from the first block on.
#[derive(Clone, Copy, Debug)]
pub struct Visit<'a> {
    /// The blocks, in the order of the chain; all of them are stored.
    pub blocks: &'a [BlockId],
    /// Whether the request has further blocks, which were not found.
    pub continues: bool,
    /// What the caller says.
    pub hints: Hints,
    /// When.
    pub now: Tick,
}

/// Blocks that were just stored: neighbours in a chain.
#[derive(Clone, Copy, Debug)]
pub struct Insertion<'a> {
    /// The stored block before the first one, if it is in this pool.
    pub parent: Option<BlockId>,
    /// The blocks, in the order of the chain; none of them was stored before.
    pub blocks: &'a [BlockId],
    /// Their keys.
    pub keys: &'a [BlockKey],
    /// What the caller says.
    pub hints: Hints,
    /// When.
    pub now: Tick,
}

/// What became of a block that a policy offered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Offer {
    /// It is gone; this was its key. The policy forgets it (and may remember the key).
    Taken(BlockKey),
    /// It is in use. The policy keeps it, and does not offer it again until
    /// [`released`](EvictionPolicy::released) is called for it.
    Pinned,
}

/// Decides which blocks go. Every implementation passes the same conformance tests.
///
/// It is built for a number of blocks, and every id is below that. Whoever uses a block uses the
/// blocks before it in its chain too: what is offered and in use has ancestors that are in use.
pub trait EvictionPolicy: Send {
    /// The name, as in settings and tables.
    fn name(&self) -> &'static str;

    /// A request found blocks.
    fn visited(&mut self, visit: &Visit<'_>);

    /// Blocks were stored.
    fn inserted(&mut self, insertion: &Insertion<'_>);

    /// Offers blocks, the least worth keeping first, until `wanted` of them were taken or nothing
    /// is left to offer. Returns how many were taken.
    fn evict(&mut self, wanted: usize, now: Tick, offer: &mut dyn FnMut(BlockId) -> Offer)
    -> usize;

    /// A block is gone though it was not offered (cleared, or removed by its owner).
    fn removed(&mut self, block: BlockId);

    /// A block that was offered and [`Offer::Pinned`] is not in use any more.
    fn released(&mut self, block: BlockId);

    /// What there is to study, once enough has happened since the last time. Studying takes part
    /// of a millisecond and needs nothing of the policy: call [`Lesson::study`] without the lock
    /// and hand the result to [`learn`](EvictionPolicy::learn). Policies that do not learn have no
    /// lessons; one that nobody asks for its lessons goes on with what it knows.
    fn lesson(&mut self) -> Option<Lesson> {
        None
    }

    /// What came out of a lesson.
    fn learn(&mut self, learned: Learned) {
        drop(learned);
    }

    /// Whether a block is never offered before the blocks that follow it in their chains. Then
    /// chains are stored from the first block on, each with its parent.
    fn keeps_prefixes(&self) -> bool;

    /// How many blocks it knows as stored.
    fn len(&self) -> usize;

    /// Whether it knows none.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Asserts what must hold between its parts; for tests.
    ///
    /// # Panics
    /// Where something does not hold.
    fn check_integrity(&self);
}
