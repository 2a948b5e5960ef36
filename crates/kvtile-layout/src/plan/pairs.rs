//! Groups block pairs by their class key and compresses them into progressions.

use std::collections::HashMap;

use super::{BlockPair, PairBase, frame::PlanFrame};
use crate::broken::broken;

/// Up to this many classes, a linear search finds a key.
const SEARCHED_MAX: usize = 8;

/// The properties that all pairs of a class share.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct ClassKey {
    /// First source token modulo the source's largest modulus of N.
    pub(super) source_phase: u64,
    /// First destination token modulo the destination's largest modulus of N.
    pub(super) destination_phase: u64,
    /// Tokens per pair.
    pub(super) tokens: u64,
    /// Consecutive pairs of the progression.
    pub(super) blocks: u64,
    /// Source blocks between neighbours of the progression.
    pub(super) source_stride: u64,
    /// Destination blocks between neighbours of the progression.
    pub(super) destination_stride: u64,
}

/// The pairs with one class key.
#[derive(Clone, Debug)]
pub(super) struct PairClass {
    pub(super) key: ClassKey,
    pub(super) pairs: Vec<PairBase>,
    /// Whether a pair starts at a tile of tokens other than the first.
    pub(super) token_bases: bool,
}

/// The classes of a list of pairs, in the order of first appearance.
#[derive(Clone, Debug, Default)]
pub(super) struct PairClasses {
    classes: Vec<PairClass>,
    /// The position of each key, once there are too many classes for a linear search.
    index: HashMap<ClassKey, usize>,
    last: usize,
}

impl PairClasses {
    pub(super) fn len(&self) -> usize {
        self.classes.len()
    }

    pub(super) fn get(&self, index: usize) -> Option<&PairClass> {
        self.classes.get(index)
    }

    /// Drains the classes and keeps their capacity.
    pub(super) fn drain(&mut self) -> std::vec::Drain<'_, PairClass> {
        self.classes.drain(..)
    }

    /// Groups `pairs`, which the caller has checked.
    pub(super) fn group(
        &mut self,
        frame: &PlanFrame,
        mut pairs: impl ExactSizeIterator<Item = BlockPair>,
    ) {
        self.classes.clear();
        self.index.clear();
        self.last = 0;
        let left = pairs.len();
        let mut next = pairs.next();
        // One round for each stretch of pairs with equal tokens; most lists are one stretch.
        while let Some(first) = next.take() {
            let mut stretch = PairStretch::new(frame, first, left);
            let mut run = PairRun::new((first.source_block, first.destination_block));
            for pair in pairs.by_ref() {
                if !stretch.has_tokens(&pair) {
                    next = Some(pair);
                    break;
                }
                let blocks = (pair.source_block, pair.destination_block);
                if run.count > 1 && run.strides_to(blocks) == run.strides {
                    (run.last, run.count) = (blocks, run.count + 1);
                } else {
                    run = stretch.turn(self, run, blocks);
                }
            }
            stretch.end(self, run);
        }
    }

    /// The pairs of the class with this key.
    fn pairs_of(&mut self, key: ClassKey, token_base: bool) -> &mut Vec<PairBase> {
        if self.classes.get(self.last).is_none_or(|c| c.key != key) {
            self.last = self.find(key);
        }
        let (last, classes) = (self.last, self.classes.len());
        let Some(class) = self.classes.get_mut(last) else {
            broken(format_args!("class {last} of {classes} for {key:?}"))
        };
        class.token_bases |= token_base;
        &mut class.pairs
    }

    fn find(&mut self, key: ClassKey) -> usize {
        let new = self.classes.len();
        let found = if new <= SEARCHED_MAX {
            let found = self.classes.iter().position(|class| class.key == key);
            found.unwrap_or(new)
        } else {
            if self.index.is_empty() {
                let keys = self.classes.iter().map(|class| class.key);
                self.index.extend(keys.zip(0..));
            }
            *self.index.entry(key).or_insert(new)
        };
        if found == new {
            self.classes.push(PairClass {
                key,
                pairs: Vec::new(),
                token_bases: false,
            });
        }
        found
    }
}

/// The current arithmetic progression of pairs.
#[derive(Clone, Copy)]
struct PairRun {
    first: (u64, u64),
    last: (u64, u64),
    /// From one pair to the next; a descending stride wraps.
    strides: (u64, u64),
    count: u64,
}

impl PairRun {
    fn new(first: (u64, u64)) -> PairRun {
        PairRun {
            first,
            last: first,
            strides: (1, 1),
            count: 1,
        }
    }

    /// The strides from the last pair to `blocks`.
    #[inline]
    fn strides_to(&self, blocks: (u64, u64)) -> (u64, u64) {
        (
            blocks.0.wrapping_sub(self.last.0),
            blocks.1.wrapping_sub(self.last.1),
        )
    }

    /// Whether the run becomes a loop. Two or three pairs do so only where both ids ascend by one.
    /// Longer runs need an ascending destination; the source may stay.
    #[inline]
    fn is_loop(&self) -> bool {
        let up = self.last.0 >= self.first.0 && self.last.1 > self.first.1;
        (self.strides == (1, 1) && self.count >= 2) || (self.count >= 4 && up)
    }
}

/// Consecutive pairs of the list with the same tokens.
struct PairStretch {
    /// The class key of pairs outside loops.
    single: ClassKey,
    /// The fields that all pairs share, besides the blocks.
    base: PairBase,
    phases: (u64, u64),
    progressions: bool,
    /// Pairs outside loops. They go to their class before the next loop and at the end.
    singles: Vec<PairBase>,
    /// Most pairs that the stretch can have.
    left: usize,
}

impl PairStretch {
    fn new(frame: &PlanFrame, first: BlockPair, left: usize) -> PairStretch {
        let phases = (
            frame.source.phase(first.source_token),
            frame.destination.phase(first.destination_token),
        );
        PairStretch {
            single: ClassKey {
                source_phase: phases.0,
                destination_phase: phases.1,
                tokens: first.tokens,
                blocks: 1,
                source_stride: 1,
                destination_stride: 1,
            },
            base: PairBase {
                source_block: first.source_block,
                source_token: first.source_token - phases.0,
                destination_block: first.destination_block,
                destination_token: first.destination_token - phases.1,
            },
            phases,
            progressions: frame.progressions,
            singles: Vec::new(),
            left,
        }
    }

    #[inline]
    fn has_tokens(&self, pair: &BlockPair) -> bool {
        let tokens = |token: u64, phase: u64| token + phase;
        (pair.tokens == self.single.tokens)
            & (pair.source_token == tokens(self.base.source_token, self.phases.0))
            & (pair.destination_token == tokens(self.base.destination_token, self.phases.1))
    }

    /// Starts the run after `run`, which `blocks` do not continue or which has no strides yet. The
    /// run goes by value to stay in registers: a list of scattered blocks calls this for each pair.
    #[inline]
    fn turn(&mut self, classes: &mut PairClasses, run: PairRun, blocks: (u64, u64)) -> PairRun {
        if !self.progressions || (run.count > 1 && run.is_loop()) {
            self.end_run(classes, run);
            return PairRun::new(blocks);
        }
        // The last pair of a run that is no loop may start one.
        self.push_singles(run, run.count - 1);
        PairRun {
            first: run.last,
            last: blocks,
            strides: run.strides_to(blocks),
            count: 2,
        }
    }

    /// Pushes the first `count` pairs of a run that is no loop.
    #[inline]
    fn push_singles(&mut self, run: PairRun, count: u64) {
        let mut blocks = run.first;
        for _ in 0..count {
            if self.singles.len() == self.singles.capacity() {
                self.grow();
            }
            self.singles.push(PairBase {
                source_block: blocks.0,
                destination_block: blocks.1,
                ..self.base
            });
            blocks.0 = blocks.0.wrapping_add(run.strides.0);
            blocks.1 = blocks.1.wrapping_add(run.strides.1);
        }
    }

    /// Reserves a few entries at first, since runs may compress all pairs; later all that can
    /// follow.
    #[cold]
    fn grow(&mut self) {
        let more = match self.singles.len() {
            few @ 0..64 => (few * 3).max(4),
            _ => self.left,
        };
        self.singles.reserve_exact(more.min(self.left).max(1));
    }

    fn end_run(&mut self, classes: &mut PairClasses, run: PairRun) {
        if !run.is_loop() {
            return self.push_singles(run, run.count);
        }
        self.flush(classes);
        let key = ClassKey {
            blocks: run.count,
            source_stride: run.strides.0,
            destination_stride: run.strides.1,
            ..self.single
        };
        classes.pairs_of(key, self.has_base()).push(PairBase {
            source_block: run.first.0,
            destination_block: run.first.1,
            ..self.base
        });
    }

    fn has_base(&self) -> bool {
        (self.base.source_token | self.base.destination_token) != 0
    }

    /// Moves the singles to their class.
    fn flush(&mut self, classes: &mut PairClasses) {
        if self.singles.is_empty() {
            return;
        }
        let pairs = classes.pairs_of(self.single, self.has_base());
        if pairs.is_empty() {
            *pairs = std::mem::take(&mut self.singles);
        } else {
            pairs.append(&mut self.singles);
        }
    }

    fn end(mut self, classes: &mut PairClasses, run: PairRun) {
        self.end_run(classes, run);
        self.flush(classes);
    }
}
