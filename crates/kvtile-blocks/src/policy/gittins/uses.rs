//! How the policy handles a request that found blocks: their runs are used, and the runs beside
//! them are passed over.

use super::{
    Gittins,
    class::{self, BlockClass, COUNT_MAX},
    runs::RunLabel,
};
use crate::BlockId;

/// A run with more child runs than this is a prompt common to many requests: the choice of one
/// child carries no information about the others.
const PASSED_CHILDREN_MAX: u32 = 16;

/// The maximum number of blocks that one request passes over.
const PASSED_BLOCKS_MAX: u32 = 1024;

impl Gittins {
    /// Processes a request that found blocks.
    pub(super) fn visit(&mut self, blocks: &[BlockId], partial: bool, said: &RunLabel) {
        let Some(last) = blocks.last() else {
            return;
        };
        self.requests += 1;
        self.split_after(last.0);
        if let Some(run) = self.runs.of(last.0) {
            self.pass_over(run);
        }
        if partial && let Some(parent) = self.runs.parent(last.0) {
            self.split_after(parent);
        }
        let mut rest = blocks;
        while let Some(first) = rest.first() {
            if let Some(parent) = self.runs.parent(first.0) {
                self.split_after(parent);
            }
            let run = self.runs.of(first.0);
            // A run may continue with other blocks than the visit.
            let same = |block: &&BlockId| run.is_some() && self.runs.of(block.0) == run;
            let len = rest.iter().take_while(same).count().max(1);
            if let Some(end) = rest.get(len - 1) {
                self.split_after(end.0);
            }
            let run = self.runs.of(first.0);
            let tail = partial && len >= rest.len();
            if let Some(run) = run {
                // If other tiers hold the blocks before these, the visit starts after them.
                // Ancestors that are stored here as well count as used.
                if let Some(before) = self.runs.parent_run(run) {
                    self.refresh(before);
                }
                self.touch(run, tail.then_some(class::PARTIAL), said);
            }
            rest = rest.get(len..).unwrap_or_default();
        }
        self.clock += blocks.len() as u64;
    }

    /// Counts a use of a whole run.
    fn touch(&mut self, run: u32, kind: Option<u8>, said: &RunLabel) {
        self.unlist(run);
        let now = self.clock;
        let RunLabel {
            class,
            count,
            priority,
            expires,
        } = self.runs.label(run);
        let age = now - self.runs.touched(run);
        self.observed.hit(class, age, self.runs.length(run) as f32);
        let count = (count + 1).min(COUNT_MAX);
        let kind = kind.unwrap_or(class::used(count));
        self.runs.set_touched(run, now);
        let label = RunLabel {
            class: BlockClass::new(kind, said.class.output()),
            count,
            priority: towards(priority, said.priority),
            expires: expires.max(said.expires),
        };
        self.runs.set_label(run, label);
        self.list(run);
    }

    /// Passes over all descendants of `run`, the last run of a request: the request continued
    /// differently or ended there.
    fn pass_over(&mut self, run: u32) {
        if self.runs.child_count(run) > PASSED_CHILDREN_MAX {
            return;
        }
        let mut stack = std::mem::take(&mut self.stack);
        stack.extend(self.runs.children(run));
        let mut passed = 0;
        while let Some(run) = stack.pop() {
            // If a run is at the cap of passes, so are all of its descendants.
            let Some(class) = self.runs.class(run).passed() else {
                continue;
            };
            if passed >= PASSED_BLOCKS_MAX {
                break;
            }
            self.unlist(run);
            let age = self.clock - self.runs.touched(run);
            let length = self.runs.length(run);
            self.observed.end(self.runs.class(run), age, length as f32);
            self.observed.enter(class, age, length as f32);
            passed += length;
            self.runs.set_class(run, class);
            self.list(run);
            stack.extend(self.runs.children(run));
        }
        stack.clear();
        self.stack = stack;
    }
}

/// The next priority: a use with a lower priority lowers it by one step.
fn towards(is: i8, wanted: i8) -> i8 {
    if wanted >= is { wanted } else { is - 1 }
}
