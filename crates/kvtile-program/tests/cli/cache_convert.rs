//! `kvtile cache convert` as a user runs it, over the folder of version 1 that the tests of the disk tier have.
use std::path::{Path, PathBuf};

use crate::program::kvtile;
use kvtile::tiers::{cache::STORAGE_WORD, disk::Inspection};

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn version_1(folder: &Path) -> PathBuf {
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR"));
    let fixture = fixture.join("../kvtile-tiers/tests/fixtures/version_1");
    let path = folder.join("old");
    std::fs::create_dir(&path).unwrap();
    for file in ["lock", "manifest.json", "records", "slots"] {
        std::fs::copy(fixture.join(file), path.join(file)).unwrap();
    }
    path
}

/// What stat advises, and what a user does then.
#[test]
fn an_old_folder_is_converted_as_its_refusal_advises() {
    let folder = tempfile::tempdir().unwrap();
    let old = version_1(folder.path());
    for command in ["stat", "verify"] {
        let error = kvtile(&["cache", command, text(&old)]).fails(1);
        assert!(error.contains("kvtile cache convert"), "{error}");
    }
    let new = folder.path().join("new");
    let ran = kvtile(&["cache", "convert", text(&old), text(&new)]);
    for part in [
        "6 blocks, 18 KiB (18,432 bytes), from version 1, BHLKNC to",
        STORAGE_WORD,
        "1 older copies",
        "in slot 5: the block fails its checksum",
        "slot 7: its record is torn",
    ] {
        assert!(
            ran.stdout.contains(part),
            "{part:?} is missing in\n{}",
            ran.stdout
        );
    }
    // As `verify` has it: the whole blocks are there, and not all were whole.
    let error = ran.fails(1);
    assert!(
        error.contains("1 blocks are bad, 1 records torn, 0 unreadable"),
        "{error}"
    );
    kvtile(&["cache", "verify", text(&new)]).ok();
    let stat = kvtile(&["cache", "stat", text(&new), "--json"]).json();
    assert_eq!(
        (&stat["blocks"], &stat["in_use"]),
        (&6.into(), &false.into())
    );
}

#[test]
fn a_whole_folder_is_converted_into_another_order() {
    let folder = tempfile::tempdir().unwrap();
    let old = version_1(folder.path());
    let at = |name: &str| folder.path().join(name);
    assert_eq!(
        kvtile(&["cache", "convert", text(&old), text(&at("a"))]).code,
        1
    );
    let (a, b) = (at("a"), at("b"));
    let args = [
        "cache",
        "convert",
        text(&a),
        text(&b),
        "--layout",
        "BLKNHC",
        "--json",
    ];
    let report = kvtile(&args).json();
    for (field, value) in [
        ("verdict", "whole".into()),
        ("from_version", 2.into()),
        ("stored_layout", STORAGE_WORD.into()),
        ("layout", "BLKNHC".into()),
        ("blocks", 6.into()),
        ("bytes", (6 * 3072).into()),
        ("bad", serde_json::json!([])),
        ("not_locked", serde_json::Value::Null),
    ] {
        assert_eq!(report[field], value, "{field}");
    }
    let capacity = Inspection::open(&b).unwrap().manifest().capacity_bytes();
    assert_eq!(report["capacity_bytes"], capacity);
}

#[test]
fn what_makes_no_sense_is_refused_and_leaves_no_folder() {
    let folder = tempfile::tempdir().unwrap();
    let old = version_1(folder.path());
    let new = folder.path().join("new");
    let convert = |more: &[&str]| {
        let mut args = vec!["cache", "convert", text(&old)];
        args.extend(more);
        kvtile(&args)
    };
    let cases: [(&[&str], i32, &str); 7] = [
        (&[text(&new), "--layout", "BHLKN("], 2, "BHLKN("),
        (&[text(&new), "--capacity", "many"], 2, "--capacity"),
        (&[text(&new), "--capacity", "9000"], 1, "give at least"),
        (&[text(&new), "--capacity", "9KiB"], 1, "9216 bytes"),
        (
            &[text(&new), "--stored-layout", "BCNHKL"],
            1,
            "do not lie as BCNHKL says",
        ),
        (&[text(&old)], 1, "a conversion only reads that"),
        (&["/proc/self"], 1, "/proc/self"),
    ];
    for (more, code, part) in cases {
        let error = convert(more).fails(code);
        assert!(error.contains(part), "{more:?}: {error}");
        assert!(!new.exists(), "{more:?}");
    }
    let refused = convert(&[text(&new), "--capacity", "9000", "--json"]);
    assert_eq!(refused.code, 1);
    let refused: serde_json::Value = serde_json::from_str(&refused.stdout).unwrap();
    assert_eq!(refused["verdict"], "refused");
}

#[test]
fn the_help_says_what_an_interruption_leaves() {
    let help = kvtile(&["cache", "convert", "--help"]).ok();
    // Lines break where the terminal ends.
    let help: Vec<&str> = help.split_whitespace().collect();
    let help = help.join(" ");
    for part in [
        "An interrupted conversion leaves a folder that is no disk tier",
        STORAGE_WORD,
        "--stored-layout",
        "Examples:",
    ] {
        assert!(help.contains(part), "{part:?} is missing in\n{help}");
    }
}
