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
//!
//! Each block of a pool may be a run of its own, so a run takes 20 bytes ([`RunEntry`]). What such
//! a run does not need is in sparse columns: parents, siblings, a first block other than the last,
//! and hints.

use super::{
    class::BlockClass,
    entry::{RunEntries, RunEntry},
    leaves::NEVER,
    sparse::SparseColumn,
};
use crate::{
    grow::grow,
    policy::{EvictionRefusal, column::NONE, ghosts::KeyPrint},
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

/// A new run of one block.
#[derive(Clone, Copy, Debug)]
pub(super) struct NewRun {
    pub(super) block: u32,
    pub(super) parent: Option<u32>,
    pub(super) touch: u64,
    pub(super) label: RunLabel,
}

/// An id, absent by default.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct MaybeId(u32);

impl Default for MaybeId {
    fn default() -> MaybeId {
        MaybeId(NONE)
    }
}

/// The first block of a run, absent if the run has one block, and the number of further blocks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct RunSpan {
    head: MaybeId,
    more: u32,
}

/// The runs with the same parent run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct RunSiblings {
    next: MaybeId,
    previous: MaybeId,
}

/// The callers' hints for a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct RunHints {
    priority: i8,
    expires: u32,
}

impl Default for RunHints {
    fn default() -> RunHints {
        RunHints {
            priority: 0,
            expires: NEVER,
        }
    }
}

/// The tree.
#[derive(Clone, Debug)]
pub(super) struct RunTree {
    blocks: usize,
    /// The run of each block; as long as the largest id so far requires.
    runs: Vec<u32>,
    /// The parent of each block.
    parents: SparseColumn<MaybeId>,
    /// Why a block is set aside, while it is refused.
    aside: SparseColumn<Option<EvictionRefusal>>,
    entries: RunEntries,
    spans: SparseColumn<RunSpan>,
    siblings: SparseColumn<RunSiblings>,
    hints: SparseColumn<RunHints>,
    /// The first of the free entries.
    free: u32,
}

impl RunTree {
    /// No runs, for `blocks` blocks.
    pub(super) fn new(blocks: usize) -> RunTree {
        RunTree {
            blocks,
            runs: Vec::new(),
            parents: SparseColumn::new(),
            aside: SparseColumn::new(),
            entries: RunEntries::new(blocks),
            spans: SparseColumn::new(),
            siblings: SparseColumn::new(),
            hints: SparseColumn::new(),
            free: NONE,
        }
    }

    /// The run of a stored block.
    #[inline]
    pub(super) fn of(&self, block: u32) -> Option<u32> {
        let run = self.runs.get(block as usize).copied();
        run.filter(|&run| run != NONE)
    }

    /// The entries, for the order of the leaves.
    pub(super) fn all(&self) -> &RunEntries {
        &self.entries
    }

    /// The entries, for the order of the leaves.
    pub(super) fn entries_mut(&mut self) -> &mut RunEntries {
        &mut self.entries
    }

    /// The clock at the last use of a run's blocks.
    #[inline]
    pub(super) fn touched(&self, run: u32) -> u64 {
        self.entries[run].touched()
    }

    /// Sets the clock at the last use of the blocks of a run, which is not among the leaves.
    pub(super) fn set_touched(&mut self, run: u32, clock: u64) {
        self.entries[run].set_touched(clock);
    }

    /// The last block of a run.
    #[inline]
    pub(super) fn tail(&self, run: u32) -> u32 {
        self.entries[run].tail
    }

    /// The number of blocks of a run.
    #[inline]
    pub(super) fn length(&self, run: u32) -> u32 {
        self.spans.get(run).more + 1
    }

    /// The number of child runs of a run.
    #[inline]
    pub(super) fn child_count(&self, run: u32) -> u32 {
        self.entries[run].children()
    }

    /// Whether a run is among the evictable leaves.
    #[inline]
    pub(super) fn is_listed(&self, run: u32) -> bool {
        self.entries[run].is_listed()
    }

    /// The class of a run's blocks.
    #[inline]
    pub(super) fn class(&self, run: u32) -> BlockClass {
        self.entries[run].class
    }

    /// The properties of a run's blocks.
    #[inline]
    pub(super) fn label(&self, run: u32) -> RunLabel {
        let RunHints { priority, expires } = self.hints.get(run);
        let entry = &self.entries[run];
        RunLabel {
            class: entry.class,
            count: entry.count(),
            priority,
            expires,
        }
    }

    /// Sets the properties of a run that is not among the leaves.
    pub(super) fn set_label(&mut self, run: u32, label: RunLabel) {
        let RunLabel {
            class,
            count,
            priority,
            expires,
        } = label;
        self.entries[run].class = class;
        self.entries[run].set_count(count);
        self.hints.set(run, RunHints { priority, expires });
    }

    /// Sets the class of a run that is not among the leaves.
    pub(super) fn set_class(&mut self, run: u32, class: BlockClass) {
        self.entries[run].class = class;
    }

    /// The first block of a run.
    fn head(&self, run: u32) -> u32 {
        match self.spans.get(run).head {
            MaybeId(NONE) => self.entries[run].tail,
            MaybeId(head) => head,
        }
    }

    /// The stored parent of a block.
    #[inline]
    pub(super) fn parent(&self, block: u32) -> Option<u32> {
        let MaybeId(parent) = self.parents.get(block);
        (parent != NONE).then_some(parent)
    }

    /// The parent run of a run.
    pub(super) fn parent_run(&self, run: u32) -> Option<u32> {
        self.of(self.parent(self.head(run))?)
    }

    /// Sets or clears the reason why a block is set aside.
    pub(super) fn set_aside(&mut self, block: u32, refusal: Option<EvictionRefusal>) {
        self.aside.set(block, refusal);
    }

    /// Why a block is set aside, if it is.
    pub(super) fn aside(&self, block: u32) -> Option<EvictionRefusal> {
        self.aside.get(block)
    }

    /// Whether a run may be offered: it has no child run, and its last block is not set aside.
    pub(super) fn is_free_leaf(&self, run: u32) -> bool {
        let entry = &self.entries[run];
        entry.children() == 0 && self.aside(entry.tail).is_none()
    }

    /// The child runs of a run.
    pub(super) fn children(&self, run: u32) -> impl Iterator<Item = u32> + '_ {
        let mut at = self.entries[run].first_child();
        std::iter::from_fn(move || {
            let child = (at != NONE).then_some(at)?;
            MaybeId(at) = self.siblings.get(child).next;
            Some(child)
        })
    }

    /// Stores the print of a new block that will get a run later. Until then the print is in the
    /// place of the run.
    pub(super) fn note(&mut self, block: u32, print: KeyPrint) {
        grow(&mut self.runs, (block as usize + 1, self.blocks), NONE);
        assert!(self.of(block).is_none(), "block {block} is stored twice");
        self.place(block, print.bits());
    }

    /// The print of a block that [`note`](RunTree::note) stored.
    pub(super) fn noted(&self, block: u32) -> KeyPrint {
        KeyPrint::of_bits(self.of(block).unwrap_or(NONE))
    }

    #[inline]
    fn place(&mut self, block: u32, run: u32) {
        let place = self.runs.get_mut(block as usize);
        assert!(place.is_some(), "block {block} was never stored");
        place.into_iter().for_each(|place| *place = run);
    }

    /// Starts a run with one block after its parent, which is the last block of its run.
    pub(super) fn start(&mut self, new: NewRun) -> u32 {
        let run = self.allocate(RunEntry::new(new.block, new.touch));
        self.set_label(run, new.label);
        self.spans.set(run, RunSpan::default());
        self.siblings.set(run, RunSiblings::default());
        self.place(new.block, run);
        self.parents
            .set(new.block, MaybeId(new.parent.unwrap_or(NONE)));
        self.aside.set(new.block, None);
        self.attach(run);
        run
    }

    /// Appends a block to a run without child runs.
    pub(super) fn extend(&mut self, run: u32, block: u32) {
        let tail = self.entries[run].tail;
        let span = self.spans.get(run);
        let head = match span.head {
            MaybeId(NONE) => MaybeId(tail),
            head => head,
        };
        let more = span.more + 1;
        self.spans.set(run, RunSpan { head, more });
        self.place(block, run);
        self.parents.set(block, MaybeId(tail));
        self.aside.set(block, None);
        self.entries[run].tail = block;
    }

    /// Splits a run so that `block` is its last. Returns the new run of the blocks after it, if
    /// any. The new run has the same label and is not listed. The other one is not, either, unless
    /// it is not split.
    pub(super) fn split_after(&mut self, block: u32) -> Option<u32> {
        let upper = self.of(block)?;
        let whole = self.entries[upper];
        if whole.tail == block {
            return None;
        }
        assert!(!whole.is_listed(), "run {upper} is split among the leaves");
        let lower = self.allocate(whole);
        self.hints.set(lower, self.hints.get(upper));
        self.siblings.set(lower, RunSiblings::default());
        let (mut at, mut head, mut len) = (whole.tail, whole.tail, 0);
        while at != block {
            self.place(at, lower);
            head = at;
            len += 1;
            MaybeId(at) = self.parents.get(at);
        }
        self.set_span(lower, (head, len));
        let first = self.head(upper);
        let left = self.length(upper) - len;
        self.entries[upper].tail = block;
        self.set_span(upper, (first, left));
        self.entries[upper].set_children(lower, 1);
        Some(lower)
    }

    fn set_span(&mut self, run: u32, (head, len): (u32, u32)) {
        let span = match len {
            1 => RunSpan::default(),
            _ => RunSpan {
                head: MaybeId(head),
                more: len - 1,
            },
        };
        self.spans.set(run, span);
    }

    /// Removes the last block of a run without child runs, and the run itself if that was its only
    /// block.
    pub(super) fn shorten(&mut self, run: u32) -> ShortenedRun {
        let tail = self.entries[run].tail;
        let span = self.spans.get(run);
        self.aside.set(tail, None);
        if span.more > 0 {
            let MaybeId(parent) = self.parents.get(tail);
            self.forget(tail);
            self.entries[run].tail = parent;
            let MaybeId(head) = span.head;
            self.set_span(run, (head, span.more));
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
        while self.child_count(run) > 0 {
            let child = self.entries[run].first_child();
            self.detach(child);
            self.parents.set(self.head(child), MaybeId(NONE));
        }
        match self.shorten(run) {
            ShortenedRun::Gone { before } => before,
            ShortenedRun::Still => None,
        }
    }

    /// All runs.
    pub(super) fn iter(&self) -> impl Iterator<Item = u32> {
        let entries = (0_u32..).zip(self.entries.iter());
        let used = entries.filter(|(_, entry)| entry.tail != NONE);
        used.map(|(run, _)| run)
    }

    /// The number of run entries, free ones included.
    pub(super) fn entries(&self) -> usize {
        self.entries.len()
    }

    fn forget(&mut self, block: u32) {
        self.place(block, NONE);
        self.parents.set(block, MaybeId(NONE));
    }

    fn allocate(&mut self, entry: RunEntry) -> u32 {
        if self.free == NONE {
            return self.entries.push(entry);
        }
        let at = self.free;
        self.free = self.entries[at].next_free();
        self.entries[at] = entry;
        at
    }

    fn release(&mut self, run: u32) {
        let entry = &mut self.entries[run];
        assert!(
            !entry.is_listed(),
            "a removed run is still among the leaves"
        );
        entry.tail = NONE;
        entry.set_children(self.free, 0);
        self.free = run;
    }

    /// Links a run as a child of its parent run.
    fn attach(&mut self, run: u32) {
        let Some(parent) = self.parent_run(run) else {
            return;
        };
        let first = self.entries[parent].first_child();
        let next = MaybeId(first);
        let previous = MaybeId(NONE);
        self.siblings.set(run, RunSiblings { next, previous });
        if first != NONE {
            let next = self.siblings.get(first).next;
            let previous = MaybeId(run);
            self.siblings.set(first, RunSiblings { next, previous });
        }
        let children = self.entries[parent].children();
        self.entries[parent].set_children(run, children + 1);
    }

    /// The inverse of [`attach`](RunTree::attach). Returns the parent run.
    fn detach(&mut self, run: u32) -> Option<u32> {
        let parent = self.parent_run(run)?;
        let RunSiblings { next, previous } = self.siblings.get(run);
        let children = self.entries[parent].children() - 1;
        match previous {
            MaybeId(NONE) => {
                let MaybeId(first) = next;
                self.entries[parent].set_children(first, children);
            }
            MaybeId(at) => {
                let first = self.entries[parent].first_child();
                self.entries[parent].set_children(first, children);
                let previous = self.siblings.get(at).previous;
                self.siblings.set(at, RunSiblings { next, previous });
            }
        }
        if let MaybeId(at) = next
            && at != NONE
        {
            let next = self.siblings.get(at).next;
            self.siblings.set(at, RunSiblings { next, previous });
        }
        self.siblings.set(run, RunSiblings::default());
        Some(parent)
    }

    /// Asserts the invariants. Returns the number of blocks.
    pub(super) fn check(&self) -> usize {
        let mut blocks = 0;
        for (index, entry) in (0_u32..).zip(self.entries.iter()) {
            if entry.tail == NONE {
                assert!(!entry.is_listed(), "free run {index} is listed");
                continue;
            }
            let (head, length) = (self.head(index), self.length(index));
            let (mut at, mut len) = (entry.tail, 1);
            while at != head {
                assert_eq!(self.of(at), Some(index), "run of block {at}");
                MaybeId(at) = self.parents.get(at);
                len += 1;
                assert!(len <= length, "run {index} is longer than its length");
            }
            assert_eq!((self.of(at), len), (Some(index), length), "run {index}");
            blocks += length as usize;
            let mut children = 0;
            for child in self.children(index) {
                assert_eq!(self.parent_run(child), Some(index), "parent of run {child}");
                assert_eq!(self.parent(self.head(child)), Some(entry.tail));
                assert!(
                    self.touched(child) <= entry.touched(),
                    "{child} is younger than {index}"
                );
                children += 1;
            }
            assert_eq!(children, entry.children(), "children of run {index}");
        }
        let placed = self.runs.iter().filter(|&&run| run != NONE).count();
        assert_eq!(placed, blocks, "blocks in runs");
        let free = std::iter::successors((self.free != NONE).then_some(self.free), |&run| {
            let next = self.entries[run].next_free();
            (next != NONE).then_some(next)
        });
        let free = free
            .inspect(|&run| assert_eq!(self.entries[run].tail, NONE))
            .count();
        assert_eq!(free + self.iter().count(), self.entries.len(), "runs");
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
