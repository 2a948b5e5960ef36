//! Plans that do not fit the regions they are lowered for.

use kvtile_kernels::{LowerError, MoveRegion, lower};
use kvtile_layout::{CopyPlan, Selection, Shape, StridedLayout, Unit};

fn plan() -> CopyPlan {
    let shape = Shape::key_value(4, 3, 16, 2, 8, Unit::raw(2).unwrap()).unwrap();
    let layout = |word: &str| StridedLayout::resolve(&word.parse().unwrap(), &shape, 1).unwrap();
    let selection = Selection::blocks(&[3], &[1], 16).unwrap();
    CopyPlan::new(&layout("L|KBNHC"), &layout("BLKHNC"), &selection).unwrap()
}

fn regions(count: u64, bytes: u64) -> Vec<MoveRegion> {
    let region = |i| MoveRegion {
        address: 0x1000_0000 * (1 + i),
        bytes,
    };
    (0..count).map(region).collect()
}

/// A layer of the source has 2 x 4 x 512 bytes, the destination all 12 x 1024.
#[test]
fn regions_that_are_too_few_or_too_small_are_named() {
    let plan = plan();
    assert_eq!(
        lower(&plan, &regions(3, 4096), &regions(1, 12_288))
            .unwrap()
            .bytes(),
        3072
    );
    // Block 1 ends before the last blocks of the destination.
    assert!(lower(&plan, &regions(3, 4096), &regions(1, 6144)).is_ok());
    let refused = |source: &[MoveRegion], destination: &[MoveRegion]| {
        lower(&plan, source, destination).unwrap_err()
    };
    let expected = LowerError::NoRegion {
        side: "source",
        region: 2,
        regions: 2,
    };
    assert_eq!(refused(&regions(2, 4096), &regions(1, 12_288)), expected);
    let expected = LowerError::NoRegion {
        side: "destination",
        region: 0,
        regions: 0,
    };
    assert_eq!(refused(&regions(3, 4096), &[]), expected);
    let mut small = regions(3, 4096);
    small[1].bytes = 4095;
    assert_eq!(
        refused(&small, &regions(1, 12_288)).to_string(),
        "the plan reaches byte 4096 of region 1 of its source, which has 4095 bytes"
    );
    assert_eq!(
        refused(&regions(3, 4096), &regions(1, 6143)).to_string(),
        "the plan reaches byte 6144 of region 0 of its destination, which has 6143 bytes"
    );
}

#[test]
fn regions_at_equal_distances_need_no_table() {
    let plan = plan();
    let program = lower(&plan, &regions(3, 4096), &regions(1, 12_288)).unwrap();
    assert_eq!(program.tables(), [] as [u64; 0]);
    let mut apart = regions(3, 4096);
    apart[2].address += 64;
    let program = lower(&plan, &apart, &regions(1, 12_288)).unwrap();
    assert_eq!(program.tables(), [0, 0x1000_0000, 0x2000_0040]);
}
