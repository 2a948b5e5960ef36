//! Every rival does in the benchmark what kvtile does: the benchmark stops where one finds other blocks.

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
    let names: Vec<(&str, &str)> = report
        .managers
        .iter()
        .take(4)
        .map(|row| (row.manager, row.order))
        .collect();
    assert_eq!(
        names,
        [
            ("kvtile", "gittins"),
            ("kvtile", "lru"),
            ("kvbm-logical 1.6.1", "lineage"),
            ("kvbm-logical 1.6.1", "lru"),
        ]
    );
    for rows in report.managers.chunks(4) {
        let operation = rows[0].operation;
        for row in rows {
            assert_eq!(row.operation, operation);
            assert!(row.ns_per_block > 0.0, "{row:?}");
            let own = row.manager == "kvtile";
            assert_eq!(row.over.len(), if own { 1 } else { 2 }, "{row:?}");
            for ratio in &row.over {
                assert!(ratio.ratio.is_finite() && ratio.ratio > 0.0, "{row:?}");
                let alike = own || ratio.policy == "lru" && row.order == "lru";
                let goal = alike || ratio.policy == "gittins" && row.order == "lineage";
                let said = goal && !(own && (row.order == "lru" || operation.contains("evict")));
                assert_eq!(ratio.goal.is_some(), said, "{row:?}");
            }
        }
    }
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
