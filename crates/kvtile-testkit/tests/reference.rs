//! The reference compared with layouts written by hand, and its checks on deliberate mistakes.
#![expect(clippy::unwrap_used, reason = "tests")]

use kvtile_layout::{Axis, Plane, Shape, StridedLayout, Unit, Word};
use kvtile_testkit::{
    NaivePair, NaiveRange, NaiveSelection, ReferenceLayout, TestkitError, check, check_padding,
    naive_copy,
};

fn key_value(blocks: u64, layers: u64, page: u64, heads: u64, head_size: u64) -> Shape {
    let unit = Unit::named("bf16").unwrap();
    Shape::key_value(blocks, layers, page, heads, head_size, &unit).unwrap()
}

fn reference(word: &str, shape: &Shape, alignment: u64) -> ReferenceLayout {
    ReferenceLayout::new(&Word::parse(word).unwrap(), shape, alignment).unwrap()
}

fn offsets(layout: &ReferenceLayout) -> Vec<(usize, u64)> {
    let place = |unit: &kvtile_testkit::ReferenceUnit| (unit.place.region, unit.place.offset);
    layout.units().iter().map(place).collect()
}

#[test]
fn units_are_in_the_order_of_the_word() {
    let shape = key_value(1, 1, 2, 1, 3);
    let layout = reference("BLKCN", &shape, 1);
    let order: Vec<(usize, u64, u64)> = layout
        .units()
        .iter()
        .map(|unit| (unit.plane, unit.index[3].1, unit.index[2].1))
        .collect();
    let one = [(0, 0), (0, 1), (1, 0), (1, 1), (2, 0), (2, 1)];
    let expected: Vec<(usize, u64, u64)> = (0..2)
        .flat_map(|plane| one.map(|(c, n)| (plane, c, n)))
        .collect();
    assert_eq!(order, expected);
    let contiguous: Vec<(usize, u64)> = (0..12).map(|i| (0, i * 2)).collect();
    assert_eq!(offsets(&layout), contiguous);
}

#[test]
fn a_modulus_is_a_tile_and_may_be_the_slower_digit() {
    let plane = Plane::new("c", Unit::raw(1).unwrap()).unwrap();
    let shape = Shape::new(1, 1, 1, vec![plane.extent(Axis::C, 6)]).unwrap();
    let order = |word: &str| -> Vec<u64> {
        let units = reference(word, &shape, 1).units().to_vec();
        units.iter().map(|unit| unit.index[3].1).collect()
    };
    assert_eq!(order("CC2"), [0, 1, 2, 3, 4, 5]);
    assert_eq!(order("C2C"), [0, 2, 4, 1, 3, 5]);
    assert_eq!(order("C6"), [0, 1, 2, 3, 4, 5]);
    assert_eq!(order("C3C"), [0, 3, 1, 4, 2, 5]);
}

/// Planes of different extents may share a slow digit if it has the same number of values for each:
/// here a scale for every three units.
#[test]
fn planes_may_share_a_digit_that_counts_different_units() {
    let plane = |name, c| {
        let plane = Plane::new(name, Unit::raw(1).unwrap()).unwrap();
        plane.extent(Axis::C, c)
    };
    let shape = Shape::new(1, 1, 1, vec![plane("s", 2), plane("k", 6)]).unwrap();
    let layout = reference("C(s,kC3)", &shape, 1);
    let order: Vec<(usize, u64)> = layout
        .units()
        .iter()
        .map(|unit| (unit.plane, unit.index[3].1))
        .collect();
    let expected = [
        (0, 0),
        (1, 0),
        (1, 1),
        (1, 2),
        (0, 1),
        (1, 3),
        (1, 4),
        (1, 5),
    ];
    assert_eq!(order, expected);
    let word = Word::parse("C(s,k)C3").unwrap();
    assert!(ReferenceLayout::new(&word, &shape, 1).is_err());
}

#[test]
fn rules_and_alignment_pad_strides() {
    let plane = Plane::new("c", Unit::raw(1).unwrap()).unwrap();
    let shape = Shape::new(2, 2, 1, vec![plane.extent(Axis::C, 3)]).unwrap();
    let starts = |word: &str, alignment| {
        let layout = reference(word, &shape, alignment);
        let first = |b, l| {
            let place = layout.place("c", &[(Axis::B, b), (Axis::L, l)]).unwrap();
            (place.region, place.offset)
        };
        let starts = [first(0, 0), first(0, 1), first(1, 0), first(1, 1)];
        (starts, layout.region_bytes().to_vec())
    };
    assert_eq!(
        starts("BLC", 1),
        ([(0, 0), (0, 3), (0, 6), (0, 9)], vec![12])
    );
    assert_eq!(
        starts("BLC", 8),
        ([(0, 0), (0, 3), (0, 8), (0, 11)], vec![16])
    );
    assert_eq!(
        starts("BL@4C", 1),
        ([(0, 0), (0, 4), (0, 8), (0, 12)], vec![16])
    );
    assert_eq!(
        starts("BL=5C", 1),
        ([(0, 0), (0, 5), (0, 10), (0, 15)], vec![20])
    );
    assert_eq!(
        starts("L|BC", 4),
        ([(0, 0), (1, 0), (0, 4), (1, 4)], vec![8, 8])
    );
}

#[test]
fn words_that_are_no_layout_are_refused() {
    let shape = key_value(2, 2, 4, 2, 4);
    for text in [
        "BLNHC",
        "BLKNH",
        "BLKNHCC",
        "BLKKNHC",
        "BLKNHCX",
        "BLKNHC3",
        "BLkNHC",
        "BL(kNHC,NkHC)",
        "BL(kNHC,cNHC)",
        "L|BK(kNHC,v|NHC)",
        "L@64|BKNHC",
        "BLKNHC=1",
    ] {
        let word = Word::parse(text).unwrap();
        assert!(ReferenceLayout::new(&word, &shape, 1).is_err(), "{text}");
        assert!(StridedLayout::resolve(&word, &shape, 1).is_err(), "{text}");
    }
}

#[test]
fn the_pattern_sees_swapped_planes_shifted_blocks_and_written_padding() {
    let shape = key_value(2, 2, 4, 2, 4);
    let layout = reference("BL@512KNHC", &shape, 1);
    let image = layout.filled(7).unwrap();
    check(&layout, &image, 7).unwrap();
    assert!(check(&layout, &image, 8).is_err());

    let other = reference("BL@512(v,k)NHC", &shape, 1);
    assert!(matches!(
        check(&other, &image, 7),
        Err(TestkitError::WrongByte { .. })
    ));
    let mut shifted = image.clone();
    shifted[0].rotate_left(1024);
    assert!(check(&layout, &shifted, 7).is_err());
    let mut stray = image.clone();
    stray[0][511] ^= 1;
    assert!(matches!(
        check_padding(&layout, &stray),
        Err(TestkitError::PaddingWritten { offset: 511, .. })
    ));
}

#[test]
fn the_naive_copy_moves_what_was_selected_and_nothing_else() {
    let (whole, half) = (key_value(3, 2, 4, 4, 2), key_value(2, 1, 2, 2, 2));
    let src = reference("BHLKNC", &whole, 1);
    let dst = reference("L|KBNHC", &half, 64);
    let from = src.filled(1).unwrap();
    let mut to = dst.poisoned().unwrap();
    let selection = NaiveSelection {
        pairs: vec![NaivePair {
            src_block: 2,
            src_token: 3,
            dst_block: 1,
            dst_token: 0,
            tokens: 1,
        }],
        layers: NaiveRange {
            src_start: 1,
            dst_start: 0,
            count: 1,
        },
        heads: NaiveRange {
            src_start: 2,
            dst_start: 0,
            count: 2,
        },
    };
    let bytes = naive_copy(&src, &from, &dst, &mut to, &selection).unwrap();
    assert_eq!(bytes, 2 * 2 * 2 * 2);
    let before = dst.poisoned().unwrap();
    let changed = to[0].iter().zip(&before[0]).filter(|(a, b)| a != b).count();
    assert!(changed > 8 && changed <= 16, "{changed}");
    let (from_place, to_place) = (
        src.place(
            "v",
            &[(Axis::B, 2), (Axis::L, 1), (Axis::N, 3), (Axis::H, 3)],
        ),
        dst.place("v", &[(Axis::B, 1), (Axis::H, 1)]),
    );
    let (a, b) = (from_place.unwrap().offset, to_place.unwrap().offset);
    let (a, b) = (usize::try_from(a).unwrap(), usize::try_from(b).unwrap());
    assert_eq!(from[0][a..a + 4], to[0][b..b + 4]);
}
