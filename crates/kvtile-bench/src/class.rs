//! Classes of copies, by the runs of their plan, and the goal of each.

use std::fmt;

use kvtile::layout::{AddressStep, CopyPlan, Loop};
use serde::{Deserialize, Serialize};

/// Longer runs count as contiguous: the order of the other loops no longer matters.
const CONTIGUOUS_BYTES: u64 = 4096;

/// Shortest rows of one head of one token in the measured models.
const ROW_BYTES: u64 = 128;

/// Shortest pieces with a goal where nothing is permuted.
const PIECE_BYTES: u64 = 256;

/// Longest run that a transpose in registers moves as one element.
const ELEMENT_BYTES: u64 = 16;

/// The class of a copy, by the shortest run of its plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CopyClass {
    /// Runs of 4 KiB and more.
    Contiguous,
    /// Runs of 128 bytes and more, in another order on the other side.
    Rows,
    /// Runs of 128 bytes and more in the same order on both sides, with gaps.
    Pieces,
    /// Runs of 17 to 127 bytes.
    ShortRows,
    /// Runs of at most 16 bytes: transposes of elements and small tiles.
    Elements,
    /// One block of one layer, from the call to its completion.
    FixedCost,
    /// A file on one side.
    File,
    /// One flat `memcpy`, on more threads than one.
    Flat,
}

impl CopyClass {
    /// The class of a plan.
    #[must_use]
    pub fn of(plan: &CopyPlan) -> CopyClass {
        let (_, shortest) = plan.run_bytes();
        match shortest {
            CONTIGUOUS_BYTES.. => CopyClass::Contiguous,
            ROW_BYTES.. if permutes(plan) => CopyClass::Rows,
            ROW_BYTES.. => CopyClass::Pieces,
            bytes if bytes > ELEMENT_BYTES => CopyClass::ShortRows,
            _ => CopyClass::Elements,
        }
    }

    /// The lowest sufficient ratio to one flat `memcpy` on one thread; `None` where the class has
    /// no goal. In the cache, a goal is never above 0.9.
    #[must_use]
    pub fn goal(self, run_bytes_min: u64, threads: u32, in_cache: bool) -> Option<f64> {
        let goal = match (self, threads) {
            (CopyClass::Contiguous, 1) => 0.95,
            (CopyClass::Contiguous, 2) => 1.8,
            (CopyClass::Rows, 1) => 0.9,
            (CopyClass::Rows, 2) => 1.6,
            (CopyClass::Pieces, 1 | 2) if run_bytes_min >= PIECE_BYTES => 0.7,
            (CopyClass::Elements, 1 | 2) => 0.6,
            _ => return None,
        };
        Some(if in_cache { f64::min(goal, 0.9) } else { goal })
    }

    /// The title of the class in reports.
    #[must_use]
    pub fn title(self) -> &'static str {
        match self {
            CopyClass::Contiguous => "contiguous: runs of 4 KiB and more",
            CopyClass::Rows => "rows: runs of 128 bytes and more, permuted",
            CopyClass::Pieces => "pieces: runs of 128 bytes and more, in order, with gaps",
            CopyClass::ShortRows => "short rows: runs of 17 to 127 bytes",
            CopyClass::Elements => "elements: transposes of 1 to 16 bytes",
            CopyClass::FixedCost => "fixed cost: one block of one layer",
            CopyClass::File => "files",
            CopyClass::Flat => "flat memcpy",
        }
    }
}

impl fmt::Display for CopyClass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.title())
    }
}

/// Whether some nest visits the source in another order than the destination.
fn permutes(plan: &CopyPlan) -> bool {
    let further = |step: AddressStep| (step.regions, step.bytes);
    let nests = plan.classes().iter().flat_map(|class| class.nests.iter());
    nests.into_iter().any(|nest| {
        let falls = |step: &dyn Fn(&Loop) -> AddressStep| {
            let steps: Vec<_> = nest.loops.iter().map(|l| further(step(l))).collect();
            steps.is_sorted_by(|outer, inner| outer >= inner)
        };
        !(falls(&|l| l.source) && falls(&|l| l.destination))
    })
}

#[cfg(test)]
mod tests {
    use kvtile::layout::{Axis, Plane, Selection, Shape, StridedLayout, Unit};

    use super::*;

    fn class(from: &str, to: &str) -> CopyClass {
        let unit = Unit::named("bf16").unwrap();
        class_of(
            &Shape::key_value(4, 4, 16, 8, 128, &unit).unwrap(),
            from,
            to,
        )
    }

    fn class_of(shape: &Shape, from: &str, to: &str) -> CopyClass {
        let layout = |word: &str| StridedLayout::resolve(&word.parse().unwrap(), shape, 1).unwrap();
        let selection = Selection::blocks(&[0, 2], &[3, 1], 16).unwrap();
        CopyClass::of(&CopyPlan::new(&layout(from), &layout(to), &selection).unwrap())
    }

    #[test]
    fn plans_fall_into_the_classes_that_the_goals_speak_of() {
        assert_eq!(class("L|KBNHC", "BLKNHC"), CopyClass::Contiguous);
        assert_eq!(class("L|KBNHC", "KBLNHC"), CopyClass::Contiguous);
        assert_eq!(class("L|KBNHC", "BHLKNC"), CopyClass::Rows);
        assert_eq!(class("BLKNHC", "BLKHNC"), CopyClass::Rows);
        assert_eq!(class("L|BNHKC", "L|BKNHC"), CopyClass::Rows);
        assert_eq!(class("L|BH(kCN,vNC)", "BHLKNC"), CopyClass::Elements);
        assert_eq!(class("L|B(kHCNC8,vHCN)", "BLKNHC"), CopyClass::Elements);
    }

    #[test]
    fn rows_in_the_same_order_with_gaps_are_pieces() {
        let plane = |name, content| {
            let plane = Plane::new(name, Unit::named("bf16").unwrap()).unwrap();
            plane.extent(Axis::C, content)
        };
        let latent = Shape::new(4, 4, 16, vec![plane("c", 512), plane("r", 64)]).unwrap();
        assert_eq!(class_of(&latent, "L|BNKC", "BLKNC"), CopyClass::Pieces);
    }

    #[test]
    fn goals_are_those_that_were_set() {
        assert_eq!(CopyClass::Contiguous.goal(4096, 1, false), Some(0.95));
        assert_eq!(CopyClass::Contiguous.goal(4096, 1, true), Some(0.9));
        assert_eq!(CopyClass::Contiguous.goal(4096, 2, false), Some(1.8));
        assert_eq!(CopyClass::Rows.goal(256, 2, false), Some(1.6));
        assert_eq!(CopyClass::Pieces.goal(128, 1, false), None);
        assert_eq!(CopyClass::Pieces.goal(256, 1, false), Some(0.7));
        assert_eq!(CopyClass::Elements.goal(2, 1, true), Some(0.6));
        assert_eq!(CopyClass::Contiguous.goal(4096, 3, false), None);
    }
}
