//! `kvtile inspect` as a user runs it.
use crate::program::{kvtile, saved_cache};

fn text(path: &std::path::Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn a_whole_cache_tells_what_it_holds() {
    let folder = tempfile::tempdir().unwrap();
    let path = saved_cache(folder.path(), "cache.kvtile", 10_000.0);
    let report = kvtile(&["inspect", text(&path)]).ok();
    for part in [
        "toy",
        "0123abc",
        "base 10000",
        "BHLKNC: block, head, layer, plane, token, content",
        "note prompt",
        "a digest",
        "all 6 checksums hold",
    ] {
        assert!(report.contains(part), "{part:?} is missing in\n{report}");
    }
    let json = kvtile(&["inspect", text(&path), "--json"]).json();
    assert_eq!(json["verdict"], "whole");
    assert_eq!(json["tokens"], 23);
    assert_eq!(json["blocks"]["checked"], 6);
    assert_eq!(json["identity"]["model"], "toy");
    assert_eq!(json["shape"]["num_blocks"], 6);
    let json = kvtile(&["inspect", text(&path), "--no-blocks", "--json"]).json();
    assert_eq!(json["verdict"], "unchecked");
}

/// Pitfall 36: a changed byte anywhere is found, wherever it is.
#[test]
fn a_flipped_bit_is_found_wherever_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let path = saved_cache(folder.path(), "cache.kvtile", 10_000.0);
    let whole = std::fs::read(&path).unwrap();
    let block = kvtile(&["inspect", text(&path), "--json"]).json();
    let data = whole.len() - usize::try_from(block["data_bytes"].as_u64().unwrap()).unwrap();
    for (at, part) in [
        (0, "not a saved cache"),
        (20, "preamble fails its checksum"),
        (100, "header or checksum table"),
        (data + 5, "saved block 0 fails its checksum"),
    ] {
        let mut bytes = whole.clone();
        bytes[at] ^= 0x10;
        std::fs::write(&path, &bytes).unwrap();
        let ran = kvtile(&["inspect", text(&path)]);
        let (all, error) = (ran.stdout.clone(), ran.fails(1));
        assert!(
            format!("{all}{error}").contains(part),
            "byte {at}: {all}{error}"
        );
    }
    std::fs::write(&path, &whole).unwrap();
    kvtile(&["inspect", text(&path)]).ok();
}

#[test]
fn a_damaged_block_is_named_in_json_and_by_the_exit_code() {
    let folder = tempfile::tempdir().unwrap();
    let path = saved_cache(folder.path(), "cache.kvtile", 10_000.0);
    let mut bytes = std::fs::read(&path).unwrap();
    let last = bytes.len() - 4096;
    bytes[last] ^= 1;
    std::fs::write(&path, &bytes).unwrap();
    let ran = kvtile(&["inspect", text(&path), "--json"]);
    let json: serde_json::Value = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!(json["verdict"], "damaged");
    assert_eq!(json["blocks"]["bad"][0]["block"], 5);
    assert!(ran.fails(1).contains("1 of 6 blocks are damaged"));
}

#[test]
fn a_truncated_file_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = saved_cache(folder.path(), "cache.kvtile", 10_000.0);
    let whole = std::fs::read(&path).unwrap();
    for length in [1, 63, 64, 200, whole.len() - 1] {
        std::fs::write(&path, &whole[..length]).unwrap();
        let ran = kvtile(&["inspect", text(&path), "--json"]);
        let json: serde_json::Value = serde_json::from_str(&ran.stdout).unwrap();
        assert!(json["problem"].is_string(), "{json}");
        assert!(!ran.fails(1).is_empty());
    }
}

/// Pitfall 23: another RoPE base is another identity, and the refusal names the field.
#[test]
fn another_identity_is_refused_by_the_name_of_the_field() {
    let folder = tempfile::tempdir().unwrap();
    let ours = saved_cache(folder.path(), "a.kvtile", 10_000.0);
    let same = saved_cache(folder.path(), "b.kvtile", 10_000.0);
    let other = saved_cache(folder.path(), "c.kvtile", 500_000.0);
    let equal = kvtile(&["inspect", text(&ours), "--against", text(&same)]).ok();
    assert!(equal.contains("equal"), "{equal}");
    let error = kvtile(&["inspect", text(&ours), "--against", text(&other)]).fails(1);
    assert!(
        error.contains("rope.base differs: 10000.0 here, 500000.0 there"),
        "{error}"
    );
    // The same from a file of JSON, as `--json` printed it.
    let json = kvtile(&["inspect", text(&other), "--json"]).json();
    let identity = folder.path().join("identity.json");
    std::fs::write(&identity, json["identity"].to_string()).unwrap();
    let ran = kvtile(&[
        "inspect",
        text(&ours),
        "--against",
        text(&identity),
        "--json",
    ]);
    let json: serde_json::Value = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!(json["verdict"], "refused");
    assert_eq!(json["against"]["differences"][0]["field"], "rope.base");
    ran.fails(1);
}

#[test]
fn files_that_are_neither_are_told_apart() {
    let folder = tempfile::tempdir().unwrap();
    let ours = saved_cache(folder.path(), "a.kvtile", 10_000.0);
    let junk = folder.path().join("junk");
    std::fs::write(&junk, "{\"model\": 3}").unwrap();
    let error = kvtile(&["inspect", text(&ours), "--against", text(&junk)]).fails(1);
    assert!(error.contains("neither a saved cache nor"), "{error}");
    let missing = folder.path().join("missing");
    let error = kvtile(&["inspect", text(&missing)]).fails(1);
    assert!(error.contains("missing"), "{error}");
    let error = kvtile(&["inspect", text(folder.path())]).fails(1);
    assert!(!error.contains("panicked"), "{error}");
}
