//! The default policy: of all leaves of the tree of stored blocks, the one goes whose best expected
//! uses per time, over all times at which one might give it up, are lowest (its Gittins index). How
//! ages turn into uses is learned from what happens, for each class of blocks.
//!
//! Time is the number of references to blocks. State is kept for each run of blocks, not for each
//! block: a chain that was always used as a whole costs as much as one block. Blocks that were
//! evicted are remembered for a while, so that the policy learns what it lost.
//!
//! | module | what it is |
//! | --- | --- |
//! | `runs` | the tree |
//! | `class`, `age` | what a run is, and how old |
//! | `leaves` | the runs that may go, in order |
//! | `lesson` | counts of what happened, and what they say |

mod age;
mod class;
mod leaves;
mod lesson;
mod runs;

pub use lesson::{Learned, Lesson};

use super::{EvictionPolicy, Hints, Insertion, Refusal, Visit, ghosts::Ghosts};
use crate::{BlockId, BlockKey, Tick};
use class::{COUNT_MAX, Class};
use leaves::{Candidate, Leaves, NEVER, PRIORITY_MAX};
use lesson::Observations;
use runs::{Label, Runs, Shortened};

/// Evicted blocks that are remembered at least.
const GHOSTS_MIN: usize = 65_536;

/// Requests between two lessons.
const LESSON_REQUESTS: u64 = 200;

/// Requests before the first lesson.
const LESSON_FIRST: u64 = 25;

/// A block with more children than this is a prompt that everybody has: that a request took one of
/// them says nothing about the others.
const PASSED_CHILDREN_MAX: u32 = 16;

/// Blocks that one request passes over at most.
const PASSED_BLOCKS_MAX: u32 = 1024;

/// Runs and ghosts that are looked at for a lesson.
const SAMPLE_MAX: usize = 16_384;

/// No run.
const NO_RUN: u32 = u32::MAX;

/// A block that was evicted.
#[derive(Clone, Copy, Debug, Default)]
struct Ghost {
    /// When it was used last, without the upper half: there are many ghosts, and their ages are short.
    touch: u32,
    class: Class,
    count: u8,
}

impl Ghost {
    /// References to blocks since it was used last, modulo 2^32.
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
    runs: Runs,
    leaves: Leaves,
    ghosts: Ghosts<Ghost>,
    observed: Observations,
    learned: Learned,
    /// References to blocks so far.
    clock: u64,
    requests: u64,
    next_lesson: u64,
    /// The run that is being evicted, and when it was used last: it goes as a whole.
    victim: Option<(u32, u64)>,
    /// Runs that wait to be looked at.
    stack: Vec<u32>,
    blocks: usize,
    len: usize,
}

impl Gittins {
    /// For a pool of `blocks` blocks.
    #[must_use]
    pub fn new(blocks: u32) -> Gittins {
        Gittins {
            runs: Runs::new(blocks as usize),
            leaves: Leaves::new(),
            ghosts: Ghosts::new(),
            observed: Observations::new(),
            learned: Learned::nothing(),
            clock: 0,
            requests: 0,
            next_lesson: LESSON_FIRST,
            victim: None,
            stack: Vec::new(),
            blocks: blocks as usize,
            len: 0,
        }
    }

    fn list(&mut self, run: u32) {
        if !self.runs.get(run).listed && self.runs.is_free_leaf(run) {
            self.leaves.insert(run, self.runs.get(run));
            self.runs.get_mut(run).listed = true;
        }
    }

    fn unlist(&mut self, run: u32) {
        if self.runs.get(run).listed {
            self.leaves.remove(run, self.runs.get(run));
            self.runs.get_mut(run).listed = false;
        }
    }

    /// Makes `block` the last one of its run.
    fn split_after(&mut self, block: u32) {
        let Some(upper) = self.runs.of(block) else {
            return;
        };
        let listed = self.runs.get(upper).listed;
        if listed && self.runs.get(upper).tail != block {
            self.unlist(upper);
        }
        if let Some(lower) = self.runs.split_after(block)
            && listed
        {
            self.list(lower);
        }
    }

    /// A request used a whole run.
    fn touch(&mut self, run: u32, kind: Option<u8>, hints: &Hints) {
        self.unlist(run);
        let now = self.clock;
        let entry = self.runs.get_mut(run);
        let Label {
            class,
            count,
            priority,
            expires,
        } = entry.label;
        let age = now - entry.touch;
        self.observed.hit(class, age, entry.len as f32);
        let count = (count + 1).min(COUNT_MAX);
        let kind = kind.unwrap_or(class::used(count));
        entry.touch = now;
        entry.label = Label {
            class: Class::new(kind, class::output(hints.output_tokens)),
            count,
            priority: towards(priority, wanted_priority(hints)),
            expires: expires.max(expiry(hints)),
        };
        self.list(run);
    }

    /// A request went on behind `run`, or ended there: whatever else follows it was passed over.
    fn pass_over(&mut self, run: u32) {
        if self.runs.get(run).children > PASSED_CHILDREN_MAX {
            return;
        }
        let mut stack = std::mem::take(&mut self.stack);
        stack.extend(self.runs.children(run));
        let mut passed = 0;
        while let Some(run) = stack.pop() {
            // Who was passed over as often as is counted has no descendant that was less often.
            let Some(class) = self.runs.get(run).label.class.passed() else {
                continue;
            };
            if passed >= PASSED_BLOCKS_MAX {
                break;
            }
            self.unlist(run);
            let entry = self.runs.get_mut(run);
            let (age, blocks) = (self.clock - entry.touch, entry.len as f32);
            self.observed.end(entry.label.class, age, blocks);
            self.observed.enter(class, age, blocks);
            passed += entry.len;
            entry.label.class = class;
            self.list(run);
            stack.extend(self.runs.children(run));
        }
        stack.clear();
        self.stack = stack;
    }

    /// The label of a block that is stored now.
    fn label(
        &mut self,
        key: &BlockKey,
        parent: Option<u32>,
        partial: bool,
        hints: &Hints,
    ) -> Label {
        let before = parent.map(|run| self.runs.get(run).label);
        let ghost = self.ghosts.take(key);
        let count = ghost.map_or(1, |ghost| (ghost.count + 1).min(COUNT_MAX));
        let kind = match (ghost, before) {
            (Some(ghost), _) => {
                self.observed.hit(ghost.class, ghost.age(self.clock), 1.0);
                class::used(count)
            }
            (None, None) => class::new(0),
            // Stored by this very request: the block before both is the one to go by.
            (None, Some(before)) if before.count == 1 && before.class.kind() != class::PARTIAL => {
                before.class.kind()
            }
            (None, Some(before)) => class::new((before.count - 1).max(1)),
        };
        let kind = if partial { class::PARTIAL } else { kind };
        Label {
            class: Class::new(kind, class::output(hints.output_tokens)),
            count,
            priority: wanted_priority(hints),
            expires: expiry(hints),
        }
    }

    /// One block was stored.
    fn insert(&mut self, block: u32, parent: Option<u32>, label: Label) {
        let now = self.clock;
        let before = parent.and_then(|parent| self.runs.of(parent));
        let extends = before.filter(|&run| {
            let run = self.runs.get(run);
            run.children == 0 && run.label == label
        });
        match (extends, before) {
            (Some(run), _) => {
                self.runs.extend(run, block);
                let entry = self.runs.get(run);
                // A request that stores block after block uses its run all the time; that is not
                // worth an entry in an ordered set each time.
                if now - entry.touch > u64::from(entry.len) * 2 {
                    self.unlist(run);
                    self.refresh(run);
                }
                self.list(run);
            }
            (None, before) => {
                if let Some(before) = before {
                    self.unlist(before);
                    self.refresh(before);
                }
                let run = self.runs.start(block, parent, now, label);
                self.list(run);
            }
        }
        self.len += 1;
    }

    /// What is followed by something new was used now, and so was what it follows.
    fn refresh(&mut self, run: u32) {
        let mut at = Some(run);
        while let Some(run) = at
            && self.runs.get(run).touch < self.clock
        {
            self.runs.get_mut(run).touch = self.clock;
            at = self.runs.parent_run(run);
        }
    }

    /// The leaf that is worth least.
    fn choose(&self, now: Tick) -> Option<u32> {
        if let Some(run) = self.leaves.expired(coarse(now)) {
            return Some(run);
        }
        let scored = self
            .leaves
            .candidates()
            .map(|leaf| (self.score(&leaf), leaf));
        let least = scored
            .min_by(|(a, first), (b, second)| a.total_cmp(b).then(first.touch.cmp(&second.touch)));
        least.map(|(_, leaf)| leaf.run)
    }

    /// Expected uses per reference, as the callers want it seen.
    fn score(&self, leaf: &Candidate) -> f32 {
        let age = self.clock - leaf.touch;
        let score = self.learned.score(leaf.class, age);
        if leaf.priority == 0 {
            return score;
        }
        // In the time in which the pool is filled once, a hint loses half its weight.
        let fills = age as f32 / self.blocks.max(1) as f32;
        score * (f32::from(leaf.priority) / (1.0 + fills)).exp2()
    }

    /// The run whose last block is to go.
    fn victim(&mut self, now: Tick) -> Option<u32> {
        if let Some((run, touch)) = self.victim {
            let entry = self.runs.get(run);
            if entry.listed && entry.touch == touch {
                return Some(run);
            }
        }
        let run = self.choose(now)?;
        self.victim = Some((run, self.runs.get(run).touch));
        Some(run)
    }

    /// The last block of `run` is gone.
    fn forget_tail(&mut self, run: u32) {
        self.len -= 1;
        let label = self.runs.get(run).label;
        let touch = self.runs.get(run).touch;
        if self.runs.get(run).len == 1 {
            self.unlist(run);
        }
        match self.runs.shorten(run) {
            Shortened::Still => {
                if !self.runs.is_free_leaf(run) {
                    self.unlist(run);
                }
            }
            Shortened::Gone { before } => {
                self.victim = None;
                let Some(before) = before else { return };
                self.list(before);
                let entry = self.runs.get(before);
                // A dead end leaves as a whole.
                if entry.listed && entry.label.class == label.class && entry.touch == touch {
                    self.victim = Some((before, touch));
                }
            }
        }
    }

    /// The run whose last block was offered.
    fn offered(&self, block: BlockId) -> u32 {
        let of_run = |run: &u32| self.runs.get(*run).tail == block.0;
        let run = self.runs.of(block.0).filter(of_run).unwrap_or(NO_RUN);
        assert!(run != NO_RUN, "{block:?} is the end of a run, and offered");
        run
    }

    /// What a block was refused for has ended.
    fn bring_back(&mut self, block: BlockId, refusal: Refusal) {
        if let Some(run) = self.runs.of(block.0)
            && self.runs.aside(block.0) == Some(refusal)
        {
            self.runs.set_aside(block.0, None);
            self.list(run);
        }
    }

    fn remember(&mut self, key: &BlockKey, ghost: Ghost) {
        // Room is made first: one more would be a place more for each eighth.
        if self.ghosts.len() >= GHOSTS_MIN.max(self.blocks / 2)
            && let Some(old) = self.ghosts.pop()
        {
            self.observed.end(old.class, old.age(self.clock), 1.0);
        }
        self.ghosts.push(key, ghost);
    }

    /// The blocks that are watched, by class and age: a sample where there are many.
    fn live(&self) -> lesson::Table<{ class::CLASSES }> {
        let mut live = lesson::table();
        let step = self.runs.entries() / SAMPLE_MAX + 1;
        for run in self.runs.iter().step_by(step) {
            let blocks = (run.len as usize * step) as f32;
            lesson::add(&mut live, run.label.class, self.clock - run.touch, blocks);
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
        let Some(last) = visit.blocks.last() else {
            return;
        };
        self.requests += 1;
        self.split_after(last.0);
        if let Some(run) = self.runs.of(last.0) {
            self.pass_over(run);
        }
        let partial = visit.hints.partial_tail && !visit.continues;
        if partial && let Some(parent) = self.runs.parent(last.0) {
            self.split_after(parent);
        }
        let mut rest = visit.blocks;
        while let Some(first) = rest.first() {
            if let Some(parent) = self.runs.parent(first.0) {
                self.split_after(parent);
            }
            let run = self.runs.of(first.0);
            // A run may go on with other blocks than the visit.
            let same = |block: &&BlockId| run.is_some() && self.runs.of(block.0) == run;
            let len = rest.iter().take_while(same).count().max(1);
            if let Some(end) = rest.get(len - 1) {
                self.split_after(end.0);
            }
            let run = self.runs.of(first.0);
            let tail = partial && len >= rest.len();
            if let Some(run) = run {
                // Where other tiers have the blocks before these, the visit starts behind them; those
                // that are here as well were used all the same.
                if let Some(before) = self.runs.parent_run(run) {
                    self.refresh(before);
                }
                self.touch(run, tail.then_some(class::PARTIAL), &visit.hints);
            }
            rest = rest.get(len..).unwrap_or_default();
        }
        self.clock += visit.blocks.len() as u64;
    }

    fn inserted(&mut self, insertion: &Insertion<'_>) {
        let mut parent = insertion.parent.map(|parent| parent.0);
        let count = insertion.blocks.len();
        self.requests += u64::from(parent.is_none());
        let pairs = insertion.blocks.iter().zip(insertion.keys);
        for (at, (block, key)) in pairs.enumerate() {
            assert!(self.runs.of(block.0).is_none(), "stored twice");
            if let Some(parent) = parent {
                self.split_after(parent);
            }
            let before = parent.and_then(|parent| self.runs.of(parent));
            let partial = insertion.hints.partial_tail && at + 1 == count;
            let label = self.label(key, before, partial, &insertion.hints);
            self.insert(block.0, before.and(parent), label);
            self.clock += 1;
            parent = Some(block.0);
        }
    }

    fn candidate(&mut self, now: Tick) -> Option<BlockId> {
        let run = self.victim(now)?;
        Some(BlockId(self.runs.get(run).tail))
    }

    fn evicted(&mut self, block: BlockId, key: &BlockKey) {
        let run = self.offered(block);
        let entry = self.runs.get(run);
        let ghost = Ghost {
            touch: lower_half(entry.touch),
            class: entry.label.class,
            count: entry.label.count,
        };
        self.remember(key, ghost);
        self.forget_tail(run);
    }

    fn refused(&mut self, block: BlockId, refusal: Refusal) {
        let run = self.offered(block);
        self.unlist(run);
        self.runs.set_aside(block.0, Some(refusal));
    }

    fn removed(&mut self, block: BlockId) {
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
        let entry = self.runs.get(run);
        let age = self.clock - entry.touch;
        self.observed.end(entry.label.class, age, 1.0);
        if let Some(before) = self.runs.cut_out(run) {
            self.list(before);
        }
        self.victim = None;
        self.len -= 1;
    }

    fn released(&mut self, block: BlockId) {
        self.bring_back(block, Refusal::Pinned);
    }

    fn became_leaf(&mut self, block: BlockId) {
        self.bring_back(block, Refusal::Followed);
    }

    fn lesson(&mut self) -> Option<Lesson> {
        if self.requests < self.next_lesson {
            return None;
        }
        self.next_lesson = self.requests + LESSON_REQUESTS.min(self.requests);
        let live = self.live();
        Some(self.observed.lesson(live))
    }

    fn learn(&mut self, learned: Learned) {
        self.learned = learned;
    }

    fn copy(&self) -> Box<dyn EvictionPolicy> {
        Box::new(self.clone())
    }

    fn len(&self) -> usize {
        self.len
    }

    fn check_integrity(&self) {
        assert_eq!(self.runs.check(), self.len, "blocks");
        self.ghosts.check();
        let mut expiring = 0;
        for run in self.runs.iter() {
            let index = self.runs.of(run.tail);
            let free = index.is_some_and(|index| self.runs.is_free_leaf(index));
            assert_eq!(run.listed, free, "run of {} among the leaves", run.tail);
            expiring += usize::from(run.listed && run.label.expires != NEVER);
            assert!(run.touch <= self.clock, "used in the future");
        }
        let listed = self.runs.iter().filter(|run| run.listed).count();
        assert_eq!(self.leaves.len(), listed, "leaves");
        self.leaves.check(expiring);
    }
}

/// The moment in units of about a second.
fn coarse(moment: Tick) -> u32 {
    u32::try_from(moment.0 >> 10).unwrap_or(NEVER - 1)
}

fn expiry(hints: &Hints) -> u32 {
    match hints.expires {
        Some(moment) => coarse(Tick(moment.0.saturating_add(1023))).min(NEVER - 1),
        None => NEVER,
    }
}

fn wanted_priority(hints: &Hints) -> i8 {
    hints.priority.clamp(-PRIORITY_MAX, PRIORITY_MAX)
}

/// A priority fades by a step with each use by somebody who does not ask for it.
fn towards(is: i8, wanted: i8) -> i8 {
    if wanted >= is { wanted } else { is - 1 }
}
