//! Models with groups, as a user sees them: `kvtile layout groups` and `kvtile replay --groups`.

use std::{num::NonZeroU64, path::PathBuf};

use kvtile::{
    Plane, Shape, Unit,
    identity::{ModelGroup, ModelIdentity},
    layout::{Axis, GroupRule, LayerSet},
};
use serde_json::Value;

use crate::program::kvtile;

/// Requests of the trace that are replayed.
const REQUESTS: usize = 200;

const TRACE: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/../../docs/traces/generated.jsonl"
);

/// 12 layers with full attention, 12 with a window of 128 tokens, and a state of 1 MiB in 2 more.
fn model() -> ModelIdentity {
    let attention = Shape::key_value(1, 12, 16, 8, 64, "bf16").unwrap();
    let plane = Plane::new("s", Unit::new("f32", 4, 1).unwrap()).unwrap();
    let plane = plane.extent(Axis::C, 1 << 17).per_page();
    let state = Shape::new(1, 2, 64, vec![plane]).unwrap();
    let window = GroupRule::Window {
        tokens: NonZeroU64::new(128).unwrap(),
    };
    let layers = |first| LayerSet::new((first..24).step_by(2)).unwrap();
    let groups = vec![
        ModelGroup::new("full", GroupRule::Full, &attention)
            .and_then(|group| group.with_layers(layers(1))),
        ModelGroup::new("window", window, &attention)
            .and_then(|group| group.with_layers(layers(0))),
        ModelGroup::new("state", GroupRule::Stop, &state)
            .and_then(|group| group.with_layers(LayerSet::new(24..26).unwrap())),
    ];
    let groups = groups.into_iter().map(Result::unwrap).collect();
    ModelIdentity::new("a-hybrid", "1", groups).unwrap()
}

fn file(folder: &tempfile::TempDir) -> PathBuf {
    let path = folder.path().join("model.json");
    std::fs::write(&path, serde_json::to_string(&model()).unwrap()).unwrap();
    path
}

/// The first requests of the trace that ships.
fn trace(folder: &tempfile::TempDir) -> String {
    let text = std::fs::read_to_string(TRACE).unwrap();
    let first: Vec<&str> = text.lines().take(REQUESTS).collect();
    let path = folder.path().join("trace.jsonl");
    std::fs::write(&path, first.join("\n")).unwrap();
    path.to_str().unwrap().to_owned()
}

#[test]
fn the_groups_of_a_model_are_shown_with_what_a_hit_needs() {
    let folder = tempfile::tempdir().unwrap();
    let path = file(&folder);
    let path = path.to_str().unwrap();
    let args = ["layout", "groups", path, "--tokens", "1000"];
    let report = kvtile(&[&args[..], &["--json"]].concat()).json();
    // 960 is the last multiple of the state's pages of 64 tokens.
    assert_eq!(
        (&report["tokens"], &report["stop_unit"]),
        (&960.into(), &64.into())
    );
    let of = |name: &str| {
        let groups = report["groups"].as_array().unwrap();
        let group = groups.iter().find(|group| group["name"] == name).unwrap();
        let number = |field: &str| group[field].as_u64().unwrap();
        (
            number("first_needed_page"),
            number("needed_pages"),
            number("needed_bytes"),
        )
    };
    const PAGE: u64 = 12 * 16 * 2 * 8 * 64 * 2;
    assert_eq!(of("full"), (0, 60, 60 * PAGE));
    // The next token attends to the tokens from 833 on.
    assert_eq!(of("window"), (52, 8, 8 * PAGE));
    assert_eq!(of("state"), (14, 1, 1 << 20));
    assert_eq!(report["needed_bytes"], 68 * PAGE + (1 << 20));
    assert_eq!(report["as_full_bytes"], 120 * PAGE + (1 << 20));

    let text = kvtile(&args).ok();
    for part in [
        "a-hybrid",
        "window of 128 tokens",
        "stops are multiples of 64 tokens",
        "████",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
    let picture = folder.path().join("groups.svg");
    kvtile(&[&args[..], &["--svg", picture.to_str().unwrap()]].concat()).ok();
    let picture = std::fs::read_to_string(picture).unwrap();
    assert_eq!(picture.matches("needed\" x=").count(), 3, "{picture}");
}

#[test]
fn a_trace_is_replayed_on_the_groups_of_a_model() {
    let folder = tempfile::tempdir().unwrap();
    let path = file(&folder);
    let path = path.to_str().unwrap();
    let trace = trace(&folder);
    let args = [
        "replay",
        &trace,
        "--groups",
        path,
        "--host-bytes",
        "256MiB,unbounded",
    ];
    let report = kvtile(&[&args[..], &["--json"]].concat()).json();
    let runs = report["runs"].as_array().unwrap();
    let number = |run: usize, field: &str| runs[run][field].as_u64().unwrap();
    assert_eq!((runs.len(), &runs[1]["host_bytes"]), (2, &Value::Null));
    assert!(
        number(0, "hit_tokens") < number(1, "hit_tokens"),
        "{report}"
    );
    assert!(
        number(1, "hit_tokens") <= number(1, "spine_tokens"),
        "{report}"
    );
    for run in runs {
        let groups = run["groups"].as_array().unwrap();
        let sum = |field: &str| {
            groups
                .iter()
                .map(|group| group[field].as_u64().unwrap())
                .sum::<u64>()
        };
        assert_eq!(run["loaded_bytes"], sum("loaded_bytes"));
        assert_eq!(run["stored_bytes"], sum("stored_bytes"));
        let state = groups
            .iter()
            .find(|group| group["name"] == "state")
            .unwrap();
        assert_eq!(state["loaded_pages"], run["hits"]);
    }
    let text = kvtile(&args).ok();
    assert!(
        text.contains("unbounded") && text.contains("window of 128 tokens"),
        "{text}"
    );
    // More stops find more.
    let every = [&args[..], &["--every", "512", "--json"]].concat();
    let more = kvtile(&every).json();
    let more = more["runs"][1]["hit_tokens"].as_u64().unwrap();
    assert!(more >= number(1, "hit_tokens"), "{more} {report}");
}

#[test]
fn what_is_no_model_and_what_does_not_go_together_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = file(&folder);
    let path = path.to_str().unwrap();
    let bad = folder.path().join("bad.json");
    std::fs::write(&bad, "{\"model\": 3}").unwrap();
    let bad = bad.to_str().unwrap();
    let error = kvtile(&["layout", "groups", bad]).fails(1);
    assert!(
        error.contains("to_json") && error.contains("bad.json"),
        "{error}"
    );
    kvtile(&["layout", "groups"]).fails(2);
    kvtile(&["layout", "groups", path, path]).fails(2);
    kvtile(&["layout", "groups", path, "--heads", "3"]).fails(2);
    kvtile(&["layout", "BLKNHC", "--tokens", "64"]).fails(2);
    let error = kvtile(&["layout", "groups", path, "--tokens", "63"]).fails(2);
    assert!(error.contains("63"), "{error}");
    kvtile(&["replay", TRACE, "--groups", path]).fails(2);
    kvtile(&["replay", TRACE, "--host-bytes", "1GiB"]).fails(2);
    let stops = [
        "replay",
        TRACE,
        "--groups",
        path,
        "--host-bytes",
        "1GiB",
        "--stops",
    ];
    kvtile(&[&stops[..], &["none"]].concat()).fails(2);
    kvtile(&[&stops[..], &["none,prompt", "--every", "64"]].concat()).fails(2);
    kvtile(&[
        "replay",
        TRACE,
        "--groups",
        path,
        "--host-bytes",
        "1GiB",
        "--dry",
    ])
    .fails(2);
    kvtile(&["replay", TRACE, "--groups", path, "--host-bytes", "much"]).fails(2);
    let error = kvtile(&["replay", TRACE, "--groups", path, "--host-bytes", "4KiB"]).fails(1);
    assert!(error.contains("4096"), "{error}");
    let odd = [
        "replay",
        TRACE,
        "--groups",
        path,
        "--host-bytes",
        "1GiB",
        "--page-size",
        "500",
    ];
    kvtile(&odd).fails(1);
}
