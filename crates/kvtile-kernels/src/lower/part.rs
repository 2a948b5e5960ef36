//! Parts of plans, for memory that does not hold what a whole plan moves.

use kvtile_layout::{CopyPlan, PairBase, PlanClass};

/// Some pairs of some classes of a plan, in its order.
#[derive(Clone, Debug)]
pub struct PlanPart<'p> {
    plan: &'p CopyPlan,
    classes: Vec<(&'p PlanClass, &'p [PairBase])>,
    bytes: u64,
}

impl<'p> PlanPart<'p> {
    /// All of `plan`.
    #[must_use]
    pub fn whole(plan: &'p CopyPlan) -> PlanPart<'p> {
        let classes = plan.classes().iter();
        PlanPart {
            plan,
            classes: classes
                .map(|class| (class, class.pairs.as_slice()))
                .collect(),
            bytes: plan.bytes(),
        }
    }

    /// `plan` in parts of at most `bytes_max` bytes; `None` if one pair has more.
    #[must_use]
    pub fn of_at_most(plan: &'p CopyPlan, bytes_max: u64) -> Option<Vec<PlanPart<'p>>> {
        let empty = || PlanPart {
            plan,
            classes: Vec::new(),
            bytes: 0,
        };
        let (mut parts, mut part) = (Vec::new(), empty());
        for class in plan.classes() {
            let nests = class.nests.iter();
            let each = nests.fold(0u64, |bytes, nest| bytes.saturating_add(nest.bytes()));
            let mut pairs = class.pairs.as_slice();
            while !pairs.is_empty() {
                let fit = (bytes_max - part.bytes).checked_div(each);
                let fit = fit.map_or(pairs.len(), |fit| {
                    usize::try_from(fit).unwrap_or(usize::MAX)
                });
                let (now, later) = pairs.split_at(fit.min(pairs.len()));
                pairs = later;
                if !now.is_empty() {
                    part.bytes += each * now.len() as u64;
                    part.classes.push((class, now));
                } else if part.bytes == 0 {
                    return None;
                }
                if !pairs.is_empty() {
                    parts.push(std::mem::replace(&mut part, empty()));
                }
            }
        }
        if part.bytes > 0 {
            parts.push(part);
        }
        Some(parts)
    }

    /// Bytes that it moves.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The plan.
    pub(crate) fn plan(&self) -> &'p CopyPlan {
        self.plan
    }

    /// The classes with their pairs in this part.
    pub(crate) fn classes(&self) -> impl Iterator<Item = (&'p PlanClass, &'p [PairBase])> + '_ {
        self.classes.iter().copied()
    }
}
