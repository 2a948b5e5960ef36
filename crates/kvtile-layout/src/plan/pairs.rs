//! Block pairs, grouped by what they have in common and compressed into progressions.

use std::collections::HashMap;

use super::{BlockPair, PairBase, frame::Frame};

/// Classes of a plan that are looked through one by one.
const SEARCHED_MAX: usize = 8;

/// What all pairs of a class share.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct ClassKey {
    /// First source token modulo the source's largest modulus of N.
    pub(super) source_phase: u64,
    /// First destination token modulo the destination's largest modulus of N.
    pub(super) destination_phase: u64,
    /// Tokens a pair.
    pub(super) tokens: u64,
    /// Consecutive pairs of the progression.
    pub(super) blocks: u64,
    /// Source blocks from one to the next.
    pub(super) source_stride: u64,
    /// Destination blocks from one to the next.
    pub(super) destination_stride: u64,
}

/// Pairs that lie alike.
#[derive(Clone, Debug)]
pub(super) struct Class {
    pub(super) key: ClassKey,
    pub(super) pairs: Vec<PairBase>,
    /// Whether a pair starts at a tile of tokens other than the first.
    pub(super) token_bases: bool,
}

/// The classes of a list of pairs, in the order of first appearance.
#[derive(Clone, Debug, Default)]
pub(super) struct Classes {
    classes: Vec<Class>,
    /// Where each key is, once there are too many to look through.
    index: HashMap<ClassKey, usize>,
    last: usize,
    /// Pairs that have not been grouped.
    left: usize,
}

/// Pairs in arithmetic progression: as many as followed each other so far.
struct Run {
    first: BlockPair,
    last: BlockPair,
    count: u64,
    source: u64,
    destination: u64,
}

impl Run {
    fn new(first: BlockPair) -> Run {
        Run {
            first,
            last: first,
            count: 1,
            source: 1,
            destination: 1,
        }
    }

    /// Takes `pair` in, if it goes on as the run does.
    #[inline]
    fn takes(&mut self, pair: &BlockPair) -> bool {
        let last = &self.last;
        let alike = (last.tokens, last.source_token, last.destination_token)
            == (pair.tokens, pair.source_token, pair.destination_token);
        // A stride that goes down wraps, and is found not to be one when the run ends.
        let source = pair.source_block.wrapping_sub(last.source_block);
        let destination = pair.destination_block.wrapping_sub(last.destination_block);
        let same = (source, destination) == (self.source, self.destination);
        let follows = alike & (same | (self.count == 1));
        if follows {
            (self.source, self.destination) = (source, destination);
            self.last = *pair;
            self.count += 1;
        }
        follows
    }

    /// Whether it is a loop. A short one is only where both ids go up by one; the source may stay,
    /// but the destination goes up.
    #[inline]
    fn is_loop(&self) -> bool {
        if (self.source, self.destination) == (1, 1) {
            return self.count >= 2;
        }
        self.count >= 4
            && self.last.source_block >= self.first.source_block
            && self.last.destination_block > self.first.destination_block
    }

    /// Pair `index` of the run.
    fn pair(&self, index: u64) -> BlockPair {
        let further = |block: u64, stride: u64| block.wrapping_add(stride.wrapping_mul(index));
        BlockPair {
            source_block: further(self.first.source_block, self.source),
            destination_block: further(self.first.destination_block, self.destination),
            ..self.first
        }
    }
}

impl Classes {
    pub(super) fn len(&self) -> usize {
        self.classes.len()
    }

    pub(super) fn get(&self, index: usize) -> Option<&Class> {
        self.classes.get(index)
    }

    /// Hands the classes out; room for them stays.
    pub(super) fn drain(&mut self) -> std::vec::Drain<'_, Class> {
        self.classes.drain(..)
    }

    /// Groups `pairs`, which were checked.
    pub(super) fn group(&mut self, frame: &Frame, pairs: impl ExactSizeIterator<Item = BlockPair>) {
        self.classes.clear();
        self.index.clear();
        (self.last, self.left) = (0, pairs.len());
        if frame.progressions {
            self.group_runs(frame, pairs);
        } else {
            pairs.for_each(|pair| self.push(frame, pair, 1, (1, 1)));
        }
    }

    fn group_runs(&mut self, frame: &Frame, mut pairs: impl Iterator<Item = BlockPair>) {
        let Some(first) = pairs.next() else {
            return;
        };
        let mut run = Run::new(first);
        for pair in pairs {
            if run.takes(&pair) {
                continue;
            }
            if run.is_loop() {
                self.push_loop(frame, &run);
                run = Run::new(pair);
                continue;
            }
            // The last of a run that is none may be the first of one.
            for index in 0..run.count - 1 {
                self.push(frame, run.pair(index), 1, (1, 1));
            }
            run = Run::new(run.last);
            if !run.takes(&pair) {
                self.push(frame, run.last, 1, (1, 1));
                run = Run::new(pair);
            }
        }
        if run.is_loop() {
            self.push_loop(frame, &run);
        } else {
            for index in 0..run.count {
                self.push(frame, run.pair(index), 1, (1, 1));
            }
        }
    }

    fn push_loop(&mut self, frame: &Frame, run: &Run) {
        self.push(frame, run.first, run.count, (run.source, run.destination));
    }

    #[inline]
    fn push(&mut self, frame: &Frame, first: BlockPair, blocks: u64, strides: (u64, u64)) {
        let key = ClassKey {
            source_phase: frame.source.phase(first.source_token),
            destination_phase: frame.destination.phase(first.destination_token),
            tokens: first.tokens,
            blocks,
            source_stride: strides.0,
            destination_stride: strides.1,
        };
        let base = PairBase {
            source_block: first.source_block,
            source_token: first.source_token - key.source_phase,
            destination_block: first.destination_block,
            destination_token: first.destination_token - key.destination_phase,
        };
        let left = self.left;
        self.left = left.saturating_sub(usize::try_from(blocks).unwrap_or(left));
        if self.classes.get(self.last).is_none_or(|c| c.key != key) {
            self.last = self.find(key);
        }
        if let Some(class) = self.classes.get_mut(self.last) {
            class.token_bases |= (base.source_token | base.destination_token) != 0;
            if class.pairs.len() == class.pairs.capacity() {
                // Few at first, since runs may compress them all; then what may come.
                let few = if class.pairs.is_empty() { 4 } else { left };
                class.pairs.reserve_exact(few.min(left));
            }
            class.pairs.push(base);
        }
    }

    /// The index of the class with this key.
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
            self.classes.push(Class {
                key,
                pairs: Vec::new(),
                token_bases: false,
            });
        }
        found
    }
}
