//! Random transfers in parts, with one side packed: the packed bytes are exactly those that a part moves, and through them
//! all parts together equal a copy unit by unit.

use std::cell::RefCell;

use kvtile_kernels::{MoveSide, PackedSide, PlanPart, lower_part};
use kvtile_layout::{CopyPlan, StridedLayout};
use kvtile_ptx::PtxRanges;
use kvtile_testkit::{
    Image,
    generate::{LayoutCase, TransferCase, config, transfers},
    naive_copy,
};

use crate::run::{DevicePlacement, KERNELS, launch_all};

/// Where packed bytes are.
const PACKED: u64 = 0x7c00_0000_0000;

/// The bytes of a piece in an image.
fn range(bytes: u64, offset: u64) -> std::ops::Range<usize> {
    let start = usize::try_from(offset).unwrap();
    start..start + usize::try_from(bytes).unwrap()
}

/// Copies a part through its packed destination; false if it has none.
fn through_destination(part: &PlanPart<'_>, from: &Image, to: &mut Image) -> bool {
    let Some(packed) = PackedSide::of_destination(part) else {
        return false;
    };
    assert_eq!(packed.bytes(), part.bytes());
    let sources = DevicePlacement::regions(DevicePlacement::ALIGNED.source, from);
    let sides = (
        MoveSide::Regions(&sources),
        MoveSide::Packed(&packed, PACKED),
    );
    let program = lower_part(part, sides.0, sides.1).unwrap();
    let mut memory = PtxRanges::new();
    for (region, bytes) in sources.iter().zip(from) {
        memory = memory.readable(region.address, bytes.clone());
    }
    let empty = vec![0; usize::try_from(part.bytes()).unwrap()];
    memory = memory.writable(PACKED, empty);
    let (memory, _) = launch_all(&KERNELS, &program, memory, 2).unwrap();
    assert_eq!(
        (memory.written_twice(), memory.written_bytes()),
        (None, part.bytes())
    );
    let bytes = memory.bytes(PACKED).unwrap();
    for piece in packed.pieces() {
        let region = to
            .get_mut(usize::try_from(piece.start.region).unwrap())
            .unwrap();
        let place = region
            .get_mut(range(piece.bytes, piece.start.offset))
            .unwrap();
        place.copy_from_slice(bytes.get(range(piece.bytes, piece.at)).unwrap());
    }
    true
}

/// Copies a part through its packed source; false if it has none.
fn through_source(part: &PlanPart<'_>, from: &Image, to: &mut Image) -> bool {
    let Some(packed) = PackedSide::of_source(part) else {
        return false;
    };
    let mut bytes = vec![0; usize::try_from(packed.bytes()).unwrap()];
    for piece in packed.pieces() {
        let region = from
            .get(usize::try_from(piece.start.region).unwrap())
            .unwrap();
        let place = bytes.get_mut(range(piece.bytes, piece.at)).unwrap();
        place.copy_from_slice(region.get(range(piece.bytes, piece.start.offset)).unwrap());
    }
    let destinations = DevicePlacement::regions(DevicePlacement::ALIGNED.destination, to);
    let sides = (
        MoveSide::Packed(&packed, PACKED),
        MoveSide::Regions(&destinations),
    );
    let program = lower_part(part, sides.0, sides.1).unwrap();
    let mut memory = PtxRanges::new().readable(PACKED, bytes);
    for (region, bytes) in destinations.iter().zip(&*to) {
        memory = memory.writable(region.address, bytes.clone());
    }
    let (memory, _) = launch_all(&KERNELS, &program, memory, 2).unwrap();
    for (region, bytes) in destinations.iter().zip(to) {
        bytes.copy_from_slice(memory.bytes(region.address).unwrap());
    }
    true
}

/// Whether the case was copied through packed bytes of the destination, and of the source; `None` if it has no plan or
/// no parts.
fn run(case: &TransferCase, divisor: u64) -> Option<(bool, bool)> {
    let resolve = |case: &LayoutCase| {
        StridedLayout::resolve(&case.word, &case.shape, case.alignment).unwrap()
    };
    let (source, destination) = (resolve(&case.src), resolve(&case.dst));
    let plan = CopyPlan::new(&source, &destination, &case.selection.selection()).ok()?;
    let bytes_max = plan.bytes().div_ceil(divisor);
    let parts = PlanPart::of_at_most(&plan, bytes_max)?;
    assert!(
        parts
            .iter()
            .all(|part| (1..=bytes_max).contains(&part.bytes()))
    );
    assert_eq!(parts.iter().map(PlanPart::bytes).sum::<u64>(), plan.bytes());
    let (src, dst) = (case.src.reference().unwrap(), case.dst.reference().unwrap());
    let (from, to) = (src.filled(1).unwrap(), dst.filled(2).unwrap());
    let mut expected = to.clone();
    naive_copy(&src, &from, &dst, &mut expected, &case.selection).unwrap();
    let through = |copy: fn(&PlanPart<'_>, &Image, &mut Image) -> bool| {
        let mut found = to.clone();
        let is_packed = parts.iter().all(|part| copy(part, &from, &mut found));
        assert!(!is_packed || found == expected, "{plan}");
        is_packed
    };
    Some((through(through_destination), through(through_source)))
}

#[test]
fn parts_through_packed_sides_copy_what_the_naive_copy_copies() {
    let counts: RefCell<[u32; 3]> = RefCell::default();
    let mut runner = proptest::test_runner::TestRunner::new(config(200));
    runner
        .run(&(transfers(), 1..4u64), |(case, divisor)| {
            if let Some((destination, source)) = run(&case, divisor) {
                let [all, of_destination, of_source] = &mut *counts.borrow_mut();
                *all += 1;
                *of_destination += u32::from(destination);
                *of_source += u32::from(source);
            }
            Ok(())
        })
        .unwrap();
    let [all, destination, source] = counts.into_inner();
    eprintln!(
        "{all} cases: {destination} with a packed destination, {source} with a packed source"
    );
    assert!(6 * destination > all && 10 * source > all);
}
