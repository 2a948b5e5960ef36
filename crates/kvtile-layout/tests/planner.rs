//! One planner for many lists of blocks, against fresh plans and against the naive copy.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::sync::Arc;

use kvtile_layout::{
    Axis, BlockPair, CopyPlan, CopyPlanner, LayoutError, PlanError, PlanSettings, Plane, RangePair,
    Selection, Shape, StridedLayout, Unit, Word,
};
use kvtile_testkit::{
    NaiveSelection, execute,
    generate::{LayoutCase, TransferCase, config, selections, transfers},
    naive_copy,
};
use proptest::prelude::*;

fn resolve(case: &LayoutCase) -> Arc<StridedLayout> {
    Arc::new(StridedLayout::resolve(&case.word, &case.shape, case.alignment).unwrap())
}

/// A transfer, and further lists of blocks for the same layers and heads.
fn lists() -> impl Strategy<Value = (TransferCase, Vec<NaiveSelection>)> {
    transfers().prop_flat_map(|case| {
        let (src, dst) = (case.src.shape.clone(), case.dst.shape.clone());
        let more = prop::collection::vec(selections(src, dst), 1..4);
        (Just(case), more).prop_map(|(case, more)| {
            let (layers, heads) = (case.selection.layers, case.selection.heads);
            let first = case.selection.clone();
            let more = more.into_iter().map(|list| NaiveSelection {
                layers,
                heads,
                ..list
            });
            let mut lists: Vec<NaiveSelection> = more.collect();
            // The first list again: the lists between must leave no trace.
            lists.insert(0, first.clone());
            lists.push(first);
            (case, lists)
        })
    })
}

fn refused(error: &LayoutError) -> bool {
    matches!(
        error,
        LayoutError::Plan(PlanError::NoCommonRefinement { .. })
            | LayoutError::Plan(PlanError::TooManyPieces { .. })
            | LayoutError::Plan(PlanError::PlaneNotPerToken { .. })
    )
}

/// Runs `plans` on a fresh destination and compares every byte with the naive copy.
fn assert_copies(case: &TransferCase, list: &NaiveSelection, plans: &[CopyPlan]) {
    let (src, dst) = (case.src.reference().unwrap(), case.dst.reference().unwrap());
    let from = src.filled(1).unwrap();
    let mut expected = dst.filled(2).unwrap();
    let mut planned = expected.clone();
    let bytes = naive_copy(&src, &from, &dst, &mut expected, list).unwrap();
    let mut copied = 0;
    for plan in plans {
        copied += execute(plan, &from, &mut planned).unwrap();
    }
    assert_eq!(
        (copied, plans.iter().map(CopyPlan::bytes).sum()),
        (bytes, bytes)
    );
    assert!(planned == expected, "the images differ: {list:?}");
}

proptest! {
    #![proptest_config(config(700))]

    #[test]
    fn a_planner_gives_every_list_the_plan_that_a_new_one_would((case, lists) in lists()) {
        let (src, dst) = (resolve(&case.src), resolve(&case.dst));
        let settings = case.selection.selection().settings();
        let mut planner = CopyPlanner::new(Arc::clone(&src), Arc::clone(&dst), settings).unwrap();
        for list in &lists {
            let selection = list.selection();
            let plan = planner.plan(selection.pairs.iter().copied());
            prop_assert_eq!(&plan, &CopyPlan::new(&src, &dst, &selection));
            match plan {
                Ok(plan) => assert_copies(&case, list, &[plan]),
                Err(error) => prop_assert!(refused(&error), "{}", error),
            }
        }
    }

    /// Layers of any digits: in regions, between other axes, split by moduli.
    #[test]
    fn plans_of_single_layers_come_from_one_plan((case, lists) in lists()) {
        let (src, dst) = (resolve(&case.src), resolve(&case.dst));
        let settings = case.selection.selection().settings();
        let mut planner = CopyPlanner::new(Arc::clone(&src), Arc::clone(&dst), settings).unwrap();
        for list in &lists {
            let selection = list.selection();
            let plans = match planner.plan_layers(selection.pairs.iter().copied()) {
                Ok(plans) => plans,
                Err(error) => {
                    prop_assert!(refused(&error), "{}", error);
                    continue;
                }
            };
            let each: Vec<CopyPlan> = plans.iter().collect();
            prop_assert_eq!(plans.layers(), list.layers.count);
            prop_assert!(plans.get(plans.layers()).is_none());
            prop_assert_eq!(plans.runs(), each.iter().map(CopyPlan::runs).sum::<u64>());
            assert_copies(&case, list, &each);
            let all = selection.layers.unwrap();
            for (layer, plan) in (0..).zip(&each) {
                let one = RangePair {
                    source: all.source + layer,
                    destination: all.destination + layer,
                    count: 1,
                };
                let single = selection.clone().with_layers(one);
                let fresh = CopyPlan::new(&src, &dst, &single).unwrap();
                prop_assert_eq!(plan.bytes(), fresh.bytes());
                prop_assert_eq!(moved(plan), moved(&fresh));
            }
        }
    }
}

/// Every byte that a plan moves, in the order of the destination.
fn moved(plan: &CopyPlan) -> Vec<[u64; 4]> {
    let mut bytes = Vec::new();
    plan.for_each_run(|from, to, count| {
        let byte = |i| [to.region, to.offset + i, from.region, from.offset + i];
        bytes.extend((0..count).map(byte));
    });
    bytes.sort_unstable();
    bytes
}

/// If the generators never produced moduli of layers and repeated bindings, the tests above would
/// prove little.
#[test]
fn generated_lists_have_layers_with_moduli() {
    use proptest::{strategy::ValueTree, test_runner::TestRunner};
    let mut runner = TestRunner::deterministic();
    let mut found = 0;
    for _ in 0..400 {
        let (case, lists) = lists().new_tree(&mut runner).unwrap().current();
        let text = format!("{} {}", case.src.word, case.dst.word);
        let letters: Vec<char> = text.chars().collect();
        let split = letters
            .windows(2)
            .any(|pair| pair[0] == 'L' && pair[1].is_ascii_digit());
        found += u32::from(split && lists[0].layers.count > 1);
    }
    assert!(found >= 10, "{found}");
}

fn planner(blocks: u64) -> CopyPlanner {
    let unit = Unit::named("bf16").unwrap();
    let shape = Shape::key_value(blocks, 2, 16, 2, 4, &unit).unwrap();
    let word = Word::parse("BLKNHC").unwrap();
    let layout = Arc::new(StridedLayout::resolve(&word, &shape, 1).unwrap());
    CopyPlanner::new(Arc::clone(&layout), layout, Selection::default().settings()).unwrap()
}

fn pairs(list: &[(u64, u64)]) -> Vec<BlockPair> {
    let whole = |&(from, to): &(u64, u64)| BlockPair::whole(from, to, 16);
    list.iter().map(whole).collect()
}

/// Pitfall 16: a refused list leaves no state that affects another one.
#[test]
fn planes_without_heads_are_copied_with_some_heads_only_on_request() {
    let unit = Unit::raw(2).unwrap();
    let with_heads = |heads| {
        let planes = vec![
            Plane::new("k", unit.clone())
                .unwrap()
                .extent(Axis::H, heads),
            Plane::new("c", unit.clone()).unwrap().extent(Axis::C, 5),
        ];
        let shape = Shape::new(1, 3, 4, planes).unwrap();
        let word = "BL(kHN,cNC)".parse().unwrap();
        Arc::new(StridedLayout::resolve(&word, &shape, 1).unwrap())
    };
    let (part, whole) = (with_heads(2), with_heads(6));
    let settings = PlanSettings::new()
        .layers(RangePair::same(0, 3))
        .heads(RangePair {
            source: 0,
            destination: 4,
            count: 2,
        });
    let plan = |settings| {
        let mut planner = CopyPlanner::new(Arc::clone(&part), Arc::clone(&whole), settings)?;
        planner.plan([BlockPair::whole(0, 0, 4)])
    };
    let refused = plan(settings).unwrap_err();
    assert!(matches!(
        refused,
        LayoutError::Plan(PlanError::PlaneNotPerHead { count: 2, .. })
    ));
    let plan = plan(settings.replicated_planes(true)).unwrap();
    assert_eq!(plan.bytes(), 3 * 4 * (2 + 5) * 2);
}

#[test]
fn refused_lists_leave_no_trace() {
    let mut planner = planner(5000);
    let good: Vec<(u64, u64)> = (0..1000).map(|i| (i, (i * 7 + 3) % 5000)).collect();
    let fresh = planner.clone().plan(pairs(&good)).unwrap();
    for spoilt in [0, 1, 500, 999] {
        let mut twice = good.clone();
        twice[spoilt].1 = good[(spoilt + 400) % 1000].1;
        let block = twice[spoilt].1;
        let error = planner.plan(pairs(&twice)).unwrap_err();
        assert_eq!(
            error,
            LayoutError::Plan(PlanError::DuplicateDestination { block, token: 0 })
        );
        let mut outside = good.clone();
        outside[spoilt].1 = 5000;
        let error = planner.plan(pairs(&outside)).unwrap_err();
        assert!(matches!(
            error,
            LayoutError::Plan(PlanError::BlockOutOfRange { block: 5000, .. })
        ));
        assert_eq!(planner.plan(pairs(&good)).unwrap(), fresh);
    }
    assert_eq!(
        planner.plan([]),
        Err(LayoutError::Plan(PlanError::NothingSelected))
    );
}

/// The pairwise comparison, the bitmap and the sort find the same duplicates.
#[test]
fn duplicates_are_found_in_lists_of_every_length() {
    for blocks in [70, 1 << 30] {
        let mut planner = planner(blocks);
        for length in 1..65u64 {
            let down: Vec<(u64, u64)> = (0..length).map(|i| (i, length - i)).collect();
            planner.plan(pairs(&down)).unwrap();
            for twice in 1..length {
                let mut list = down.clone();
                list[0].1 = length - twice;
                let error = planner.plan(pairs(&list)).unwrap_err();
                let block = length - twice;
                assert_eq!(
                    error,
                    LayoutError::Plan(PlanError::DuplicateDestination { block, token: 0 })
                );
            }
        }
    }
}

/// A loop pays where both ids ascend by one, or for four blocks at equal distances.
#[test]
fn progressions_are_found_wherever_they_start() {
    let mut planner = planner(64);
    let mut grouped = |list: &[(u64, u64)]| -> Vec<(u64, Vec<u64>)> {
        let plan = planner.plan(pairs(list)).unwrap();
        let classes = plan.classes().iter();
        classes
            .map(|class| {
                let starts = class.pairs.iter().map(|pair| pair.source_block);
                (class.blocks_per_pair, starts.collect())
            })
            .collect()
    };
    assert_eq!(grouped(&[(3, 4), (4, 5)]), [(2, vec![3])]);
    assert_eq!(grouped(&[(3, 4), (5, 6), (7, 8)]), [(1, vec![3, 5, 7])]);
    let four = [(1, 0), (3, 5), (5, 10), (7, 15)];
    assert_eq!(grouped(&four), [(4, vec![1])]);
    // Three that ascend by two; the last one starts a step of one.
    let mixed = [(1, 0), (3, 2), (5, 4), (6, 5), (7, 6)];
    assert_eq!(grouped(&mixed), [(1, vec![1, 3]), (3, vec![5])]);
    let down: Vec<(u64, u64)> = (0..6).map(|i| (9 - i, 20 - i)).collect();
    assert_eq!(grouped(&down), [(1, vec![9, 8, 7, 6, 5, 4])]);
    let to_many: Vec<(u64, u64)> = (0..6).map(|i| (9, 20 + 2 * i)).collect();
    assert_eq!(grouped(&to_many), [(6, vec![9])]);
    let to_one = [(1, 9), (2, 9)].map(|(from, to)| BlockPair::whole(from, to, 8));
    let mut halves = to_one;
    halves[1].destination_token = 8;
    assert_eq!(planner.plan(halves).unwrap().classes().len(), 1);
    assert!(planner.plan(to_one).is_err());
}
