//! The default policy. It evicts the leaf with the lowest Gittins index: the best ratio of expected
//! uses to expected time, over all times at which the block might be given up. How uses depend on
//! age is learned online, for each class of blocks.
//!
//! Time is counted in references to blocks. State is kept for each run of blocks, not for each
//! block: a chain that was always used as a whole costs as much as one block. Evicted blocks are
//! kept as ghosts for a while, so that the policy learns from their returns.
//!
//! | module | what it is |
//! | --- | --- |
//! | `runs`, `entry`, `sparse` | the tree of stored blocks, as runs, and its columns |
//! | `class`, `age` | the class and the age bucket of a run |
//! | `leaves`, `order` | the evictable runs, ordered |
//! | `lesson` | the event counts, and the estimator that turns them into scores |
//! | `backlog` | events that the policy has not learned from yet |
//! | `uses`, `stores` | how the policy handles visits and insertions |
//! | `said` | the callers' hints as run labels |
//!
//! Matching and registering only append to the backlog. The policy processes it before the next
//! eviction, or in [`lesson`](EvictionPolicy::lesson), which a thread with spare time calls.

mod age;
mod backlog;
mod class;
mod entry;
mod leaves;
mod lesson;
mod order;
mod runs;
mod said;
mod sparse;
mod stores;
#[cfg(test)]
mod tests;
mod uses;

pub use lesson::{LearnedScores, PolicyLesson};

use super::{
    EvictionPolicy, EvictionRefusal, Insertion, Visit,
    ghosts::{GhostLookup, GhostRing, KeyPrint},
};
use crate::{BlockId, BlockKey, Tick};
use backlog::{Backlog, BacklogEventKind};
use class::BlockClass;
use leaves::{EvictableLeaves, LeafCandidate, NEVER};
use lesson::Observations;
use runs::{RunTree, ShortenedRun};
use said::coarse;

/// The minimum capacity for ghosts.
const GHOSTS_MIN: usize = 65_536;

/// Requests between two lessons.
const LESSON_REQUESTS: u64 = 200;

/// Requests before the first lesson.
const LESSON_FIRST: u64 = 25;

/// Ghosts beyond the capacity that accumulate before they are dropped as a batch.
const EXCESS_MAX: usize = 128;

/// The sample size of runs and of ghosts for a lesson.
const SAMPLE_MAX: usize = 16_384;

/// No run.
const NO_RUN: u32 = u32::MAX;

/// The ghost entry of an evicted block.
#[derive(Clone, Copy, Debug, Default)]
struct GittinsGhost {
    /// The clock at its last use, lower half only: there are many ghosts, and their ages are short.
    touch: u32,
    class: BlockClass,
    count: u8,
}

impl GittinsGhost {
    /// References to blocks since its last use, modulo 2^32.
    fn age(&self, clock: u64) -> u64 {
        u64::from(lower_half(clock).wrapping_sub(self.touch))
    }
}

fn lower_half(clock: u64) -> u32 {
    u32::try_from(clock & u64::from(u32::MAX)).unwrap_or_default()
}

/// The learned policy over leaves.
#[derive(Clone, Debug)]
pub struct Gittins {
    runs: RunTree,
    leaves: EvictableLeaves,
    ghosts: GhostRing<GittinsGhost>,
    observed: Observations,
    learned: LearnedScores,
    /// References to blocks so far.
    clock: u64,
    requests: u64,
    next_lesson: u64,
    /// The run that is being evicted, and its last use: it is evicted as a whole.
    victim: Option<(u32, u64)>,
    /// The events that the policy has not learned from yet.
    backlog: Backlog,
    /// Scratch: the blocks of one event.
    scratch: Vec<BlockId>,
    /// Scratch: a stack of runs to visit.
    stack: Vec<u32>,
    /// Scratch: the ghost lookups of blocks that are being stored.
    sought: Vec<GhostLookup>,
    blocks: usize,
    len: usize,
}

impl Gittins {
    /// A policy for a pool of `blocks` blocks.
    #[must_use]
    pub fn new(blocks: u32) -> Gittins {
        Gittins {
            runs: RunTree::new(blocks as usize),
            leaves: EvictableLeaves::new(),
            ghosts: GhostRing::new(),
            observed: Observations::new(),
            learned: LearnedScores::nothing(),
            clock: 0,
            requests: 0,
            next_lesson: LESSON_FIRST,
            victim: None,
            backlog: Backlog::default(),
            scratch: Vec::new(),
            stack: Vec::new(),
            sought: Vec::new(),
            blocks: blocks as usize,
            len: 0,
        }
    }

    fn list(&mut self, run: u32) {
        if !self.runs.is_listed(run) && self.runs.is_free_leaf(run) {
            self.leaves.insert(&mut self.runs, run);
        }
    }

    fn unlist(&mut self, run: u32) {
        if self.runs.is_listed(run) {
            self.leaves.remove(&mut self.runs, run);
        }
    }

    /// Splits a run so that `block` is the last of its run.
    fn split_after(&mut self, block: u32) {
        let Some(upper) = self.runs.of(block) else {
            return;
        };
        let listed = self.runs.is_listed(upper);
        if listed && self.runs.tail(upper) != block {
            self.unlist(upper);
        }
        if let Some(lower) = self.runs.split_after(block)
            && listed
        {
            self.list(lower);
        }
    }

    /// The leaf with the lowest score; an expired leaf precedes it.
    fn choose(&self, now: Tick) -> Option<u32> {
        if let Some(run) = self.leaves.expired(coarse(now)) {
            return Some(run);
        }
        let scored = self
            .leaves
            .candidates(&self.runs)
            .map(|leaf| (self.score(&leaf), leaf));
        let least = scored
            .min_by(|(a, first), (b, second)| a.total_cmp(b).then(first.touch.cmp(&second.touch)));
        least.map(|(_, leaf)| leaf.run)
    }

    /// Expected uses per reference, weighted by the caller's priority.
    fn score(&self, leaf: &LeafCandidate) -> f32 {
        let age = self.clock - leaf.touch;
        let score = self.learned.score(leaf.class, age);
        if leaf.priority == 0 {
            return score;
        }
        // The hint's exponent halves in the time in which the pool is filled once.
        let fills = age as f32 / self.blocks.max(1) as f32;
        score * (f32::from(leaf.priority) / (1.0 + fills)).exp2()
    }

    /// The run whose last block is the candidate.
    fn victim(&mut self, now: Tick) -> Option<u32> {
        if let Some((run, touch)) = self.victim
            && self.runs.is_listed(run)
            && self.runs.touched(run) == touch
        {
            return Some(run);
        }
        let run = self.choose(now)?;
        self.victim = Some((run, self.runs.touched(run)));
        Some(run)
    }

    /// Removes the last block of `run`.
    fn forget_tail(&mut self, run: u32) {
        self.len -= 1;
        let class = self.runs.class(run);
        let touch = self.runs.touched(run);
        if self.runs.length(run) == 1 {
            self.unlist(run);
        }
        match self.runs.shorten(run) {
            ShortenedRun::Still => {
                if !self.runs.is_free_leaf(run) {
                    self.unlist(run);
                }
            }
            ShortenedRun::Gone { before } => {
                self.victim = None;
                let Some(before) = before else { return };
                self.list(before);
                // A dead end is evicted as a whole.
                if self.runs.is_listed(before)
                    && self.runs.class(before) == class
                    && self.runs.touched(before) == touch
                {
                    self.victim = Some((before, touch));
                }
            }
        }
    }

    /// The run whose last block was offered.
    fn offered(&self, block: BlockId) -> u32 {
        let of_run = |run: &u32| self.runs.tail(*run) == block.0;
        let run = self.runs.of(block.0).filter(of_run).unwrap_or(NO_RUN);
        assert!(
            run != NO_RUN,
            "{block:?} was offered, so it is the end of a run"
        );
        run
    }

    /// Clears a block's refusal, and lists its run again if that makes it evictable.
    fn bring_back(&mut self, block: BlockId, refusal: EvictionRefusal) {
        if let Some(run) = self.runs.of(block.0)
            && self.runs.aside(block.0) == Some(refusal)
        {
            self.runs.set_aside(block.0, None);
            self.list(run);
        }
    }

    /// Processes the backlog. Every operation except visits and insertions calls it first, so the
    /// time of learning does not change the policy's decisions.
    fn catch_up(&mut self) {
        if self.backlog.is_empty() {
            return;
        }
        self.forget_excess();
        let mut backlog = std::mem::take(&mut self.backlog);
        let mut scratch = std::mem::take(&mut self.scratch);
        backlog.drain(&mut scratch, |event, blocks| match event.what {
            BacklogEventKind::Visited { partial_tail } => {
                self.visit(blocks, partial_tail, &event.said);
            }
            BacklogEventKind::Stored {
                parent,
                partial_tail,
            } => self.store((parent, blocks), partial_tail, &event.said),
        });
        self.backlog = backlog;
        self.scratch = scratch;
    }

    /// Drops the ghosts beyond the capacity. The clock does not advance during evictions, so any
    /// time before the next use or the next lesson gives the same result.
    fn forget_excess(&mut self) {
        let most = GHOSTS_MIN.max(self.blocks / 2);
        self.ghosts.warm(self.ghosts.len().saturating_sub(most));
        while self.ghosts.len() > most
            && let Some(old) = self.ghosts.pop()
        {
            self.observed.end(old.class, old.age(self.clock), 1.0);
        }
    }

    /// The blocks under observation, by class and age: a sample if there are many.
    fn live(&self) -> lesson::AgeTable<{ class::CLASSES }> {
        let mut live = lesson::table();
        let step = self.runs.entries() / SAMPLE_MAX + 1;
        for run in self.runs.iter().step_by(step) {
            let blocks = (self.runs.length(run) as usize * step) as f32;
            let age = self.clock - self.runs.touched(run);
            lesson::add(&mut live, self.runs.class(run), age, blocks);
        }
        let step = self.ghosts.len() / SAMPLE_MAX + 1;
        for ghost in self.ghosts.iter().step_by(step) {
            lesson::add(&mut live, ghost.class, ghost.age(self.clock), step as f32);
        }
        live
    }
}

impl EvictionPolicy for Gittins {
    fn name(&self) -> &'static str {
        "gittins"
    }

    fn visited(&mut self, visit: &Visit<'_>) {
        if visit.blocks.is_empty() {
            return;
        }
        if !self.backlog.has_room(visit.blocks.len()) {
            self.catch_up();
        }
        self.backlog.visited(visit);
    }

    fn inserted(&mut self, insertion: &Insertion<'_>) {
        if !self.backlog.has_room_to_store(insertion.blocks.len()) {
            self.catch_up();
        }
        for (block, key) in insertion.blocks.iter().zip(insertion.keys) {
            self.runs.note(block.0, KeyPrint::new(key));
        }
        self.len += insertion.blocks.len();
        self.backlog.stored(insertion);
    }

    fn candidate(&mut self, now: Tick) -> Option<BlockId> {
        self.catch_up();
        let run = self.victim(now)?;
        Some(BlockId(self.runs.tail(run)))
    }

    fn evicted(&mut self, block: BlockId, key: &BlockKey) {
        let run = self.offered(block);
        let ghost = GittinsGhost {
            touch: lower_half(self.runs.touched(run)),
            class: self.runs.class(run),
            count: self.runs.label(run).count,
        };
        if self.ghosts.len() >= GHOSTS_MIN.max(self.blocks / 2) + EXCESS_MAX {
            self.forget_excess();
        }
        self.ghosts.push(key, ghost);
        self.forget_tail(run);
    }

    fn refused(&mut self, block: BlockId, refusal: EvictionRefusal) {
        let run = self.offered(block);
        self.unlist(run);
        self.runs.set_aside(block.0, Some(refusal));
    }

    fn removed(&mut self, block: BlockId) {
        self.catch_up();
        if self.runs.of(block.0).is_none() {
            return;
        }
        self.split_after(block.0);
        if let Some(parent) = self.runs.parent(block.0) {
            self.split_after(parent);
        }
        let Some(run) = self.runs.of(block.0) else {
            return;
        };
        self.unlist(run);
        let age = self.clock - self.runs.touched(run);
        self.observed.end(self.runs.class(run), age, 1.0);
        if let Some(before) = self.runs.cut_out(run) {
            self.list(before);
        }
        self.victim = None;
        self.len -= 1;
    }

    fn released(&mut self, block: BlockId) {
        self.catch_up();
        self.bring_back(block, EvictionRefusal::Pinned);
    }

    fn became_leaf(&mut self, block: BlockId) {
        self.catch_up();
        self.bring_back(block, EvictionRefusal::Followed);
    }

    fn lesson(&mut self) -> Option<PolicyLesson> {
        self.catch_up();
        if self.requests < self.next_lesson {
            return None;
        }
        self.forget_excess();
        self.next_lesson = self.requests + LESSON_REQUESTS.min(self.requests);
        let live = self.live();
        Some(self.observed.lesson(live))
    }

    fn learn(&mut self, learned: LearnedScores) {
        self.learned = learned;
    }

    fn copy(&self) -> Box<dyn EvictionPolicy> {
        Box::new(self.clone())
    }

    fn len(&self) -> usize {
        self.len
    }

    fn check_integrity(&self) {
        if !self.backlog.is_empty() {
            let mut caught_up = self.clone();
            caught_up.catch_up();
            return caught_up.check_integrity();
        }
        assert_eq!(self.runs.check(), self.len, "blocks");
        self.ghosts.check();
        let mut expiring = 0;
        for run in self.runs.iter() {
            let listed = self.runs.is_listed(run);
            assert_eq!(listed, self.runs.is_free_leaf(run), "run {run} as a leaf");
            expiring += usize::from(listed && self.runs.label(run).expires != NEVER);
            assert!(self.runs.touched(run) <= self.clock, "used in the future");
        }
        let listed = self.runs.iter().filter(|&run| self.runs.is_listed(run));
        assert_eq!(self.leaves.len(), listed.count(), "leaves");
        self.leaves.check(self.runs.all(), expiring);
    }
}
