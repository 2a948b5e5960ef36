//! The loops and runs of well-known pairs after planning, against arithmetic.

#![expect(clippy::unwrap_used, reason = "tests")]

use kvtile_layout::{
    Axis, AxisRange, CopyPlan, LayoutError, PlanError, Plane, RangePair, Selection, Shape, Shard,
    StridedLayout, Unit, Word,
};

fn shape(num_heads: u64) -> Shape {
    let unit = Unit::named("bf16").unwrap();
    Shape::key_value(10, 2, 16, num_heads, 128, &unit).unwrap()
}

fn layout(word: &str, shape: &Shape) -> StridedLayout {
    StridedLayout::resolve(&Word::parse(word).unwrap(), shape, 1).unwrap()
}

/// The nests of one layer of one block, printed as `loops run`.
fn remains(source: &str, destination: &str) -> Vec<String> {
    let shape = shape(8);
    let selection = Selection::blocks(&[3], &[5], 16)
        .unwrap()
        .with_layers(RangePair::same(1, 1));
    let (source, destination) = (layout(source, &shape), layout(destination, &shape));
    nests(&CopyPlan::new(&source, &destination, &selection).unwrap())
}

fn nests(plan: &CopyPlan) -> Vec<String> {
    let nests = plan.classes().iter().flat_map(|class| class.nests.iter());
    nests
        .map(|nest| {
            let loops: Vec<String> = nest
                .loops
                .iter()
                .map(|l| format!("{}:{}", l.axes, l.extent))
                .collect();
            format!("{} {}", loops.join(" "), nest.run_bytes)
        })
        .collect()
}

#[test]
fn token_major_into_page_first_leaves_runs_of_one_token() {
    assert_eq!(remains("L|KBNHC", "KBNLHC"), ["K:2 N:16 2048"]);
}

#[test]
fn token_major_into_direct_page_first_leaves_one_run_a_plane() {
    assert_eq!(remains("L|KBNHC", "KBLNHC"), ["K:2 32768"]);
}

#[test]
fn head_major_into_page_first_leaves_runs_of_one_head() {
    let nests = remains("L|BHNKC", "KBNLHC");
    assert_eq!(nests, ["K:2 N:16 H:8 256"]);
}

#[test]
fn tiled_keys_leave_transposes() {
    let nests = remains("L|B(kHCNC8,vHCN)", "L|BKNHC");
    assert_eq!(nests, ["N:16 HC:128 16", "N:16 HC:1024 2"]);
}

#[test]
fn amx_tiles_leave_transposes_and_equal_orders_one_run() {
    let tiles = "L|BH(kNCN16C2,vCNC16N2)";
    let mut shapes = remains(tiles, "L|BKNHC");
    shapes.sort();
    let runs: Vec<&str> = shapes
        .iter()
        .filter_map(|s| s.split(' ').next_back())
        .collect();
    assert_eq!(runs, ["4", "2"], "{shapes:?}");
    assert_eq!(remains(tiles, tiles), [" 65536"]);
}

#[test]
fn a_tensor_parallel_rank_fills_its_half_of_the_model_head_by_head() {
    let (rank, model) = (shape(4), shape(8));
    let rank = rank
        .with_shard(Shard::tensor_parallel(2, 8, 1, 2).unwrap())
        .unwrap();
    let heads = RangePair::shared(rank.shard().heads, AxisRange::new(0, 8)).unwrap();
    let (source, destination) = (layout("BLKHNC", &rank), layout("BHLKNC", &model));
    let selection = Selection::blocks(&[0], &[1], 16).unwrap();
    let error = CopyPlan::new(&source, &destination, &selection).unwrap_err();
    assert!(
        matches!(
            error,
            LayoutError::Plan(PlanError::ShardsDiffer { axis: "heads", .. })
        ),
        "{error}"
    );

    let selection = selection
        .with_layers(RangePair::same(0, 1))
        .with_heads(heads);
    let plan = CopyPlan::new(&source, &destination, &selection).unwrap();
    assert_eq!(nests(&plan), ["H:4 K:2 4096"]);
}

#[test]
fn the_whole_model_head_outermost_into_a_rank_is_one_run_a_layer_and_head() {
    let (model, rank) = (shape(8), shape(2));
    let rank = rank
        .with_shard(Shard::tensor_parallel(2, 8, 3, 4).unwrap())
        .unwrap();
    let (source, destination) = (layout("BHLKNC", &model), layout("BHLKNC", &rank));
    let heads = RangePair::shared(AxisRange::new(0, 8), rank.shard().heads).unwrap();
    let selection = Selection::blocks(&[0], &[1], 16).unwrap().with_heads(heads);
    let plan = CopyPlan::new(&source, &destination, &selection).unwrap();
    // Two heads of two layers of K and V of 16 tokens of 256 bytes: one run.
    assert_eq!(nests(&plan), [" 32768"]);
}

#[test]
fn unequal_planes_of_one_token_join_to_one_run() {
    let unit = |codec, bytes| Unit::new(codec, bytes, 1).unwrap();
    let planes = vec![
        Plane::new("c", unit("fp8", 1))
            .unwrap()
            .extent(Axis::C, 512),
        Plane::new("s", unit("f32", 4)).unwrap().extent(Axis::C, 4),
        Plane::new("r", unit("bf16", 2))
            .unwrap()
            .extent(Axis::C, 64),
    ];
    let shape = Shape::new(4, 1, 64, planes).unwrap();
    let layout = layout("L|BNKC", &shape);
    let selection = Selection::blocks(&[0], &[3], 64).unwrap();
    let plan = CopyPlan::new(&layout, &layout, &selection).unwrap();
    assert_eq!(nests(&plan), [" 41984"]);
}

#[test]
fn consecutive_blocks_of_a_head_outermost_layout_are_a_few_long_runs() {
    let shape = shape(8);
    let layout = layout("LK|HBNC", &shape);
    let ids: Vec<u64> = (0..10).collect();
    let selection = Selection::blocks(&ids, &ids, 16).unwrap();
    let plan = CopyPlan::new(&layout, &layout, &selection).unwrap();
    // The heads of a region follow each other, so all ten blocks of them are one run.
    assert_eq!(nests(&plan), ["LK:4 327680"]);
}

#[test]
fn moduli_that_do_not_divide_are_refused_by_name() {
    let unit = Unit::named("bf16").unwrap();
    let shape = Shape::key_value(2, 1, 48, 1, 8, &unit).unwrap();
    let (source, destination) = (layout("BLNKHN24C", &shape), layout("BLNKHN16C", &shape));
    let selection = Selection::blocks(&[0], &[1], 48).unwrap();
    let error = CopyPlan::new(&source, &destination, &selection).unwrap_err();
    assert_eq!(error.to_string(), "no common refinement of N: 24, 16");
}

/// Pitfall 16: empty and reversed ranges, ranges past the end and duplicates are refused.
#[test]
fn bad_selections_are_refused_with_their_values() {
    let shape = shape(8);
    let layout = layout("BLKNHC", &shape);
    let plan = |selection: &Selection| CopyPlan::new(&layout, &layout, selection);
    let blocks = |s: &[u64], d: &[u64]| Selection::blocks(s, d, 16).unwrap();
    assert_eq!(
        plan(&blocks(&[], &[])),
        Err(LayoutError::Plan(PlanError::NothingSelected))
    );
    assert!(matches!(
        Selection::blocks(&[1, 2], &[1], 16),
        Err(LayoutError::Plan(PlanError::BlockListsDiffer {
            source_blocks: 2,
            destination_blocks: 1
        }))
    ));
    assert!(matches!(
        plan(&blocks(&[10], &[0])),
        Err(LayoutError::Plan(PlanError::BlockOutOfRange {
            side: "source",
            block: 10,
            num_blocks: 10
        }))
    ));
    assert!(matches!(
        plan(&blocks(&[0, 1], &[4, 4])),
        Err(LayoutError::Plan(PlanError::DuplicateDestination {
            block: 4,
            token: 0
        }))
    ));
    for layers in [
        RangePair::same(0, 0),
        RangePair::same(1, 2),
        RangePair::same(u64::MAX, 2),
    ] {
        assert!(matches!(
            plan(&blocks(&[0], &[1]).with_layers(layers)),
            Err(LayoutError::Plan(PlanError::SelectionRange {
                axis: "layers",
                ..
            }))
        ));
    }
}

/// A plane from JSON has its axes once and in order, in any order of the text.
#[test]
fn planes_from_json_are_checked_and_sorted() {
    let plane = |extents: &str| {
        let unit = r#"{"codec":"bf16","bytes":2,"values":1}"#;
        let json = format!(r#"{{"name":"k","unit":{unit},"extents":{extents}}}"#);
        serde_json::from_str::<Plane>(&json)
    };
    assert!(plane(r#"[["C",2],["H",2],["C",3]]"#).is_err());
    assert!(plane(r#"[["C",0]]"#).is_err());
    let built = Plane::new("k", Unit::named("bf16").unwrap()).unwrap();
    let built = built.extent(Axis::H, 4).extent(Axis::C, 2);
    assert_eq!(plane(r#"[["H",4],["C",2]]"#).unwrap(), built);
}

/// Pitfall 8: a shape that declares 2^55 blocks takes no memory for them; named blocks are checked.
#[test]
fn a_plan_over_more_blocks_than_memory_could_list_is_made_and_checked() {
    let unit = Unit::named("bf16").unwrap();
    let shape = Shape::key_value(1 << 55, 1, 1, 1, 1, &unit).unwrap();
    let layout = layout("BLKNHC", &shape);
    let plan = |to: [u64; 2]| {
        let selection = Selection::blocks(&[0, (1 << 55) - 1], &to, 1).unwrap();
        CopyPlan::new(&layout, &layout, &selection)
    };
    assert_eq!(plan([7, 1 << 54]).unwrap().bytes(), 8);
    assert_eq!(
        plan([7, 7]),
        Err(LayoutError::Plan(PlanError::DuplicateDestination {
            block: 7,
            token: 0
        }))
    );
}
