//! The tree of stored blocks, as runs: neighbours in a chain that were always used together are
//! one entry.
//!
//! ```text
//! chain A: 0 1 2 3 4 5      run 0: 0 1 2 ─┬─ run 1: 3 4 5
//! chain B: 0 1 2 6 7                      └─ run 2: 6 7
//! ```
//!
//! A block knows its run and the block before it; a run knows its first and last block, the first of
//! its children and its siblings. Runs are split where a chain leaves them. What a run is worth, and
//! when it goes, is not decided here.

use super::class::Class;
use crate::policy::{
    Refusal,
    column::{Column, NONE},
    ghosts::Print,
};

/// What is known of a run as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Label {
    /// The class of its blocks.
    pub(super) class: Class,
    /// How often they were used, at most 16.
    pub(super) count: u8,
    /// What the callers said, at most 4 in both directions.
    pub(super) priority: i8,
    /// From when on they are worth nothing; the last number means never.
    pub(super) expires: u32,
}

/// Neighbours in a chain.
#[derive(Clone, Copy, Debug)]
pub(super) struct Run {
    /// When its blocks were used last.
    pub(super) touch: u64,
    /// What is known of it.
    pub(super) label: Label,
    /// Its first block.
    pub(super) head: u32,
    /// Its last block; [`NONE`] in a run that is free.
    pub(super) tail: u32,
    /// How many blocks it has.
    pub(super) len: u32,
    /// How many runs follow it.
    pub(super) children: u32,
    /// One of those; in a free run, the next free one.
    pub(super) first_child: u32,
    next_sibling: u32,
    previous_sibling: u32,
    /// Whether it stands among the leaves.
    pub(super) listed: bool,
}

#[derive(Clone, Copy, Debug)]
struct Place {
    run: u32,
    parent: u32,
}

/// The tree.
#[derive(Clone, Debug)]
pub(super) struct Runs {
    places: Column<Place>,
    /// Why a block was refused, while that lasts.
    aside: Column<Option<Refusal>>,
    /// Grows to the largest number of runs there ever was.
    runs: Column<Run>,
    free: u32,
}

impl Runs {
    /// No run yet, for `blocks` blocks.
    pub(super) fn new(blocks: usize) -> Runs {
        let place = Place {
            run: NONE,
            parent: NONE,
        };
        Runs {
            places: Column::new(blocks, place),
            aside: Column::new(blocks, None),
            runs: Column::empty(),
            free: NONE,
        }
    }

    /// The run of a stored block.
    pub(super) fn of(&self, block: u32) -> Option<u32> {
        let run = self.places[block].run;
        (run != NONE).then_some(run)
    }

    /// The run.
    #[inline]
    pub(super) fn get(&self, run: u32) -> &Run {
        &self.runs[run]
    }

    /// The run.
    #[inline]
    pub(super) fn get_mut(&mut self, run: u32) -> &mut Run {
        &mut self.runs[run]
    }

    /// The stored block before this one.
    pub(super) fn parent(&self, block: u32) -> Option<u32> {
        let parent = self.places[block].parent;
        (parent != NONE).then_some(parent)
    }

    /// The run before this one.
    pub(super) fn parent_run(&self, run: u32) -> Option<u32> {
        self.of(self.parent(self.runs[run].head)?)
    }

    /// Says why a block was refused, if that lasts.
    pub(super) fn set_aside(&mut self, block: u32, refusal: Option<Refusal>) {
        self.aside[block] = refusal;
    }

    /// Why a block was refused, if that lasts.
    pub(super) fn aside(&self, block: u32) -> Option<Refusal> {
        self.aside[block]
    }

    /// Whether a run may be offered: nothing follows it here, and its last block was not refused.
    pub(super) fn is_free_leaf(&self, run: u32) -> bool {
        let Run { children, tail, .. } = self.runs[run];
        children == 0 && self.aside[tail].is_none()
    }

    /// The runs that follow a run.
    pub(super) fn children(&self, run: u32) -> impl Iterator<Item = u32> + '_ {
        let mut at = match self.runs[run].children {
            0 => NONE,
            _ => self.runs[run].first_child,
        };
        std::iter::from_fn(move || {
            let child = (at != NONE).then_some(at)?;
            at = self.runs[child].next_sibling;
            Some(child)
        })
    }

    /// A block was stored that is to be put into a run later. Until then its print stands where its run will.
    pub(super) fn note(&mut self, block: u32, print: Print) {
        let place = &mut self.places[block];
        assert!(place.run == NONE, "block {block} is stored twice");
        place.run = print.bits();
    }

    /// The print of a block that was noted.
    pub(super) fn noted(&self, block: u32) -> Print {
        Print::of_bits(self.places[block].run)
    }

    /// Starts a run with one block behind `parent`, which is the last block of its run.
    pub(super) fn start(
        &mut self,
        block: u32,
        parent: Option<u32>,
        touch: u64,
        label: Label,
    ) -> u32 {
        let run = Run {
            touch,
            label,
            head: block,
            tail: block,
            len: 1,
            children: 0,
            first_child: NONE,
            next_sibling: NONE,
            previous_sibling: NONE,
            listed: false,
        };
        let parent = parent.unwrap_or(NONE);
        let run = self.allocate(run);
        self.places[block] = Place { run, parent };
        self.aside[block] = None;
        self.attach(run);
        run
    }

    /// Appends a block to a run that nothing follows.
    pub(super) fn extend(&mut self, run: u32, block: u32) {
        let parent = self.runs[run].tail;
        self.places[block] = Place { run, parent };
        self.aside[block] = None;
        let run = &mut self.runs[run];
        run.tail = block;
        run.len += 1;
    }

    /// Makes `block` the last one of its run; the run of what followed it, if anything did. That
    /// one has the label and is not listed.
    pub(super) fn split_after(&mut self, block: u32) -> Option<u32> {
        let upper = self.of(block)?;
        let whole = self.runs[upper];
        if whole.tail == block {
            return None;
        }
        let lower = self.allocate(Run {
            previous_sibling: NONE,
            next_sibling: NONE,
            listed: false,
            ..whole
        });
        let (mut at, mut head, mut len) = (whole.tail, whole.tail, 0);
        while at != block {
            let place = &mut self.places[at];
            place.run = lower;
            (head, at) = (at, place.parent);
            len += 1;
        }
        let run = &mut self.runs[lower];
        (run.head, run.len) = (head, len);
        let run = &mut self.runs[upper];
        run.tail = block;
        run.len -= len;
        run.children = 1;
        run.first_child = lower;
        Some(lower)
    }

    /// Takes the last block off a run that nothing follows. If it was the only one, the run is
    /// gone; the run before it then.
    pub(super) fn shorten(&mut self, run: u32) -> Shortened {
        let Run { tail, len, .. } = self.runs[run];
        let parent = self.places[tail].parent;
        self.aside[tail] = None;
        if len > 1 {
            self.forget(tail);
            let run = &mut self.runs[run];
            run.tail = parent;
            run.len = len - 1;
            return Shortened::Still;
        }
        let before = self.detach(run);
        self.forget(tail);
        self.release(run);
        Shortened::Gone { before }
    }

    /// Takes a run of one block out of the tree: what followed it follows nothing now. The run
    /// before it.
    pub(super) fn cut_out(&mut self, run: u32) -> Option<u32> {
        while self.runs[run].children > 0 {
            let child = self.runs[run].first_child;
            self.detach(child);
            let head = self.runs[child].head;
            self.places[head].parent = NONE;
        }
        match self.shorten(run) {
            Shortened::Gone { before } => before,
            Shortened::Still => None,
        }
    }

    /// All runs.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Run> {
        self.runs.iter().filter(|run| run.tail != NONE)
    }

    /// How many entries runs take, those that are free included.
    pub(super) fn entries(&self) -> usize {
        self.runs.len()
    }

    fn forget(&mut self, block: u32) {
        self.places[block] = Place {
            run: NONE,
            parent: NONE,
        };
    }

    fn allocate(&mut self, run: Run) -> u32 {
        if self.free == NONE {
            return self.runs.push(run);
        }
        let at = self.free;
        self.free = self.runs[at].first_child;
        self.runs[at] = run;
        at
    }

    fn release(&mut self, run: u32) {
        let free = self.free;
        let entry = &mut self.runs[run];
        assert!(!entry.listed, "a run that is gone stands among the leaves");
        entry.tail = NONE;
        entry.children = 0;
        entry.first_child = free;
        self.free = run;
    }

    /// Makes a run a child of the one before it.
    fn attach(&mut self, run: u32) {
        let Some(parent) = self.parent_run(run) else {
            return;
        };
        let first = match self.runs[parent].children {
            0 => NONE,
            _ => self.runs[parent].first_child,
        };
        self.runs[run].next_sibling = first;
        if first != NONE {
            self.runs[first].previous_sibling = run;
        }
        let parent = &mut self.runs[parent];
        parent.first_child = run;
        parent.children += 1;
    }

    /// The opposite of [`attach`](Runs::attach); the parent.
    fn detach(&mut self, run: u32) -> Option<u32> {
        let parent = self.parent_run(run)?;
        let Run {
            next_sibling: next,
            previous_sibling: previous,
            ..
        } = self.runs[run];
        match previous {
            NONE => self.runs[parent].first_child = next,
            previous => self.runs[previous].next_sibling = next,
        }
        if next != NONE {
            self.runs[next].previous_sibling = previous;
        }
        let entry = &mut self.runs[run];
        (entry.next_sibling, entry.previous_sibling) = (NONE, NONE);
        self.runs[parent].children -= 1;
        Some(parent)
    }

    /// Asserts what must hold between the parts; the number of blocks.
    pub(super) fn check(&self) -> usize {
        let mut blocks = 0;
        for (index, run) in (0_u32..).zip(self.runs.iter()) {
            if run.tail == NONE {
                assert!(!run.listed, "free run {index} is listed");
                continue;
            }
            let (mut at, mut len) = (run.tail, 1);
            while at != run.head {
                assert_eq!(self.places[at].run, index, "run of block {at}");
                at = self.places[at].parent;
                len += 1;
                assert!(len <= run.len, "run {index} is longer than it says");
            }
            assert_eq!((self.places[at].run, len), (index, run.len), "run {index}");
            blocks += run.len as usize;
            let mut children = 0;
            for child in self.children(index) {
                assert_eq!(self.parent_run(child), Some(index), "parent of run {child}");
                assert_eq!(self.parent(self.runs[child].head), Some(run.tail));
                assert!(
                    self.runs[child].touch <= run.touch,
                    "{child} is younger than {index}"
                );
                children += 1;
            }
            assert_eq!(children, run.children, "children of run {index}");
        }
        let placed = self.places.iter().filter(|place| place.run != NONE).count();
        assert_eq!(placed, blocks, "blocks in runs");
        let free = std::iter::successors((self.free != NONE).then_some(self.free), |&run| {
            let next = self.runs[run].first_child;
            (next != NONE).then_some(next)
        });
        let free = free
            .inspect(|&run| assert_eq!(self.runs[run].tail, NONE))
            .count();
        assert_eq!(free + self.iter().count(), self.runs.len(), "runs");
        blocks
    }
}

/// What became of a run that lost its last block.
pub(super) enum Shortened {
    /// It has others.
    Still,
    /// It had no other; the run before it.
    Gone {
        /// The run before it.
        before: Option<u32>,
    },
}
