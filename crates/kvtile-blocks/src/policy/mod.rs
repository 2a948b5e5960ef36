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
//! | `lru`, `s3_fifo`, `adaptive` | the policies that other caches use, over leaves |
//! | `settings` | which one, as plain data |
//! | `queue` | queues of blocks some of which may not go now |
//! | `column`, `links`, `ghosts` | arrays by block, lists through them, and who has left |
//!
//! The pool evicts leaves alone: a block that a cached block follows is refused when a policy offers it,
//! and the pool says when the last of those has left. So no policy has to know chains, and each gives
//! its own order to the leaves.

mod adaptive;
mod column;
mod ghosts;
mod gittins;
mod links;
mod lru;
mod queue;
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

/// Blocks that a request found: neighbours in its chain. Where other tiers hold the first blocks of the
/// chain, they are not its first ones.
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

/// Why a block stays that a policy offered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// It is in use. [`released`](EvictionPolicy::released) tells the end of that.
    Pinned,
    /// A cached block names it as its parent, be it of this policy or of another one of the same pool.
    /// [`became_leaf`](EvictionPolicy::became_leaf) tells the end of that.
    Followed,
}

/// Decides in which order blocks go. Every implementation passes the same conformance tests.
///
/// It is built for a number of blocks, and every id is below that.
pub trait EvictionPolicy: Send {
    /// The name, as in settings and tables.
    fn name(&self) -> &'static str;

    /// A request found blocks.
    fn visited(&mut self, visit: &Visit<'_>);

    /// Blocks were stored.
    fn inserted(&mut self, insertion: &Insertion<'_>);

    /// The block that is least worth keeping of those that may go, as far as the policy knows. The caller
    /// answers with [`evicted`](EvictionPolicy::evicted) or [`refused`](EvictionPolicy::refused). `None`
    /// where all blocks were refused.
    fn candidate(&mut self, now: Tick) -> Option<BlockId>;

    /// The candidate is gone; this was its key, which the policy may remember.
    fn evicted(&mut self, block: BlockId, key: &BlockKey);

    /// The candidate stays. The policy offers it again when it was released or has become a leaf. One that
    /// others follow may be offered again after it was visited, too.
    fn refused(&mut self, block: BlockId, refusal: Refusal);

    /// A block is gone that was not offered (cleared, or removed by its owner).
    fn removed(&mut self, block: BlockId);

    /// A block that was refused as [`Refusal::Pinned`] is not in use any more.
    fn released(&mut self, block: BlockId);

    /// The last cached block that followed this one is gone. It is said of each block, whether it was
    /// refused or not.
    fn became_leaf(&mut self, block: BlockId);

    /// What there is to study, once enough has happened since the last time. Studying takes part
    /// of a millisecond and needs nothing of the policy: call [`Lesson::study`] without the lock
    /// and hand the result to [`learn`](EvictionPolicy::learn). Policies that do not learn have no
    /// lessons; one that nobody asks for its lessons goes on with what it knows. A policy that has put off
    /// learning from visits and insertions makes up for it here.
    fn lesson(&mut self) -> Option<Lesson> {
        None
    }

    /// What came out of a lesson.
    fn learn(&mut self, learned: Learned) {
        drop(learned);
    }

    /// A copy, which goes on by itself: what it would do next can be tried out.
    fn copy(&self) -> Box<dyn EvictionPolicy>;

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
