//! Every rival does the same work in the benchmark as kvtile: the benchmark panics where one finds
//! other blocks.

use kvtile_bench::blocks::{self, BlocksSettings};
use kvtile_rivals::RIVALS;

#[test]
fn every_rival_finds_and_evicts_what_kvtile_does() {
    let settings = BlocksSettings {
        rounds: 2,
        blocks: 1_024,
        policies: Vec::new(),
    };
    let report = blocks::run(&settings, &RIVALS).unwrap();
    let all = [
        ("kvtile", "gittins"),
        ("kvtile", "gittins, maintained"),
        ("kvtile", "lru"),
        ("kvbm-logical 1.6.1", "lineage"),
        ("kvbm-logical 1.6.1", "lru"),
    ];
    let mut rows = report.managers.iter();
    for operation in [
        "register",
        "match active",
        "match inactive and release",
        "the same on two threads",
        "maintain",
        "evict and allocate",
    ] {
        let maintains = operation == "maintain";
        let named = all
            .iter()
            .filter(|(_, order)| !maintains || order.contains(','));
        for &(manager, order) in named {
            let row = rows.next().unwrap();
            assert_eq!((row.manager, row.order), (manager, order));
            assert_eq!(row.operation, operation);
            assert!(row.ns_per_block > 0.0, "{row:?}");
            let own = manager == "kvtile";
            let others = if own { 2 } else { 3 };
            assert_eq!(row.over.len(), if maintains { 0 } else { others });
            for ratio in &row.over {
                assert!(ratio.ratio.is_finite() && ratio.ratio > 0.0, "{row:?}");
                let expected = if own {
                    let registers_or_matches = operation != "evict and allocate";
                    (order != "lru" && ratio.policy == "lru" && registers_or_matches).then_some(1.5)
                } else {
                    ((order == "lru") == (ratio.policy == "lru")).then_some(10.0)
                };
                assert_eq!(ratio.goal, expected, "{row:?}");
            }
        }
    }
    assert!(rows.next().is_none());
    assert_eq!(report.managers_left_out, None);
    let text = report.to_string();
    for word in [
        "kvbm-logical 1.6.1 lineage",
        "evict and allocate",
        "goal 10",
        "goal 1.5",
    ] {
        assert!(text.contains(word), "{text}");
    }
}
