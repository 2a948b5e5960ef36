//! `kvtile replay --nodes` as a user runs it, on the trace that ships.

use serde_json::Value;

use crate::program::kvtile;

const TRACE: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/../../docs/traces/generated.jsonl"
);

fn runs(args: &[&str]) -> (Value, Vec<Value>) {
    let json = kvtile(&[&["replay", TRACE, "--json"], args].concat()).json();
    let runs = json.get("runs").and_then(Value::as_array).unwrap().clone();
    (json, runs)
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap()
}

#[test]
fn every_combination_of_lists_is_a_row() {
    let args = [
        "--nodes",
        "1,8",
        "--capacity",
        "500",
        "--route",
        "round-robin,prefix,prefix-load",
        "--shared",
        "0,2000,unbounded",
        "--bundle",
        "1,4",
        "--shared-writes",
        "first,uses:2,cached-uses:2",
        "--policy",
        "lru",
    ];
    let (json, rows) = runs(&args);
    // Without a shared tier there are neither bundles nor writes.
    assert_eq!(rows.len(), 2 * 3 * (1 + 2 * 2 * 3));
    let most = number(&json["infinite_block_hit_ratio"]);
    for run in &rows {
        let hits = &run["hits"];
        let parts = ["host", "disk", "shared"].map(|place| number(&hits[place]));
        let all = number(&run["block_hit_ratio"]);
        assert!((all - parts.iter().sum::<f64>()).abs() < 1e-12, "{run}");
        assert!(all <= most + 1e-12, "{run}");
        if run["shared_capacity_blocks"].is_null()
            && run["bundle_blocks"] == 1
            && run["shared_writes"] == "first"
        {
            assert!((all - most).abs() < 1e-12, "{run}");
        }
        assert!(
            run["moved_bytes"].is_null() && run["shared"]["bytes"].is_null(),
            "{run}"
        );
    }
}

#[test]
fn bytes_follow_from_the_size_of_a_block_or_from_a_model() {
    let args = [
        "--nodes",
        "4",
        "--capacity",
        "500",
        "--shared",
        "3000",
        "--bundle",
        "8",
    ];
    let given = [
        &args[..],
        &["--block-bytes", "1000", "--disk-blocks", "700"],
    ]
    .concat();
    let (_, rows) = runs(&given);
    let run = &rows[0];
    let (puts, gets) = (&run["shared"]["puts"], &run["shared"]["gets"]);
    let moved = &run["moved_bytes"];
    assert_eq!(
        moved["host_to_shared"].as_u64(),
        puts.as_u64().map(|puts| puts * 8000)
    );
    assert_eq!(
        moved["shared_to_host"].as_u64(),
        gets.as_u64().map(|gets| gets * 8000)
    );
    assert!(number(&moved["host_to_disk"]) > 0.0 && number(&moved["disk_to_host"]) > 0.0);
    assert_eq!(run["shared"]["values_max"], 375);
    assert_eq!(run["shared"]["bytes_max"], 3_000_000);
    let model = [&args[..], &["--model", "llama-3.1-8b"]].concat();
    let (json, _) = runs(&model);
    // 32 layers, K and V, 8 heads of 128 values of 2 bytes, 512 tokens.
    assert_eq!(json["block_bytes"], 32 * 2 * 8 * 128 * 2 * 512);
    let text = kvtile(&[&["replay", TRACE], &model[..]].concat()).ok();
    for word in [
        "blocks of 64 MiB",
        "MB a request",
        "from shared",
        "bundle: 8",
        "nodes: 4",
    ] {
        assert!(text.contains(word), "{word}: {text}");
    }
}

#[test]
fn options_of_nodes_are_refused_where_they_mean_nothing() {
    let with = |args: &[&str]| kvtile(&[&["replay", TRACE], args].concat()).fails(2);
    with(&["--nodes", "2"]);
    with(&["--nodes", "0", "--capacity", "5"]);
    with(&["--nodes", "1001", "--capacity", "5"]);
    with(&["--capacity", "5", "--shared", "5"]);
    with(&["--nodes", "2", "--capacity", "5", "--bundle", "2"]);
    with(&["--nodes", "2", "--capacity", "5", "--route", "random"]);
    with(&["--nodes", "2", "--capacity", "5", "--html", "page.html"]);
    with(&[
        "--nodes",
        "2",
        "--capacity",
        "5",
        "--disk",
        "folder",
        "--disk-bytes",
        "1MB",
    ]);
    with(&[
        "--nodes",
        "2",
        "--capacity",
        "5",
        "--shared",
        "9",
        "--shared-writes",
        "uses:0",
    ]);
    let error = with(&[
        "--nodes",
        "2",
        "--capacity",
        "5",
        "--shared",
        "7",
        "--bundle",
        "8",
    ]);
    assert!(error.contains("holds no bundle of 8 blocks"), "{error}");
    let error = with(&[
        "--nodes",
        "2",
        "--capacity",
        "5",
        "--model",
        "no-such-model",
    ]);
    assert!(error.contains("no-such-model"), "{error}");
}
