//! What copies between layouts of engines cost, by the counts of the interpreter: gates that a change of the kernels
//! or of the lowering has to pass. The counts are a model, they were not compared with hardware.

use kvtile_layout::{CopyPlan, Selection, Shape, StridedLayout, Unit};
use kvtile_ptx::{PtxAccessCounts, PtxCounts};
use kvtile_testkit::{NaiveSelection, ReferenceLayout, naive_copy};

use crate::run::{DevicePlacement, run_plan};

/// A copy and the most that it may cost.
struct CountedCopy {
    from: &'static str,
    to: &'static str,
    element: u64,
    /// Instructions of all threads for 16 bytes.
    instructions_max: f64,
    /// The least part of the sectors of stores that is ideal.
    stores_min: f64,
}

impl CountedCopy {
    const fn new(
        from: &'static str,
        to: &'static str,
        element: u64,
        instructions_max: f64,
    ) -> CountedCopy {
        CountedCopy {
            from,
            to,
            element,
            instructions_max,
            stores_min: 0.95,
        }
    }

    /// A destination in which a column of a tile is half a sector.
    const fn stores(self, stores_min: f64) -> CountedCopy {
        CountedCopy { stores_min, ..self }
    }
}

/// Pages of 16 tokens, 8 heads of 128 elements.
const COPIES: [CountedCopy; 10] = [
    CountedCopy::new("L|KBNHC", "BLKNHC", 2, 20.0),
    CountedCopy::new("L|KBNHC", "BLKHNC", 2, 25.0),
    CountedCopy::new("BLKHNC", "L|BKNHC", 2, 25.0),
    CountedCopy::new("BLKNHC", "L|BH(kCN,vNC)", 2, 60.0),
    CountedCopy::new("L|BH(kCN,vNC)", "BLKNHC", 2, 60.0),
    CountedCopy::new("L|KBHCNC8", "BLKNHC", 2, 40.0),
    CountedCopy::new("BLKNHC", "L|KBHCNC8", 2, 40.0),
    CountedCopy::new("L|BH(kCN,vNC)", "BLKNHC", 1, 60.0),
    CountedCopy::new("BLKNHC", "L|BH(kCN,vNC)", 1, 60.0).stores(0.65),
    CountedCopy::new("BLKNHC", "L|BH(kCN,vNC)", 4, 60.0),
];

fn ideal(counts: PtxAccessCounts) -> f64 {
    counts.sectors_ideal as f64 / counts.sectors as f64
}

/// Copies two of four blocks, the second one first.
fn count(copy: &CountedCopy) -> (PtxCounts, u64, String) {
    let shape = Shape::key_value(4, 2, 16, 8, 128, Unit::raw(copy.element).unwrap()).unwrap();
    let layout = |word: &str| StridedLayout::resolve(&word.parse().unwrap(), &shape, 1).unwrap();
    let (source, destination) = (layout(copy.from), layout(copy.to));
    let selection = Selection::blocks(&[3, 1], &[0, 2], 16).unwrap();
    let plan = CopyPlan::new(&source, &destination, &selection).unwrap();
    let reference = |layout| ReferenceLayout::from_strided(layout).unwrap();
    let (source, destination) = (reference(&source), reference(&destination));
    let (from, to) = (source.filled(1).unwrap(), destination.poisoned().unwrap());
    let mut expected = to.clone();
    let naive = NaiveSelection::of(&selection, &shape, &shape);
    naive_copy(&source, &from, &destination, &mut expected, &naive).unwrap();
    let done = run_plan(&plan, &from, &to, DevicePlacement::ALIGNED);
    assert!(done.destination == expected, "{plan}");
    let kernels: Vec<&str> = done
        .program
        .launches()
        .iter()
        .map(|launch| launch.kernel().name())
        .collect();
    (done.counts, plan.bytes(), kernels.join(" + "))
}

#[test]
fn copies_between_layouts_of_engines_stay_below_their_costs() {
    let mut failed = Vec::new();
    for copy in &COPIES {
        let (counts, bytes, kernels) = count(copy);
        let instructions = counts.instructions as f64 / (bytes as f64 / 16.0);
        let (loads, stores) = (ideal(counts.constant_loads), ideal(counts.stores));
        let passes = match counts.shared.passes_ideal {
            0 => 1.0,
            ideal => counts.shared.passes as f64 / ideal as f64,
        };
        let line = format!(
            "| `{}` → `{}`, {} B | {kernels} | {instructions:.1} | {loads:.2}, {stores:.2} | {passes:.2} |",
            copy.from, copy.to, copy.element
        );
        eprintln!("{line}");
        if instructions > copy.instructions_max
            || loads < 0.95
            || stores < copy.stores_min
            || passes > 1.5
        {
            failed.push(line);
        }
    }
    assert!(failed.is_empty(), "above the gates:\n{}", failed.join("\n"));
}
