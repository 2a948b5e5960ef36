//! Eviction policies: which block of a pool to evict next.
//!
//! A policy knows the stored blocks by their ids, their order in chains, and when they were used.
//! It does not know bytes, pins, threads or other tiers. The pool calls it under one lock, reports
//! events in the order in which they happen, and may refuse the candidate that the policy offers.
//!
//! | module | what it is |
//! | --- | --- |
//! | `gittins` | the default: evicts the leaf with the lowest Gittins index, learned online |
//! | `lru`, `s3_fifo`, `adaptive` | the classic policies LRU, S3-FIFO and ARC, over leaves |
//! | `settings` | the choice of a policy, as plain data |
//! | `queue` | queues of blocks, some of which cannot be evicted now |
//! | `column`, `links`, `ghosts` | arrays indexed by block, linked lists through them, and ghost entries of evicted blocks |
//!
//! The pool evicts only leaves: it refuses a candidate that has a cached child, and reports when
//! the last such child has left. So no policy has to track chains, and each ranks the leaves in its
//! own order.

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
pub use gittins::{Gittins, LearnedScores, PolicyLesson};
pub use lru::Lru;
pub use s3_fifo::S3Fifo;
pub use settings::{PolicyKind, PolicySettings};

use crate::{BlockId, BlockKey, Tick};

/// The caller's hints for the blocks of a request. Hints are soft: they are weighed in and decay,
/// and never keep a block forever.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct EvictionHints {
    /// How much longer than others to keep the blocks: 0 is neutral, each positive step doubles
    /// a block's worth, and each negative step halves it. The default policy fades the hint with
    /// age: after as many references to blocks as the pool has blocks, its weight is half.
    pub priority: i8,
    /// From this time on the blocks are worth nothing.
    pub expires: Option<Tick>,
    /// The number of tokens generated for the request; 0 while unknown.
    pub output_tokens: u32,
    /// Whether the last block of the list is partial (a tail that few requests share).
    pub partial_tail: bool,
}

/// A lookup hit: consecutive blocks of a request's chain. They do not start the chain if other
/// tiers hold its first blocks.
#[derive(Clone, Copy, Debug)]
pub struct Visit<'a> {
    /// The blocks, in chain order; all of them are stored.
    pub blocks: &'a [BlockId],
    /// Whether the request has further blocks, which missed.
    pub continues: bool,
    /// The caller's hints.
    pub hints: EvictionHints,
    /// The current time.
    pub now: Tick,
}

/// Newly stored blocks: consecutive in a chain.
#[derive(Clone, Copy, Debug)]
pub struct Insertion<'a> {
    /// The stored parent of the first block, if it is in this pool.
    pub parent: Option<BlockId>,
    /// The blocks, in chain order; none of them was stored before.
    pub blocks: &'a [BlockId],
    /// Their keys.
    pub keys: &'a [BlockKey],
    /// The caller's hints.
    pub hints: EvictionHints,
    /// The current time.
    pub now: Tick,
}

/// Why the pool refuses a candidate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EvictionRefusal {
    /// It is pinned. [`released`](EvictionPolicy::released) reports the end of that.
    Pinned,
    /// It has a cached child, of this policy or of another one of the same pool.
    /// [`became_leaf`](EvictionPolicy::became_leaf) reports the end of that.
    Followed,
}

/// Ranks the blocks of a pool for eviction. Every implementation passes the same conformance tests.
///
/// A policy is built for a number of blocks, and every id is below that number.
pub trait EvictionPolicy: Send {
    /// The policy's name, as in settings and tables.
    fn name(&self) -> &'static str;

    /// Reports that a request found blocks.
    fn visited(&mut self, visit: &Visit<'_>);

    /// Reports that blocks were stored.
    fn inserted(&mut self, insertion: &Insertion<'_>);

    /// The least valuable block of those that may be evicted, as far as the policy knows. The
    /// caller answers with [`evicted`](EvictionPolicy::evicted) or
    /// [`refused`](EvictionPolicy::refused). `None` if all blocks are refused.
    fn candidate(&mut self, now: Tick) -> Option<BlockId>;

    /// Reports that the candidate was evicted. The policy may remember its key.
    fn evicted(&mut self, block: BlockId, key: &BlockKey);

    /// Reports that the candidate stays. The policy offers it again after it was released or became
    /// a leaf. A candidate that was refused for its children may also be offered again after a
    /// visit.
    fn refused(&mut self, block: BlockId, refusal: EvictionRefusal);

    /// Reports that a block left without having been offered (cleared, or removed by its owner).
    fn removed(&mut self, block: BlockId);

    /// Reports that a block that was refused as [`EvictionRefusal::Pinned`] is not pinned any more.
    fn released(&mut self, block: BlockId);

    /// Reports that a block's last cached child has left. The pool calls it for every such block,
    /// refused or not.
    fn became_leaf(&mut self, block: BlockId);

    /// The next lesson, once enough has happened since the last one. Studying takes part of a
    /// millisecond and needs no access to the policy: call [`PolicyLesson::study`] without the lock and
    /// pass the result to [`learn`](EvictionPolicy::learn). Policies that do not learn return
    /// `None`; a policy whose lessons are not studied keeps its current knowledge. A policy that
    /// defers learning from visits and insertions catches up here.
    fn lesson(&mut self) -> Option<PolicyLesson> {
        None
    }

    /// Takes the result of a lesson.
    fn learn(&mut self, learned: LearnedScores) {
        drop(learned);
    }

    /// An independent copy, for example to simulate evictions.
    fn copy(&self) -> Box<dyn EvictionPolicy>;

    /// The number of stored blocks that the policy knows.
    fn len(&self) -> usize;

    /// Whether it knows no block.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Asserts the policy's invariants; for tests.
    ///
    /// # Panics
    /// If an invariant is violated.
    fn check_integrity(&self);
}
