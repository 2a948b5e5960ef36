//! `kvtile events` as a user runs it: a recording is published, and recorded again.

use std::{
    fs,
    io::{BufRead, BufReader},
    process::{Command, Stdio},
};

use serde_json::Value;

use crate::program::kvtile;

const RECORDING: &str = r#"{"received_ms":1000,"topic":"kv","sequence":4,"batch":{"time":1.5,"data_parallel_rank":null,"events":[{"type":"BlockStored","block_hashes":[{"$hex":"00ff"},18446744073709551615],"parent_block_hash":null,"token_ids":[1,2,3],"block_size":16,"lora_id":null,"medium":"GPU","lora_name":null}]}}
{"received_ms":1010,"topic":"kv","sequence":5,"batch":{"time":2.0,"data_parallel_rank":1,"events":[{"type":"BlockRemoved","block_hashes":[7],"medium":"CPU"},{"type":"AllBlocksCleared"}]}}
{"received_ms":1020,"topic":"kv","sequence":9,"missed":3,"batch":{"time":2.5,"data_parallel_rank":1,"events":[{"type":"BlockMoved","to":"CPU"}]}}
"#;

/// Rows without the time at which they came, and with the order of names that JSON does not keep.
fn rows(text: &str) -> Vec<Value> {
    let row = |line: &str| {
        let mut row: Value = serde_json::from_str(line).unwrap();
        assert!(row.as_object_mut().unwrap().remove("received_ms").is_some());
        row
    };
    text.lines().map(row).collect()
}

#[test]
fn a_recording_is_published_and_recorded_again() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let (first, again) = (path("first.jsonl"), path("again.jsonl"));
    fs::write(&first, RECORDING).unwrap();
    let mut publishing = Command::new(env!("CARGO_BIN_EXE_kvtile"))
        .args(["events", "replay", &first, "--bind", "tcp://127.0.0.1:0"])
        .args(["--replay-bind", "tcp://127.0.0.1:0", "--json"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    let stderr = publishing.stderr.take().unwrap();
    BufReader::new(stderr).read_line(&mut line).unwrap();
    let mut endpoints = line
        .split(&[' ', ',', '\n'][..])
        .filter(|word| word.starts_with("tcp://"));
    let (endpoint, replays) = (endpoints.next().unwrap(), endpoints.next().unwrap());
    let args = [
        "events", "record", endpoint, "--replay", replays, "--topic", "k", "--out", &again,
    ];
    let report = kvtile(&[&args[..], &["--batches", "3", "--seconds", "60", "--json"]].concat());
    let report = report.json();
    let counts = [
        ("batches", 3),
        ("stored_blocks", 2),
        ("removed_blocks", 1),
        ("clears", 1),
    ];
    for (name, count) in counts
        .into_iter()
        .chain([("other_events", 1), ("missed_batches", 3)])
    {
        assert_eq!(report[name], count, "{name}: {report}");
    }
    assert_eq!(rows(&fs::read_to_string(&again).unwrap()), rows(RECORDING));
    let published = publishing.wait_with_output().unwrap();
    assert!(published.status.success());
    let published: Value = serde_json::from_slice(&published.stdout).unwrap();
    assert_eq!(
        (&published["batches"], &published["dropped_messages"]),
        (&3.into(), &0.into())
    );
    // A recording is never written over.
    let refused = kvtile(&["events", "record", "tcp://127.0.0.1:1", "--out", &again]).fails(1);
    assert!(
        refused.contains("cannot connect to tcp://127.0.0.1:1"),
        "{refused}"
    );
}

#[test]
fn what_makes_no_sense_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("bad.jsonl");
    let text = path.to_str().unwrap();
    let (good, _) = RECORDING.split_once('\n').unwrap();
    fs::write(&path, format!("{good}\n{{}}\n")).unwrap();
    let bind = ["events", "replay", text, "--bind"];
    let local = [&bind[..], &["tcp://127.0.0.1:0", "--quiet"]].concat();
    let error = kvtile(&[&local[..], &["--wait", "0"]].concat()).fails(1);
    assert!(error.contains("line 2 is none of a recording"), "{error}");
    let error = kvtile(&[&local[..], &["--wait-seconds", "1"]].concat()).fails(1);
    assert!(
        error.contains("0 of 1 subscribers came within 1 s"),
        "{error}"
    );
    let error = kvtile(&[&bind[..], &["ipc:///tmp/x"]].concat()).fails(2);
    assert!(error.contains("is no endpoint"), "{error}");
    kvtile(&[&local[..], &["--speed", "0"]].concat()).fails(2);
    kvtile(&["events", "record", "tcp://127.0.0.1:1"]).fails(2);
}
