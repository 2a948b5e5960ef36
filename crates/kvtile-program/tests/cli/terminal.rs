//! Text that came from files: no command hands on what a terminal would obey.
use std::path::Path;

use crate::program::{Ran, kvtile};
use kvtile::{
    identity::{Identity, LayoutIdentity, Rope},
    layout::{PhysicalLayout, Shape, StridedLayout, Unit, Word},
    saved::{SaveOptions, save},
    tiers::disk::{BlockPieces, SlotStore, SlotStoreSettings, StoreIdentity},
    transfer::{FillPattern, TransferManager},
};

/// All control characters and all marks that turn the order of text.
fn obeyed() -> Vec<char> {
    let controls = (1..0x20).chain(0x7f..0xa0);
    let bidi = (0x202a..0x202f).chain(0x2066..0x206a);
    let marks = [0x61c, 0x200e, 0x200f, 0x2028, 0x2029];
    let numbers = controls.chain(bidi).chain(marks);
    numbers.filter_map(char::from_u32).collect()
}

/// Each of them before what makes it a colour where it is the escape character.
fn hostile() -> String {
    let each = obeyed().into_iter();
    each.flat_map(|c| [c, '[', '3', '1', 'm', 'x']).collect()
}

/// Names of files have no more than 255 bytes.
const HOSTILE_NAME: &str = "a\u{1b}[2Jb\u{9b}c\u{202e}d\u{7f}e\n[31mf";

#[track_caller]
fn check(ran: &Ran) {
    let obeyed = obeyed();
    for said in [&ran.stdout, &ran.stderr] {
        let bad = said.chars().filter(|c| *c != '\n' && obeyed.contains(c));
        let bad: Vec<char> = bad.collect();
        assert!(bad.is_empty(), "{bad:?} in {said:?}");
        assert!(
            !said.contains("\n[31m"),
            "a line break of a file in {said:?}"
        );
    }
    assert!(ran.stdout.len() + ran.stderr.len() > 0);
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn shape() -> Shape {
    Shape::key_value(2, 2, 16, 2, 64, Unit::named("bf16").unwrap()).unwrap()
}

fn hostile_identity() -> Identity {
    let rope = Rope::new(&hostile(), 10_000.0).unwrap();
    Identity::new(&hostile(), &hostile(), &shape())
        .unwrap()
        .with_rope(rope)
}

#[test]
fn of_folders() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(HOSTILE_NAME);
    let layout = StridedLayout::resolve(&"BHLKNC".parse().unwrap(), &shape(), 1).unwrap();
    let identity = StoreIdentity {
        logical: hostile_identity(),
        block_layout: LayoutIdentity::of_block(&layout),
        pieces: BlockPieces::whole(16_384),
    };
    let settings = SlotStoreSettings::new(1 << 20);
    drop(SlotStore::create_or_open(&path, &settings, &identity).unwrap());
    // The message of a refusal has both models in it, and goes to logs and exceptions as it is.
    let ours = StoreIdentity {
        logical: Identity::new("toy", "1", &shape()).unwrap(),
        ..identity
    };
    let error = SlotStore::create_or_open(&path, &settings, &ours).unwrap_err();
    let error = error.to_string();
    assert!(error.contains("model differs: toy here"), "{error}");
    assert!(!error.contains(|c| obeyed().contains(&c)), "{error:?}");
    let file = folder.path().join(format!("{HOSTILE_NAME}.safetensors"));
    let commands: [&[&str]; 8] = [
        &["cache", "stat", text(&path)],
        &["cache", "stat", text(&path), "--json"],
        &["cache", "verify", text(&path)],
        &["cache", "verify", text(&path), "--json"],
        &["cache", "export", text(&path), text(&file)],
        &["cache", "export", text(&path), text(&file), "--json"],
        &["cache", "clear", text(&path)],
        &["cache", "stat", text(folder.path())],
    ];
    for args in commands {
        check(&kvtile(args));
    }
    let json = kvtile(&["cache", "stat", text(&path), "--json"]).json();
    assert_eq!(json["identity"]["model"], hostile());
    // The parser's message quotes a damaged manifest.
    let manifest = std::fs::read_to_string(path.join("manifest.json")).unwrap();
    let field = r#""\u001b[2Jx\u009b\u202e\n[31m": 1, "format""#;
    let damaged = manifest.replacen("\"format\"", field, 1);
    std::fs::write(path.join("manifest.json"), damaged).unwrap();
    for command in ["stat", "verify"] {
        let ran = kvtile(&["cache", command, text(&path)]);
        assert!(ran.stderr.contains("cannot be used"), "{}", ran.stderr);
        check(&ran);
        check(&kvtile(&["cache", command, text(&path), "--json"]));
    }
    // Names of files that are not ours.
    std::fs::remove_file(path.join("manifest.json")).unwrap();
    std::fs::write(path.join(HOSTILE_NAME), b"mine").unwrap();
    let ran = kvtile(&["cache", "clear", text(&path), "--yes"]);
    assert!(
        ran.stderr.contains("is no disk tier and holds"),
        "{}",
        ran.stderr
    );
    check(&ran);
}

#[test]
fn of_saved_caches() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(HOSTILE_NAME);
    let word: Word = "BLKNHC".parse().unwrap();
    let layout = PhysicalLayout::builder().with_shape(shape()).layout(word);
    let manager = TransferManager::new();
    let handle = manager
        .register(layout.allocate_system().build().unwrap())
        .unwrap();
    let pattern = FillPattern::Distinct { seed: 3 };
    manager.fill(handle, &[0, 1], pattern).unwrap();
    let mut options = SaveOptions::new(hostile_identity(), 20).unwrap();
    options.notes.insert(hostile(), hostile());
    save(&manager, handle, &[0, 1], &path, &options).unwrap();
    let other = crate::program::saved_cache(folder.path(), "other", 10_000.0);
    let junk = folder.path().join(format!("{HOSTILE_NAME}.json"));
    std::fs::write(&junk, r#"{"\u001b[2J\u009b\n[31m": 1}"#).unwrap();
    let mut commands = Vec::new();
    for (file, against) in [(&path, &other), (&other, &path), (&path, &junk)] {
        commands.push(vec!["inspect", text(file)]);
        commands.push(vec!["inspect", text(file), "--against", text(against)]);
    }
    commands.push(vec!["inspect", text(&junk)]);
    for mut args in commands {
        check(&kvtile(&args));
        args.push("--json");
        check(&kvtile(&args));
    }
    let bytes = std::fs::read(&path).unwrap();
    std::fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
    check(&kvtile(&["inspect", text(&path)]));
}

#[test]
fn of_results_of_the_benchmark() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(HOSTILE_NAME);
    let small = [
        "--heads",
        "4",
        "--head-size",
        "16",
        "--layers",
        "2",
        "--bytes",
        "65536",
    ];
    let args = [&["bench"], &small[..], &["--rounds", "1", "--json"]].concat();
    let results = kvtile(&args).json();
    // Every text that the form takes from a file, one at a time.
    let mut fields = Vec::new();
    texts(&results, &mut Vec::new(), &mut fields);
    let mut shown = 0;
    for field in &fields {
        let mut poisoned = results.clone();
        *poisoned.pointer_mut(field).unwrap() = hostile().into();
        std::fs::write(&path, poisoned.to_string()).unwrap();
        let ran = kvtile(&["bench", "--from", text(&path)]);
        check(&ran);
        shown += usize::from(ran.code == 0 && ran.stdout.contains("\\u{1b}"));
        check(&kvtile(&["bench", "--from", text(&path), "--json"]));
    }
    assert!(shown > 0, "no text of {} came out", fields.len());
    std::fs::write(&path, "{\"\\u001b[2J\": \u{1b}[2J").unwrap();
    check(&kvtile(&["bench", "--from", text(&path)]));
}

/// Where texts are, by pointer: of lists the first element only.
fn texts(value: &serde_json::Value, at: &mut Vec<String>, found: &mut Vec<String>) {
    match value {
        serde_json::Value::String(_) => found.push(format!("/{}", at.join("/"))),
        serde_json::Value::Array(values) => {
            if let Some(first) = values.first() {
                at.push("0".to_owned());
                texts(first, at, found);
                at.pop();
            }
        }
        serde_json::Value::Object(fields) => {
            for (name, value) in fields {
                at.push(name.clone());
                texts(value, at, found);
                at.pop();
            }
        }
        _ => {}
    }
}

#[test]
fn of_traces() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(HOSTILE_NAME);
    let request = r#"{"timestamp": 0, "input_length": 512, "output_length": 1, "hash_ids": [1]}"#;
    let lines = [
        request.to_owned(),
        "\u{1b}[2J\u{9b}".to_owned(),
        format!(r#"{{"\u001b[2J\u009b\n[31m": 1, {}"#, &request[1..]),
        request.replace("512", r#""\u001b[2J\u202e\n[31m""#),
    ];
    for line in lines {
        std::fs::write(&path, format!("{line}\n")).unwrap();
        let args = ["replay", text(&path), "--dry", "--capacity", "2"];
        check(&kvtile(&args));
        check(&kvtile(&[&args[..], &["--json"]].concat()));
    }
    check(&kvtile(&[
        "replay",
        text(&folder.path().join("\u{1b}[2Jnone")),
        "--dry",
    ]));
}
