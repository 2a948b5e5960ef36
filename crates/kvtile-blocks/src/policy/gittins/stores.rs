//! How the policy handles stored blocks. Each block gets a label from its ghost, if it has one, and
//! its parent; consecutive blocks with one label form one run.

use super::{
    Gittins, GittinsGhost,
    class::{self, BlockClass, COUNT_MAX},
    runs::{NewRun, RunLabel},
};
use crate::BlockId;

impl Gittins {
    /// Processes stored blocks, whose prints were noted.
    pub(super) fn store(
        &mut self,
        (mut parent, blocks): (Option<u32>, &[BlockId]),
        partial_tail: bool,
        said: &RunLabel,
    ) {
        let count = blocks.len();
        self.requests += u64::from(parent.is_none());
        let mut sought = std::mem::take(&mut self.sought);
        self.ghosts.seek(
            blocks.iter().map(|block| self.runs.noted(block.0)),
            &mut sought,
        );
        // The run that ends with the parent and has no child runs.
        let mut open: Option<(u32, RunLabel)> = None;
        let pairs = blocks.iter().zip(&sought);
        for (at, (block, &sought)) in pairs.enumerate() {
            let partial = partial_tail && at + 1 == count;
            let ghost = self.ghosts.take_sought(sought);
            match open {
                Some((run, of_run)) => {
                    let label = self.label(ghost, Some(of_run), partial, said);
                    if label == of_run {
                        self.runs.extend(run, block.0);
                    } else {
                        let run = self.insert(block.0, parent, label);
                        open = Some((run, label));
                    }
                }
                None => {
                    if let Some(parent) = parent {
                        self.split_after(parent);
                    }
                    let before = parent.and_then(|parent| self.runs.of(parent));
                    let label = before.map(|run| self.runs.label(run));
                    let label = self.label(ghost, label, partial, said);
                    let run = self.insert(block.0, before.and(parent), label);
                    open = Some((run, label));
                }
            }
            self.clock += 1;
            parent = Some(block.0);
        }
        self.sought = sought;
    }

    /// The label of a block that is stored now, after a block with the label `before`.
    #[inline]
    fn label(
        &mut self,
        ghost: Option<GittinsGhost>,
        before: Option<RunLabel>,
        partial: bool,
        said: &RunLabel,
    ) -> RunLabel {
        let count = ghost.map_or(1, |ghost| (ghost.count + 1).min(COUNT_MAX));
        let kind = match (ghost, before) {
            (Some(ghost), _) => {
                self.observed.hit(ghost.class, ghost.age(self.clock), 1.0);
                class::used(count)
            }
            (None, None) => class::new(0),
            // The parent was stored by this request too: its kind comes from the last block that
            // was stored before the request.
            (None, Some(before)) if before.count == 1 && before.class.kind() != class::PARTIAL => {
                before.class.kind()
            }
            (None, Some(before)) => class::new((before.count - 1).max(1)),
        };
        let kind = if partial { class::PARTIAL } else { kind };
        RunLabel {
            class: BlockClass::new(kind, said.class.output()),
            count,
            ..*said
        }
    }

    /// Inserts a stored block after the last block of a run, or as a root. Returns its run.
    fn insert(&mut self, block: u32, parent: Option<u32>, label: RunLabel) -> u32 {
        let now = self.clock;
        let before = parent.and_then(|parent| self.runs.of(parent));
        let same = |&run: &u32| self.runs.child_count(run) == 0 && self.runs.label(run) == label;
        let extends = before.filter(same);
        match (extends, before) {
            (Some(run), _) => {
                self.runs.extend(run, block);
                // A request that stores block after block uses its run all the time. Updating an
                // ordered set each time is not worth it.
                if now - self.runs.touched(run) > u64::from(self.runs.length(run)) * 2 {
                    self.unlist(run);
                    self.refresh(run);
                }
                self.list(run);
                run
            }
            (None, before) => {
                if let Some(before) = before {
                    self.unlist(before);
                    self.refresh(before);
                }
                let run = self.runs.start(NewRun {
                    block,
                    parent,
                    touch: now,
                    label,
                });
                self.list(run);
                run
            }
        }
    }

    /// Marks a run that got a new child as used now, with all of its ancestors.
    pub(super) fn refresh(&mut self, run: u32) {
        let mut at = Some(run);
        while let Some(run) = at
            && self.runs.touched(run) < self.clock
        {
            self.runs.set_touched(run, self.clock);
            at = self.runs.parent_run(run);
        }
    }
}
