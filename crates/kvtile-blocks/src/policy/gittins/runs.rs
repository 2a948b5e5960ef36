//! The tree of stored blocks, compressed to runs. A run is an entry for consecutive blocks of a chain
//! that were always used together.
//!
//! ```text
//! chain A: 0 1 2 3 4 5      run 0: 0 1 2 ─┬─ run 1: 3 4 5
//! chain B: 0 1 2 6 7                      └─ run 2: 6 7
//! ```
//!
//! A block knows its run and its parent. A run knows its first and last block, the first of its
//! children and its siblings. A run is split where a chain leaves it. This module neither scores
//! runs nor chooses which one to evict.

use super::class::BlockClass;
use crate::policy::{
    EvictionRefusal,
    column::{IdColumn, NONE},
    ghosts::KeyPrint,
};

/// The properties that all blocks of a run share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct RunLabel {
    /// The class of the blocks.
    pub(super) class: BlockClass,
    /// Their use count, at most 16.
    pub(super) count: u8,
    /// The callers' priority, clamped to -4..=4.
    pub(super) priority: i8,
    /// When the blocks expire; the largest number means never.
    pub(super) expires: u32,
}

/// Consecutive blocks of a chain.
#[derive(Clone, Copy, Debug)]
pub(super) struct BlockRun {
    /// The clock at the last use of its blocks.
    pub(super) touch: u64,
    /// The properties of its blocks.
    pub(super) label: RunLabel,
    /// Its first block.
    pub(super) head: u32,
    /// Its last block; [`NONE`] in a free entry.
    pub(super) tail: u32,
    /// The number of blocks.
    pub(super) len: u32,
    /// The number of child runs.
    pub(super) children: u32,
    /// One of the child runs; in a free entry, the next free entry.
    pub(super) first_child: u32,
    next_sibling: u32,
    previous_sibling: u32,
    /// Whether it is among the evictable leaves.
    pub(super) listed: bool,
}

#[derive(Clone, Copy, Debug)]
struct RunMembership {
    run: u32,
    parent: u32,
}

/// The tree.
#[derive(Clone, Debug)]
pub(super) struct RunTree {
    places: IdColumn<RunMembership>,
    /// Why a block is set aside, while it is refused.
    aside: IdColumn<Option<EvictionRefusal>>,
    /// Grows to the largest number of runs so far.
    runs: IdColumn<BlockRun>,
    free: u32,
}

impl RunTree {
    /// No runs, for `blocks` blocks.
    pub(super) fn new(blocks: usize) -> RunTree {
        let place = RunMembership {
            run: NONE,
            parent: NONE,
        };
        RunTree {
            places: IdColumn::new(blocks, place),
            aside: IdColumn::new(blocks, None),
            runs: IdColumn::empty(),
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
    pub(super) fn get(&self, run: u32) -> &BlockRun {
        &self.runs[run]
    }

    /// The run.
    #[inline]
    pub(super) fn get_mut(&mut self, run: u32) -> &mut BlockRun {
        &mut self.runs[run]
    }

    /// The stored parent of a block.
    pub(super) fn parent(&self, block: u32) -> Option<u32> {
        let parent = self.places[block].parent;
        (parent != NONE).then_some(parent)
    }

    /// The parent run of a run.
    pub(super) fn parent_run(&self, run: u32) -> Option<u32> {
        self.of(self.parent(self.runs[run].head)?)
    }

    /// Sets or clears the reason why a block is set aside.
    pub(super) fn set_aside(&mut self, block: u32, refusal: Option<EvictionRefusal>) {
        self.aside[block] = refusal;
    }

    /// Why a block is set aside, if it is.
    pub(super) fn aside(&self, block: u32) -> Option<EvictionRefusal> {
        self.aside[block]
    }

    /// Whether a run may be offered: it has no child run, and its last block is not set aside.
    pub(super) fn is_free_leaf(&self, run: u32) -> bool {
        let BlockRun { children, tail, .. } = self.runs[run];
        children == 0 && self.aside[tail].is_none()
    }

    /// The child runs of a run.
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

    /// Stores the print of a new block that will get a run later. Until then the print is in the
    /// run's field.
    pub(super) fn note(&mut self, block: u32, print: KeyPrint) {
        let place = &mut self.places[block];
        assert!(place.run == NONE, "block {block} is stored twice");
        place.run = print.bits();
    }

    /// The print of a block that [`note`](RunTree::note) stored.
    pub(super) fn noted(&self, block: u32) -> KeyPrint {
        KeyPrint::of_bits(self.places[block].run)
    }

    /// Starts a run with one block after `parent`, which is the last block of its run.
    pub(super) fn start(
        &mut self,
        block: u32,
        parent: Option<u32>,
        touch: u64,
        label: RunLabel,
    ) -> u32 {
        let run = BlockRun {
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
        self.places[block] = RunMembership { run, parent };
        self.aside[block] = None;
        self.attach(run);
        run
    }

    /// Appends a block to a run without child runs.
    pub(super) fn extend(&mut self, run: u32, block: u32) {
        let parent = self.runs[run].tail;
        self.places[block] = RunMembership { run, parent };
        self.aside[block] = None;
        let run = &mut self.runs[run];
        run.tail = block;
        run.len += 1;
    }

    /// Splits a run so that `block` is its last. Returns the new run of the blocks after it, if
    /// any. The new run has the same label and is not listed.
    pub(super) fn split_after(&mut self, block: u32) -> Option<u32> {
        let upper = self.of(block)?;
        let whole = self.runs[upper];
        if whole.tail == block {
            return None;
        }
        let lower = self.allocate(BlockRun {
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

    /// Removes the last block of a run without child runs, and the run itself if that was its only
    /// block.
    pub(super) fn shorten(&mut self, run: u32) -> ShortenedRun {
        let BlockRun { tail, len, .. } = self.runs[run];
        let parent = self.places[tail].parent;
        self.aside[tail] = None;
        if len > 1 {
            self.forget(tail);
            let run = &mut self.runs[run];
            run.tail = parent;
            run.len = len - 1;
            return ShortenedRun::Still;
        }
        let before = self.detach(run);
        self.forget(tail);
        self.release(run);
        ShortenedRun::Gone { before }
    }

    /// Removes a run of one block from the tree; its children lose their parent. Returns the parent
    /// run.
    pub(super) fn cut_out(&mut self, run: u32) -> Option<u32> {
        while self.runs[run].children > 0 {
            let child = self.runs[run].first_child;
            self.detach(child);
            let head = self.runs[child].head;
            self.places[head].parent = NONE;
        }
        match self.shorten(run) {
            ShortenedRun::Gone { before } => before,
            ShortenedRun::Still => None,
        }
    }

    /// All runs.
    pub(super) fn iter(&self) -> impl Iterator<Item = &BlockRun> {
        self.runs.iter().filter(|run| run.tail != NONE)
    }

    /// The number of run entries, free ones included.
    pub(super) fn entries(&self) -> usize {
        self.runs.len()
    }

    fn forget(&mut self, block: u32) {
        self.places[block] = RunMembership {
            run: NONE,
            parent: NONE,
        };
    }

    fn allocate(&mut self, run: BlockRun) -> u32 {
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
        assert!(!entry.listed, "a removed run is still among the leaves");
        entry.tail = NONE;
        entry.children = 0;
        entry.first_child = free;
        self.free = run;
    }

    /// Links a run as a child of its parent run.
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

    /// The inverse of [`attach`](RunTree::attach). Returns the parent run.
    fn detach(&mut self, run: u32) -> Option<u32> {
        let parent = self.parent_run(run)?;
        let BlockRun {
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

    /// Asserts the invariants. Returns the number of blocks.
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
                assert!(len <= run.len, "run {index} is longer than its length");
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

/// The result of removing a run's last block.
pub(super) enum ShortenedRun {
    /// The run has further blocks.
    Still,
    /// The run was removed.
    Gone {
        /// The parent run.
        before: Option<u32>,
    },
}
