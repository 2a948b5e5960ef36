//! Transfers that must be refused: each gives a precise error, and no byte is written.
#![expect(clippy::unwrap_used, reason = "tests")]

mod common;

use common::in_memory;
use kvtile_layout::{
    BlockPair, LayoutError, PlanError, RangePair, Selection, Shape, Shard, Unit,
    identity::{Identity, Rope},
    tradition::{BlockDimension, InnerShape, LayoutConfig, LayoutConfigBuilder},
};
use kvtile_memory::{FileMemory, OwnedMemoryRegion};
use kvtile_transfer::{
    CopyError, FillPattern, LayoutHandle, LeaseError, LeaseMode, PhysicalLayout, RegisterError,
    TransferError, TransferManager, TransferOptions,
};
use std::sync::Arc;

fn shape(blocks: u64) -> Shape {
    Shape::key_value(blocks, 3, 4, 2, 8, Unit::raw(2).unwrap()).unwrap()
}

fn digests(manager: &TransferManager, handle: LayoutHandle) -> Vec<String> {
    let blocks = manager.layout(handle).unwrap().shape().num_blocks();
    (0..usize::try_from(blocks).unwrap())
        .map(|block| manager.block_digest(handle, block).unwrap().to_string())
        .collect()
}

/// Two layouts of one shape with different content.
fn pair(from: PhysicalLayout, to: PhysicalLayout) -> (TransferManager, LayoutHandle, LayoutHandle) {
    let manager = TransferManager::new();
    let fill = |layout: PhysicalLayout, seed| {
        let blocks: Vec<usize> = (0..layout.config().unwrap().num_blocks()).collect();
        let handle = manager.register(layout).unwrap();
        let pattern = FillPattern::Distinct { seed };
        manager.fill(handle, &blocks, pattern).unwrap();
        handle
    };
    let (from, to) = (fill(from, 1), fill(to, 2));
    (manager, from, to)
}

/// Asserts that the transfer is refused and that no block of either side changed.
#[track_caller]
fn refused(
    (manager, from, to): &(TransferManager, LayoutHandle, LayoutHandle),
    ids: (&[usize], &[usize]),
    options: TransferOptions,
) -> TransferError {
    let before = (digests(manager, *from), digests(manager, *to));
    let result = manager.execute_transfer(*from, ids.0, *to, ids.1, options);
    let error = result.map(|_| ()).unwrap_err();
    assert_eq!(before, (digests(manager, *from), digests(manager, *to)));
    error
}

/// Pitfalls 16 and 18: checks of ranges, duplicates and emptiness exist in every build, and run
/// before the first byte is copied.
#[test]
fn ids_and_ranges_that_do_not_fit_are_refused_before_a_byte_moves() {
    let sides = pair(
        in_memory(&shape(5), "L|KBNHC"),
        in_memory(&shape(4), "BHLKNC"),
    );
    let plain = TransferOptions::new;
    let is = |ids, check: fn(&LayoutError) -> bool| {
        let error = refused(&sides, ids, plain());
        let TransferError::Layout(inner) = &error else {
            panic!("{error}");
        };
        assert!(check(inner), "{error}");
    };
    is((&[0, 5], &[0, 1]), |e| {
        matches!(
            e,
            LayoutError::Plan(PlanError::BlockOutOfRange {
                side: "source",
                block: 5,
                num_blocks: 5
            })
        )
    });
    is((&[0, 4], &[0, 4]), |e| {
        matches!(
            e,
            LayoutError::Plan(PlanError::BlockOutOfRange {
                side: "destination",
                block: 4,
                ..
            })
        )
    });
    is((&[usize::MAX], &[0]), |e| {
        matches!(e, LayoutError::Plan(PlanError::BlockOutOfRange { .. }))
    });
    is((&[0, 1], &[3, 3]), |e| {
        matches!(
            e,
            LayoutError::Plan(PlanError::DuplicateDestination { block: 3, .. })
        )
    });
    is((&[0, 1], &[3]), |e| {
        matches!(e, LayoutError::Plan(PlanError::BlockListsDiffer { .. }))
    });
    is((&[], &[]), |e| {
        matches!(e, LayoutError::Plan(PlanError::NothingSelected))
    });
}

/// Pitfall 16: empty, reversed and wrapping ranges, and ranges past the end of one side.
#[test]
fn ranges_that_do_not_fit_are_refused_before_a_byte_moves() {
    let sides = pair(
        in_memory(&shape(5), "L|KBNHC"),
        in_memory(&shape(4), "BHLKNC"),
    );
    let plain = TransferOptions::new;
    for (start, count) in [(0, 0), (0, 4), (3, 1), (2, 2), (u64::MAX, 2), (1, u64::MAX)] {
        let options = plain().layers(RangePair::same(start, count));
        let error = refused(&sides, (&[0, 1], &[0, 1]), options);
        assert!(
            matches!(
                error,
                TransferError::Layout(LayoutError::Plan(PlanError::SelectionRange {
                    axis: "layers",
                    ..
                }))
            ),
            "layers {start}, {count}: {error}"
        );
    }
    for (source, destination, count) in
        [(0, 0, 0), (0, 0, 5), (4, 0, 1), (0, 3, 2), (0, u64::MAX, 1)]
    {
        let range = RangePair {
            source,
            destination,
            count,
        };
        let error = refused(&sides, (&[0], &[0]), plain().tokens(range));
        let axis = matches!(
            error,
            TransferError::Layout(LayoutError::Plan(PlanError::SelectionRange {
                axis: "tokens",
                ..
            }))
        );
        assert!(axis, "tokens {range:?}: {error}");
    }
    for (source, destination, count) in [(0, 0, 0), (0, 0, 3), (2, 0, 1), (0, 1, 2)] {
        let range = RangePair {
            source,
            destination,
            count,
        };
        let error = refused(&sides, (&[0], &[0]), plain().heads(range));
        let axis = matches!(
            error,
            TransferError::Layout(LayoutError::Plan(PlanError::SelectionRange {
                axis: "heads",
                ..
            }))
        );
        assert!(axis, "heads {range:?}: {error}");
    }
}

/// Pitfall 22: an option that would be ignored is refused.
#[test]
fn a_token_range_beside_a_selection_is_refused() {
    let (manager, from, to) = pair(
        in_memory(&shape(2), "BLKNHC"),
        in_memory(&shape(2), "BLKNHC"),
    );
    let selection = Selection::blocks(&[0], &[1], 4).unwrap();
    let options = TransferOptions::new().tokens(RangePair::same(0, 1));
    let error = manager.execute_selection(from, to, selection, options);
    assert!(matches!(
        error,
        Err(TransferError::Copy(CopyError::TokensOfSelection))
    ));
}

/// Pitfall 14: a copy between pages of different sizes never uses the page size of one side for
/// both.
#[test]
fn whole_blocks_between_pages_of_different_sizes_are_refused() {
    let small = Shape::key_value(4, 3, 2, 2, 8, Unit::raw(2).unwrap()).unwrap();
    for (a, b) in [(shape(4), small.clone()), (small.clone(), shape(4))] {
        let sides = pair(in_memory(&a, "BLKNHC"), in_memory(&b, "BLKNHC"));
        let error = refused(&sides, (&[1], &[2]), TransferOptions::new());
        assert!(
            matches!(
                error,
                TransferError::Copy(CopyError::PageSizesDiffer { .. })
            ),
            "{error}"
        );
    }
    // A selection by tokens copies between them.
    let (manager, from, to) = pair(in_memory(&shape(1), "BHLKNC"), in_memory(&small, "L|BKNHC"));
    let selection = Selection::sequence(&[0], 4, &[3, 1], 2, 4).unwrap();
    let there = manager.execute_selection(from, to, selection, TransferOptions::new().verify(true));
    assert!(there.unwrap().wait().unwrap().verified);
    let before = digests(&manager, from);
    manager.fill(from, &[0], FillPattern::Constant(0)).unwrap();
    let selection = Selection::sequence(&[3, 1], 2, &[0], 4, 4).unwrap();
    let back = manager.execute_selection(to, from, selection, TransferOptions::new());
    back.unwrap().wait().unwrap();
    assert_eq!(digests(&manager, from), before);
}

/// Pitfalls 15, 24: equal bytes of a different shape are refused.
#[test]
fn equal_bytes_of_another_shape_are_refused() {
    let of = |layers, page, heads, content, bytes| {
        Shape::key_value(4, layers, page, heads, content, Unit::raw(bytes).unwrap()).unwrap()
    };
    let ours = of(3, 4, 2, 8, 2);
    for theirs in [
        of(3, 4, 4, 4, 2),
        of(3, 4, 1, 16, 2),
        of(3, 4, 2, 16, 1),
        of(3, 4, 2, 4, 4),
        of(6, 2, 2, 8, 2),
        of(6, 4, 2, 4, 2),
    ] {
        assert_eq!(ours.block_bytes().unwrap(), theirs.block_bytes().unwrap());
        let sides = pair(in_memory(&ours, "BLKNHC"), in_memory(&theirs, "BLKNHC"));
        let error = refused(&sides, (&[0], &[0]), TransferOptions::new());
        let by_shape = matches!(
            error,
            TransferError::Layout(
                LayoutError::Plan(PlanError::PlanesDiffer { .. })
                    | LayoutError::Plan(PlanError::ShardsDiffer { .. })
            ) | TransferError::Copy(CopyError::PageSizesDiffer { .. })
        );
        assert!(by_shape, "{theirs:?}: {error}");
    }
}

/// Two ranks of one model have equal shapes and different heads. Nothing is assumed; the ranges
/// decide.
#[test]
fn shards_of_different_heads_exchange_only_with_explicit_ranges() {
    let rank = |rank| {
        let shard = Shard::tensor_parallel(3, 4, rank, 2).unwrap();
        shape(2).with_shard(shard).unwrap()
    };
    let whole = Shape::key_value(2, 3, 4, 4, 8, Unit::raw(2).unwrap()).unwrap();
    let sides = pair(in_memory(&rank(0), "BHLKNC"), in_memory(&rank(1), "BHLKNC"));
    let error = refused(&sides, (&[0], &[0]), TransferOptions::new());
    assert!(matches!(
        error,
        TransferError::Layout(LayoutError::Plan(PlanError::ShardsDiffer {
            axis: "heads",
            ..
        }))
    ));

    // Both halves are copied into one whole block, and back.
    let (manager, first, second) = sides;
    let all = manager.register(in_memory(&whole, "L|BKNHC")).unwrap();
    let before = (digests(&manager, first), digests(&manager, second));
    for (half, start) in [(first, 0), (second, 2)] {
        let heads = RangePair {
            source: 0,
            destination: start,
            count: 2,
        };
        let options = TransferOptions::new().heads(heads).verify(true);
        let done = manager.execute_transfer(half, &[0, 1], all, &[1, 0], options);
        done.unwrap().wait().unwrap();
    }
    for (half, start) in [(first, 0), (second, 2)] {
        manager
            .fill(half, &[0, 1], FillPattern::Constant(9))
            .unwrap();
        let heads = RangePair {
            source: start,
            destination: 0,
            count: 2,
        };
        let done = manager.execute_transfer(
            all,
            &[1, 0],
            half,
            &[0, 1],
            TransferOptions::new().heads(heads),
        );
        done.unwrap().wait().unwrap();
    }
    assert_eq!(
        before,
        (digests(&manager, first), digests(&manager, second))
    );
}

fn config() -> LayoutConfigBuilder {
    LayoutConfig::builder()
        .num_blocks(4)
        .num_layers(2)
        .outer_dim(2)
        .page_size(4)
        .inner_dim(16)
        .num_heads(2)
}

fn contiguous(config: LayoutConfigBuilder) -> PhysicalLayout {
    PhysicalLayout::builder()
        .with_config(config.build().unwrap())
        .fully_contiguous()
        .allocate_system()
        .build()
        .unwrap()
}

fn separate(config: LayoutConfigBuilder) -> PhysicalLayout {
    PhysicalLayout::builder()
        .with_config(config.build().unwrap())
        .layer_separate(BlockDimension::BlockIsSecondDim)
        .allocate_system()
        .build()
        .unwrap()
}

/// Pitfall 6: blocks of unknown inner order are copied only to blocks of unknown inner order, and
/// only whole; NHD and HND are converted, never copied byte for byte.
#[test]
fn unknown_inner_orders_are_never_taken_for_known_ones() {
    let of = |inner| config().inner_shape(inner);
    for known in [InnerShape::NHD, InnerShape::HND] {
        for (a, b) in [(InnerShape::Unknown, known), (known, InnerShape::Unknown)] {
            let sides = pair(contiguous(of(a)), separate(of(b)));
            let error = refused(&sides, (&[0], &[0]), TransferOptions::new());
            assert!(
                matches!(
                    error,
                    TransferError::Layout(LayoutError::Plan(PlanError::PlanesDiffer { .. }))
                ),
                "{error}"
            );
        }
    }
    let (manager, nhd, hnd) = pair(
        contiguous(of(InnerShape::NHD)),
        separate(of(InnerShape::HND)),
    );
    let done = manager.execute_transfer(nhd, &[2], hnd, &[1], TransferOptions::new());
    done.unwrap().wait().unwrap();
    assert_eq!(digests(&manager, nhd)[2], digests(&manager, hnd)[1]);
    let bytes = |handle, block: usize| {
        let lease = manager.lease(handle, &[block], LeaseMode::Read).unwrap();
        let region = manager.layout(handle).unwrap();
        assert!(region.memory_region(block, 0, 0).is_ok());
        lease.checksum(block as u64).unwrap()
    };
    assert_ne!(bytes(nhd, 2), bytes(hnd, 1), "the tokens were not permuted");

    let (manager, a, b) = pair(
        contiguous(of(InnerShape::Unknown)),
        separate(of(InnerShape::Unknown)),
    );
    let whole = manager.execute_transfer(a, &[2], b, &[1], TransferOptions::new());
    whole.unwrap().wait().unwrap();
    assert_eq!(digests(&manager, a)[2], digests(&manager, b)[1]);
    // A part of an unknown order cannot be selected.
    let part = TransferOptions::new().tokens(RangePair::same(0, 2));
    assert!(manager.execute_transfer(a, &[2], b, &[1], part).is_err());
}

/// Pitfall 3: one-byte elements are supported.
#[test]
fn one_byte_elements_are_moved() {
    for width in [1, 2, 4, 8] {
        let of = |inner| config().dtype_width_bytes(width).inner_shape(inner);
        let (manager, from, to) = pair(
            contiguous(of(InnerShape::NHD)),
            separate(of(InnerShape::HND)),
        );
        let options = TransferOptions::new().verify(true);
        let done = manager.execute_transfer(from, &[0, 3], to, &[3, 0], options);
        assert_eq!(
            done.unwrap().wait().unwrap().bytes,
            (2 * 2 * 2 * 4 * 16 * width) as u64
        );
        assert_eq!(digests(&manager, from)[0], digests(&manager, to)[3]);
        assert_eq!(digests(&manager, from)[3], digests(&manager, to)[0]);
    }
}

/// Pitfall 4: addresses respect the alignment, also above the page size.
#[test]
fn blocks_and_regions_start_at_multiples_of_the_alignment() {
    for alignment in [1, 64, 4096, 1 << 16, 1 << 21] {
        let layout = separate(config().alignment(alignment).inner_shape(InnerShape::NHD));
        for layer in 0..2 {
            for plane in 0..2 {
                let at = |block| layout.memory_region(block, layer, plane).unwrap().addr;
                assert_eq!(at(0) % alignment, 0);
                assert_eq!((at(1) - at(0)) % alignment, 0);
                assert!(at(1) - at(0) >= layout.config().unwrap().page_bytes());
            }
        }
    }
}

/// A remote layout may claim any number of blocks; registering it costs no memory per block.
#[test]
fn a_remote_layout_of_absurdly_many_blocks_can_be_registered() {
    let json = r#"{"version": 1, "layout_config": {"num_blocks": 4611686018427387904,
        "num_layers": 1, "outer_dim": 1, "page_size": 1, "inner_dim": 1, "dtype_width_bytes": 1},
        "location": "System",
        "nixl_metadata": {"agent_name": "a", "mem_type": "Dram", "device_id": 0},
        "memory_descriptors": [{"addr": 4096, "size": 4611686018427387904}],
        "layout_type_details": {"FullyContiguous": {"block_format": "Operational"}}}"#;
    let descriptor = kvtile_transfer::LayoutDescriptor::from_json(json).unwrap();
    let remote = PhysicalLayout::from_descriptor(descriptor).unwrap();
    TransferManager::new().register(remote).unwrap();
}

/// Handles are never confused: neither after reuse nor between managers.
#[test]
fn stale_handles_and_handles_of_other_managers_are_refused() {
    let (manager, from, to) = pair(
        in_memory(&shape(2), "BLKNHC"),
        in_memory(&shape(2), "BLKNHC"),
    );
    let layout = manager.unregister(from).unwrap();
    let again = manager.register(layout.clone()).unwrap();
    assert_ne!(from, again);
    assert!(matches!(
        manager.register(layout),
        Err(TransferError::Register(RegisterError::AlreadyRegistered { handle })) if handle == again.to_string()
    ));
    let unknown = |result: Result<(), TransferError>| {
        assert!(matches!(
            result,
            Err(TransferError::Register(RegisterError::UnknownHandle { .. }))
        ));
    };
    let transfer = |manager: &TransferManager, from, to| {
        let done = manager.execute_transfer(from, &[0], to, &[0], TransferOptions::new());
        done.map(|_| ())
    };
    unknown(transfer(&manager, from, to));
    unknown(transfer(&manager, to, from));
    unknown(manager.unregister(from).map(|_| ()));
    unknown(manager.lease(from, &[0], LeaseMode::Read).map(|_| ()));
    unknown(manager.layout(from).map(|_| ()));
    transfer(&manager, again, to).unwrap();

    let other = TransferManager::new();
    let theirs = other.register(in_memory(&shape(2), "BLKNHC")).unwrap();
    unknown(transfer(&manager, theirs, to));
    unknown(transfer(&other, theirs, to));
    unknown(other.unregister(to).map(|_| ()));
}

#[test]
fn a_read_only_file_is_a_source_and_never_a_destination() {
    let folder = common::folder();
    let path = folder.path().join("cache");
    let manager = TransferManager::new();
    let build = |file: OwnedMemoryRegion| {
        PhysicalLayout::builder()
            .with_shape(shape(2))
            .layout("BLKNHC".parse::<kvtile_layout::Word>().unwrap())
            .over_memory(file)
            .build()
            .unwrap()
    };
    let bytes = usize::try_from(shape(2).total_bytes().unwrap()).unwrap();
    let file = build(Arc::new(
        FileMemory::options().create_new(&path, bytes).unwrap(),
    ));
    let file = manager.register(file).unwrap();
    manager
        .fill(file, &[0, 1], FillPattern::Distinct { seed: 5 })
        .unwrap();
    let expected = digests(&manager, file);
    manager.unregister(file).unwrap();
    let before = std::fs::read(&path).unwrap();

    let options = FileMemory::options().read_only(true);
    let file = manager
        .register(build(Arc::new(options.open_whole(&path).unwrap())))
        .unwrap();
    let memory = manager.register(in_memory(&shape(2), "L|BKNHC")).unwrap();
    let written = manager.execute_transfer(memory, &[0], file, &[1], TransferOptions::new());
    assert!(matches!(
        written.map(|_| ()),
        Err(TransferError::Copy(CopyError::ReadOnly))
    ));
    let filled = manager.fill(file, &[0], FillPattern::Constant(0));
    assert!(matches!(
        filled,
        Err(TransferError::Copy(CopyError::ReadOnly))
    ));
    let mut lease = manager.lease(file, &[0], LeaseMode::Write).unwrap();
    assert!(lease.page_mut(0, 0).is_err());
    drop(lease);
    let read = manager.execute_transfer(file, &[0, 1], memory, &[0, 1], TransferOptions::new());
    read.unwrap().wait().unwrap();
    assert_eq!(digests(&manager, memory), expected);
    assert_eq!(std::fs::read(&path).unwrap(), before);
}

/// Pitfall 23: blocks of another model are refused, even with an equal shape.
#[test]
fn layouts_of_different_models_do_not_exchange() {
    let identity = |base| {
        let rope = Rope::new("default", base).unwrap();
        Identity::new("model", "1", &shape(2))
            .unwrap()
            .with_rope(rope)
    };
    let build = |base: Option<f64>| {
        let builder = PhysicalLayout::builder().with_shape(shape(2));
        let builder = match base {
            Some(base) => builder.with_logical_fingerprint(identity(base).fingerprint()),
            None => builder,
        };
        let word = "BLKNHC".parse::<kvtile_layout::Word>().unwrap();
        builder.layout(word).allocate_system().build().unwrap()
    };
    let sides = pair(build(Some(10_000.0)), build(Some(500_000.0)));
    let error = refused(&sides, (&[0], &[0]), TransferOptions::new());
    assert!(
        matches!(error, TransferError::Copy(CopyError::LogicalDiffers { .. })),
        "{error}"
    );
    let (manager, from, to) = pair(build(Some(10_000.0)), build(None));
    let done = manager.execute_transfer(from, &[0], to, &[0], TransferOptions::new());
    done.unwrap().wait().unwrap();
}

#[test]
fn a_block_is_not_copied_onto_itself_nor_read_while_it_is_written() {
    let sides = pair(
        in_memory(&shape(4), "BLKNHC"),
        in_memory(&shape(4), "BLKNHC"),
    );
    let (manager, from, _) = &sides;
    for ids in [
        ([0usize, 1], [2usize, 1]),
        ([0, 1], [1, 2]),
        ([3, 0], [0, 1]),
    ] {
        let done = manager.execute_transfer(*from, &ids.0, *from, &ids.1, TransferOptions::new());
        let error = done.map(|_| ()).unwrap_err();
        assert!(
            matches!(error, TransferError::Lease(LeaseError::SameBlock { .. })),
            "{error}"
        );
    }
    // Other tokens of the same block still conflict.
    let inside = Selection {
        pairs: vec![BlockPair {
            source_block: 1,
            source_token: 0,
            destination_block: 1,
            destination_token: 2,
            tokens: 2,
        }],
        ..Selection::default()
    };
    let done = manager.execute_selection(*from, *from, inside, TransferOptions::new());
    assert!(matches!(
        done.map(|_| ()),
        Err(TransferError::Lease(LeaseError::SameBlock { block: 1 }))
    ));
    // Disjoint blocks are copied.
    let done = manager.execute_transfer(*from, &[0, 1], *from, &[2, 3], TransferOptions::new());
    done.unwrap().wait().unwrap();
    let digests = digests(manager, *from);
    assert_eq!(digests[..2], digests[2..]);
}
