//! Leases of layers: the location of their bytes, and refused requests.
#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests")]

use std::ops::Range;

use kvtile_layout::{
    AddressStep, Axis, Digit, LayoutError, PlanError, PlaneDigits, RangePair, ResolveError, Shape,
    StridedLayout, Unit, UnitIndex, Word, tradition::LayoutSpec,
};
use kvtile_testkit::generate::{config, layouts};
use kvtile_transfer::{
    CopyError, FillPattern, LayoutHandle, LeaseError, LeaseMode, PhysicalLayout, TransferError,
    TransferManager, TransferOptions,
};

const BLOCKS: u64 = 3;
const LAYERS: u64 = 4;

/// Bytes of a layer of a block: two planes of 2 tokens, 2 heads and 4 elements of 2 bytes.
const LAYER_BYTES: u64 = 64;

fn shape() -> Shape {
    Shape::key_value(BLOCKS, LAYERS, 2, 2, 4, Unit::raw(2).unwrap()).unwrap()
}

fn built(spec: impl Into<LayoutSpec>, alignment: u64) -> PhysicalLayout {
    let builder = PhysicalLayout::builder().with_aligned_shape(shape(), alignment);
    builder.layout(spec).allocate_system().build().unwrap()
}

fn word(word: &str, alignment: u64) -> PhysicalLayout {
    built(word.parse::<Word>().unwrap(), alignment)
}

/// Region and offset of every byte of one block and layer, sorted, computed unit by unit.
fn bytes_of(layout: &StridedLayout, block: u64, layer: u64) -> Vec<(u64, u64)> {
    let mut bytes = Vec::new();
    for plane in layout.shape().planes() {
        let mut indices = vec![UnitIndex::new().at(Axis::B, block).at(Axis::L, layer)];
        let mut axes: Vec<(Axis, u64)> = plane.extents().to_vec();
        axes.push((Axis::N, layout.shape().extent(plane, Axis::N)));
        for (axis, extent) in axes {
            let grown = indices.iter();
            let grown = grown.flat_map(|unit| (0..extent).map(|i| unit.clone().at(axis, i)));
            indices = grown.collect();
        }
        for index in indices {
            let place = layout.locate(plane.name().as_str(), &index).unwrap();
            let unit = 0..plane.unit().bytes();
            bytes.extend(unit.map(|byte| (place.region, place.offset + byte)));
        }
    }
    bytes.sort_unstable();
    bytes
}

/// Sorted locations as one range of a region, if they are contiguous.
fn one_range(bytes: &[(u64, u64)]) -> Option<(u64, Range<u64>)> {
    let (first, last) = (bytes[0], bytes[bytes.len() - 1]);
    let is_one = first.0 == last.0 && last.1 - first.1 + 1 == bytes.len() as u64;
    is_one.then_some((first.0, first.1..last.1 + 1))
}

/// The expected result of `layer_ranges`, computed byte by byte in every block.
fn expected_ranges(layout: &StridedLayout) -> Option<Vec<Range<u64>>> {
    let shape = layout.shape();
    let of_block = |block| {
        let layers = 0..shape.num_layers();
        let layers: Vec<_> = layers.map(|layer| bytes_of(layout, block, layer)).collect();
        let mut all = layers.concat();
        all.sort_unstable();
        let (region, whole) = one_range(&all)?;
        let ranges = layers.iter().map(|bytes| {
            let (of, range) = one_range(bytes)?;
            assert_eq!(of, region);
            Some(range.start - whole.start..range.end - whole.start)
        });
        ranges.collect::<Option<Vec<_>>>()
    };
    let first = of_block(0)?;
    let alike = (1..shape.num_blocks()).all(|block| of_block(block).as_ref() == Some(&first));
    alike.then_some(first)
}

#[test]
fn layer_ranges_match_the_units_of_each_layer() {
    let mut runner = proptest::test_runner::TestRunner::new(config(300));
    let counts = std::cell::Cell::new([0; 2]);
    runner
        .run(&layouts(), |case| {
            let builder =
                PhysicalLayout::builder().with_aligned_shape(case.shape.clone(), case.alignment);
            let layout = builder.layout(LayoutSpec::Word(case.word.clone()));
            let layout = layout.allocate_system().build().unwrap();
            let expected = expected_ranges(layout.strided());
            assert_eq!(layout.layer_ranges(), expected.as_deref(), "{case:?}");
            let mut sums = counts.get();
            sums[usize::from(expected.is_some())] += 1;
            counts.set(sums);
            Ok(())
        })
        .unwrap();
    assert!(counts.get().iter().all(|count| *count > 10), "{counts:?}");
}

#[test]
fn the_ranges_of_layers_by_word() {
    let dense: Vec<Range<u64>> = (0..LAYERS)
        .map(|layer| layer * LAYER_BYTES..(layer + 1) * LAYER_BYTES)
        .collect();
    for (text, alignment, expected) in [
        ("BLKNHC", 1, Some(&dense)),
        ("BLHKNC", 1, Some(&dense)),
        ("BLKHNC", 1, Some(&dense)),
        // Blocks 4096 bytes apart, most of them padding.
        ("BLKNHC", 4096, Some(&dense)),
        ("BLHKNC", 512, Some(&dense)),
        ("BHLKNC", 1, None),
        ("BKLNHC", 1, None),
        ("L|BKNHC", 1, None),
        ("L|KBNHC", 1, None),
        ("LBKNHC", 1, None),
        // One region per block.
        ("B|LKNHC", 1, Some(&dense)),
    ] {
        let layout = word(text, alignment);
        assert_eq!(layout.layer_ranges(), expected.map(Vec::as_slice), "{text}");
        assert_eq!(
            expected_ranges(layout.strided()).as_ref(),
            expected,
            "{text}"
        );
    }
}

/// A plane with its first byte and the strides of its blocks and layers; tokens, heads and elements
/// are dense.
fn plane(name: &str, offset: u64, block: u64, layers: &[(u64, u64, u64)]) -> PlaneDigits {
    let digit = |axis, low, extent, bytes| Digit {
        axis,
        low,
        extent,
        step: AddressStep::bytes(bytes),
    };
    let mut digits = vec![
        digit(Axis::B, 1, BLOCKS, block),
        digit(Axis::N, 1, 2, 16),
        digit(Axis::H, 1, 2, 8),
        digit(Axis::C, 1, 4, 2),
    ];
    let layers = layers.iter();
    digits.extend(layers.map(|(low, extent, bytes)| digit(Axis::L, *low, *extent, *bytes)));
    PlaneDigits {
        plane: name.to_owned(),
        region: 0,
        offset,
        digits,
    }
}

fn digits(planes: Vec<PlaneDigits>, bytes: u64) -> PhysicalLayout {
    let spec = LayoutSpec::Digits {
        planes,
        region_bytes: vec![bytes],
    };
    built(spec, 1)
}

/// Layers in the order 0, 2, 1, 3.
fn crossed() -> PhysicalLayout {
    let layers = [(1, 2, 2 * LAYER_BYTES), (2, 2, LAYER_BYTES)];
    let planes = vec![plane("k", 0, 256, &layers), plane("v", 32, 256, &layers)];
    digits(planes, 256 * BLOCKS)
}

fn registered(layout: PhysicalLayout) -> (TransferManager, LayoutHandle) {
    let manager = TransferManager::new();
    let handle = manager.register(layout).unwrap();
    let pattern = FillPattern::Distinct { seed: 3 };
    manager.fill(handle, &[0, 1, 2], pattern).unwrap();
    (manager, handle)
}

#[test]
fn a_part_is_the_bytes_of_its_layers() {
    for layout in [word("BLKNHC", 1), word("BLHKNC", 512), word("B|LKNHC", 1)] {
        let ranges = layout.layer_ranges().unwrap().to_vec();
        let (manager, handle) = registered(layout);
        let whole = manager.lease(handle, &[1, 2], LeaseMode::Read).unwrap();
        assert_eq!(whole.layers(), 0..LAYERS);
        assert_eq!(whole.part(2).unwrap(), whole.block(2).unwrap());
        let index = |at: u64| usize::try_from(at).unwrap();
        for (from, to) in [(0, 1), (1, 3), (2, 4), (3, 4), (0, 3), (0, 4)] {
            let lease = manager.lease_layers(handle, &[2, 1, 2], from..to, LeaseMode::Read);
            let lease = lease.unwrap();
            assert_eq!((lease.layers(), lease.blocks()), (from..to, &[1, 2][..]));
            for block in [1, 2] {
                let bytes = index(ranges[index(from)].start)..index(ranges[index(to) - 1].end);
                let expected = &whole.block(block).unwrap()[bytes];
                assert_eq!(lease.part(block).unwrap(), expected);
                let pages: Vec<&[u8]> = (from..to).map(|l| lease.page(block, l).unwrap()).collect();
                assert_eq!(pages.concat(), expected);
            }
        }
        let before = whole.block(1).unwrap().to_vec();
        drop(whole);
        let write = |layers| manager.lease_layers(handle, &[1], layers, LeaseMode::Write);
        let (mut low, mut high) = (write(0..2).unwrap(), write(3..4).unwrap());
        low.part_mut(1).unwrap().fill(1);
        high.part_mut(1).unwrap().fill(2);
        low.page_mut(1, 1).unwrap().fill(3);
        drop((low, high));
        let whole = manager.lease(handle, &[1], LeaseMode::Read).unwrap();
        let found: Vec<u8> = (0..LAYERS)
            .flat_map(|layer| whole.page(1, layer).unwrap().to_vec())
            .collect();
        let filled = |byte| vec![byte; index(LAYER_BYTES)];
        let kept = before[index(ranges[2].start)..index(ranges[2].end)].to_vec();
        assert_eq!(found, [filled(1), filled(3), kept, filled(2)].concat());
    }
}

/// Layers with consecutive numbers that are not adjacent in memory are not a part; each single
/// layer is.
#[test]
fn layers_out_of_order_are_single_parts() {
    let layout = crossed();
    let ranges = [0..64, 128..192, 64..128, 192..256];
    assert_eq!(layout.layer_ranges().unwrap(), &ranges);
    let described = layout.strided().describe();
    let (manager, handle) = registered(layout);
    let lease = |layers| {
        let lease = manager.lease_layers(handle, &[1], layers, LeaseMode::Read);
        lease.unwrap()
    };
    for layers in [0..2, 1..3, 2..4, 0..3] {
        let lease = lease(layers.clone());
        let Err(TransferError::Layout(LayoutError::Resolve(ResolveError::NotContiguous {
            what,
            layout,
        }))) = lease.part(1)
        else {
            panic!("{layers:?}")
        };
        assert!(what.contains(&format!("{layers:?}")), "{what}");
        assert_eq!(layout, described);
    }
    let whole = lease(0..LAYERS);
    let bytes = whole.part(1).unwrap();
    assert_eq!(bytes, whole.block(1).unwrap());
    for layer in 0..LAYERS {
        let range = &ranges[usize::try_from(layer).unwrap()];
        let range = usize::try_from(range.start).unwrap()..usize::try_from(range.end).unwrap();
        let alone = lease(layer..layer + 1);
        assert_eq!(alone.part(1).unwrap(), &bytes[range]);
        assert_eq!(alone.part(1).unwrap(), whole.page(1, layer).unwrap());
    }
}

#[test]
fn empty_and_out_of_range_layers_are_refused_by_name() {
    let (manager, handle) = registered(word("BLKNHC", 1));
    let reversed = Range { start: 3, end: 1 };
    for (layers, start, count) in [
        (2..2, 2, 0),
        (reversed, 3, 0),
        (0..5, 0, 5),
        (4..5, 4, 1),
        (u64::MAX - 1..u64::MAX, u64::MAX - 1, 1),
    ] {
        let error = manager.lease_layers(handle, &[0], layers, LeaseMode::Write);
        let error = error.map(drop).unwrap_err();
        let TransferError::Layout(refused) = &error else {
            panic!("{error}")
        };
        let expected = LayoutError::Plan(PlanError::SelectionRange {
            side: "leased",
            axis: "layers",
            start,
            count,
            extent: LAYERS,
        });
        assert_eq!(*refused, expected);
    }
    let error = manager.lease_layers(handle, &[3], 0..1, LeaseMode::Read);
    assert!(matches!(
        error.map(drop),
        Err(TransferError::Layout(LayoutError::Plan(
            PlanError::BlockOutOfRange { block: 3, .. }
        )))
    ));
    // No lease remains.
    manager.unregister(handle).unwrap();
}

#[test]
fn bytes_outside_a_lease_of_layers_are_refused_by_name() {
    let (manager, handle) = registered(word("BLKNHC", 1));
    let lease = manager.lease_layers(handle, &[0, 1], 1..3, LeaseMode::Write);
    let mut lease = lease.unwrap();
    for layer in [0, 3] {
        let named = format!(
            "layer {layer} of block 1 of layout {handle} is not part of this lease, which holds layers 1..3"
        );
        let refused = [
            lease.page(1, layer).map(drop),
            lease.page_mut(1, layer).map(drop),
        ];
        for error in refused {
            assert_eq!(error.unwrap_err().to_string(), named);
        }
    }
    assert!(matches!(
        lease.page(1, LAYERS),
        Err(TransferError::Layout(LayoutError::Resolve(
            ResolveError::IndexOutOfRange {
                index: 4,
                extent: 4,
                ..
            }
        )))
    ));
    let named = format!(
        "this lease holds layers 1..3 of the 4 of block 0 of layout {handle}, and the whole block was requested"
    );
    let refused = [
        lease.block(0).map(drop),
        lease.block_mut(0).map(drop),
        lease.checksum(0).map(drop),
    ];
    for error in refused {
        assert_eq!(error.unwrap_err().to_string(), named);
    }
    for error in [lease.part(2).map(drop), lease.page(2, 1).map(drop)] {
        assert!(matches!(
            error,
            Err(TransferError::Lease(LeaseError::NotLeased { block: 2, .. }))
        ));
    }
    drop(lease);
    let mut read = manager
        .lease_layers(handle, &[0], 1..3, LeaseMode::Read)
        .unwrap();
    assert!(matches!(
        read.part_mut(0),
        Err(TransferError::Copy(CopyError::ReadOnly))
    ));
    // In these orders the layers of a block are not a range of bytes; one page may still be
    // contiguous.
    for text in ["BHLKNC", "L|BKNHC"] {
        let layout = word(text, 1);
        let described = layout.strided().describe();
        let (manager, handle) = registered(layout);
        let lease = manager
            .lease_layers(handle, &[0], 1..2, LeaseMode::Read)
            .unwrap();
        let Err(TransferError::Layout(LayoutError::Resolve(ResolveError::NotContiguous {
            layout,
            ..
        }))) = lease.part(0)
        else {
            panic!("{text}")
        };
        assert_eq!(layout, described);
        assert_eq!(lease.page(0, 1).is_ok(), text == "L|BKNHC");
    }
}

/// A lease of all layers by number is a lease of the whole block.
#[test]
fn a_lease_of_all_layers_is_a_lease_of_blocks() {
    let (manager, handle) = registered(word("L|BKNHC", 1));
    let all = manager
        .lease_layers(handle, &[1], 0..LAYERS, LeaseMode::Write)
        .unwrap();
    let blocks = manager.lease(handle, &[2], LeaseMode::Read).unwrap();
    assert_eq!(all.layers(), blocks.layers());
    all.checksum(1).unwrap();
    let copy = |layers| {
        let options = TransferOptions::new().layers(layers);
        let done = manager.execute_transfer(handle, &[1], handle, &[0], options);
        done.map(|done| done.wait().unwrap().bytes)
    };
    for layer in 0..LAYERS {
        let refused = copy(RangePair::same(layer, 1));
        assert!(matches!(
            refused,
            Err(TransferError::Lease(LeaseError::BlockLeased {
                block: 1,
                ..
            }))
        ));
    }
    drop(all);
    assert_eq!(
        copy(RangePair::same(0, LAYERS)).unwrap(),
        LAYERS * LAYER_BYTES
    );
}

/// Against another layout over the same memory, a lease of layers counts as one of whole blocks.
/// This holds for leases before and after the other layout was registered.
#[test]
fn a_lease_of_layers_holds_whole_blocks_against_other_layouts() {
    let layout = word("BLKNHC", 1);
    let again = PhysicalLayout::builder().with_shape(shape());
    let again = again.layout("BLKNHC".parse::<Word>().unwrap());
    let regions = layout.memory_regions().to_vec();
    let again = again.with_memory_regions(regions).build().unwrap();
    let (manager, handle) = registered(layout);
    let lease = |handle, block, layers, mode| manager.lease_layers(handle, &[block], layers, mode);
    let (read, write) = (LeaseMode::Read, LeaseMode::Write);
    let early = [
        lease(handle, 0, 0..1, read).unwrap(),
        lease(handle, 0, 1..2, write).unwrap(),
        lease(handle, 1, 0..1, read).unwrap(),
    ];
    let other = manager.register(again).unwrap();
    let free = |block, layers, mode| match lease(other, block, layers, mode) {
        Ok(_) => true,
        Err(TransferError::Copy(CopyError::Overlap { .. })) => false,
        Err(error) => panic!("{error}"),
    };
    assert!(!free(0, 3..4, read) && !free(0, 0..1, write));
    assert!(free(1, 0..1, read) && free(1, 3..4, read) && !free(1, 3..4, write));
    assert!(free(2, 0..1, write));
    // The lease that writes a layer ends; the readers remain.
    let [first, written, _last] = early;
    drop(written);
    assert!(free(0, 1..2, read) && !free(0, 1..2, write));
    // Under a lease of the other layout, no layer of the block may be written.
    let theirs = lease(other, 0, 2..3, read).unwrap();
    let refused = lease(handle, 0, 1..2, write).map(drop);
    assert!(matches!(
        refused,
        Err(TransferError::Copy(CopyError::Overlap { .. }))
    ));
    drop(theirs);
    lease(handle, 0, 1..2, write).unwrap();
    drop(first);
    assert!(free(0, 1..2, write));
}

/// The ranges hold for every block, or there are none: here `v` follows `k` in one block and
/// precedes it in the next.
#[test]
fn blocks_with_different_inner_orders_have_no_ranges() {
    let two = Shape::key_value(2, 1, 1, 1, 2, Unit::raw(2).unwrap()).unwrap();
    let piece = |name: &str, offset, bytes| {
        let digit = |axis, step| Digit {
            axis,
            low: 1,
            extent: 2,
            step,
        };
        PlaneDigits {
            plane: name.to_owned(),
            region: 0,
            offset,
            digits: vec![
                digit(Axis::B, AddressStep { regions: 1, bytes }),
                digit(Axis::C, AddressStep::bytes(2)),
            ],
        }
    };
    let spec = LayoutSpec::Digits {
        planes: vec![piece("k", 0, 8), piece("v", 4, 0)],
        region_bytes: vec![16, 16],
    };
    let builder = PhysicalLayout::builder().with_shape(two);
    let layout = builder.layout(spec).allocate_system().build().unwrap();
    // The step of `k` to the second region has a byte offset too, and that of `v` does not. Planes
    // with different block steps cannot be proved disjoint, so no block counts as contiguous.
    for block in [0, 1] {
        let span = layout.strided().block_span(block);
        assert!(matches!(
            span,
            Err(LayoutError::Resolve(ResolveError::NotContiguous { .. }))
        ));
    }
    assert_eq!(layout.layer_ranges(), None);
}
