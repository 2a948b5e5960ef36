//! `kvtile layout` as a user runs it.
use std::process::Stdio;

use crate::program::{kvtile, program};

#[test]
fn a_word_alone_is_explained_and_drawn() {
    let text = kvtile(&["layout", "L|BH(kCN,vNC)"]).ok();
    for part in [
        "per layer: block, head, then k: content, token; v: token, content",
        "32 regions of 8 MiB",
        "each layer of a block, with all planes",
        "256 B of v in a row",
        "│ region 0: layer 0 of 32",
        "│ plane k",
    ] {
        assert!(text.contains(part), "{part:?} is missing in\n{text}");
    }
    assert!(
        !text.contains('\u{1b}'),
        "no colours where there is no terminal"
    );
    let widest = text.lines().map(|line| line.chars().count()).max().unwrap();
    assert!(widest <= 80, "{widest} columns:\n{text}");
}

#[test]
fn the_picture_fits_the_columns_that_there_are() {
    for columns in ["40", "80", "120"] {
        let word = "L|BH(kNCN16C2,vCNC16N2)";
        let mut command = program();
        let output = command
            .env("COLUMNS", columns)
            .args(["layout", word])
            .output();
        let text = String::from_utf8(output.unwrap().stdout).unwrap();
        let limit: usize = columns.parse().unwrap();
        for line in text.lines().filter(|line| line.contains('│')) {
            assert!(line.chars().count() <= limit, "{columns}: {line}");
        }
    }
}

#[test]
fn json_has_shape_regions_digits_and_contiguity() {
    let args = [
        "layout",
        "L|KBNHC",
        "--model",
        "llama-3.1-8b",
        "--tp",
        "2",
        "--json",
    ];
    let json = kvtile(&args).json();
    assert_eq!(json["word"], "L|KBNHC");
    assert_eq!(json["regions"]["count"], 32);
    assert_eq!(json["shape"]["shard"]["heads"]["count"], 4);
    assert_eq!(json["shape"]["planes"][0]["unit"]["codec"], "bf16");
    assert_eq!(json["contiguous"]["block"], false);
    assert_eq!(
        json["contiguous"]["plane_of_layer"],
        serde_json::json!([true, true])
    );
    assert_eq!(json["bytes"]["padding"], 0);
    let digit = &json["planes"][1]["digits"][1];
    assert_eq!(
        (&digit["axis"], &digit["step"]["bytes"]),
        (&"B".into(), &16384.into())
    );
}

#[test]
fn planes_of_other_names_are_given_one_by_one() {
    let args = [
        "layout",
        "L|BNKC",
        "--plane",
        "c:bf16:C=512",
        "--plane",
        "r:bf16:C=64",
        "--json",
    ];
    let json = kvtile(&args).json();
    assert_eq!(json["planes"][1]["offset_bytes"], 1024);
    assert_eq!(json["contiguous"]["layer_of_block"], true);
}

#[test]
fn alignment_and_padding_are_counted() {
    let args = [
        "layout",
        "LBNKHC",
        "--head-size",
        "100",
        "--page-size",
        "3",
        "--alignment",
        "4096",
        "--json",
    ];
    let json = kvtile(&args).json();
    assert_eq!(json["alignment"], 4096);
    let (total, payload) = (&json["bytes"]["total"], &json["bytes"]["payload"]);
    let padding = total.as_u64().unwrap() - payload.as_u64().unwrap();
    assert!(padding > 0);
    assert_eq!(json["bytes"]["padding"], padding);
    let text = kvtile(&["layout", "B@4096LKNHC", "--layers", "1", "--head-size", "5"]).ok();
    assert!(text.contains("1.50 KiB of it unused"), "{text}");
    assert!(text.contains("│ 1.50 KiB unused│"), "{text}");
}

#[test]
fn a_bad_word_is_pointed_at() {
    let error = kvtile(&["layout", "BL(kNC"]).fails(2);
    let lines: Vec<&str> = error.lines().collect();
    let word = lines
        .iter()
        .position(|line| line.contains("BL(kNC"))
        .unwrap();
    assert_eq!(lines[word + 1].trim_end(), "    ^", "{error}");
    assert!(error.contains("hint:"), "{error}");
    // A word that parses and does not fit names the axis.
    let error = kvtile(&["layout", "BLKN"]).fails(2);
    assert!(
        error.contains("axis H") || error.contains("axis C"),
        "{error}"
    );
}

#[test]
fn known_layouts_are_listed_by_engine_and_filtered() {
    let all = kvtile(&["layout", "list"]).ok();
    for engine in ["vLLM", "SGLang", "LMCache", "TensorRT-LLM"] {
        assert!(all.contains(engine), "{engine}");
    }
    let rows = kvtile(&["layout", "list", "vllm", "cpu", "--json"]).json();
    let rows = rows.as_array().unwrap();
    assert!(!rows.is_empty() && rows.len() < 30);
    for row in rows {
        for field in ["name", "engine", "case", "evidence", "source"] {
            assert!(row[field].is_string(), "{field} of {row}");
        }
    }
    let error = kvtile(&["layout", "list", "abacus"]).fails(2);
    assert!(error.contains("vLLM"), "{error}");
}

#[test]
fn every_known_layout_that_has_one_is_explained_by_name() {
    let rows = kvtile(&["layout", "list", "--json"]).json();
    let names: Vec<String> = rows
        .as_array()
        .unwrap()
        .iter()
        .filter(|row| row["refused"].is_null())
        .map(|row| row["name"].as_str().unwrap().to_owned())
        .collect();
    let mut args = vec!["layout".to_owned()];
    args.extend(names.iter().cloned());
    let text = kvtile(&args).ok();
    for name in &names {
        assert!(text.contains(name.as_str()), "{name}");
    }
}

#[test]
fn an_unknown_name_suggests_others() {
    let error = kvtile(&["layout", "vllm:LBHNC/cpu/bf16/avx"]).fails(2);
    assert!(error.contains("vllm:LBHNC/cpu/bf16/vec"), "{error}");
    let error = kvtile(&["layout", "BLKNHC", "--model", "llama-3-8b"]).fails(2);
    assert!(error.contains("llama-3.1-8b"), "{error}");
}

#[test]
fn models_are_listed_with_their_numbers() {
    let rows = kvtile(&["layout", "models", "llama-3.1-8b", "--json"]).json();
    assert_eq!(rows[0]["kv_heads"], 8);
    assert_eq!(rows[0]["bytes_per_token"], 131_072);
    assert!(rows[0]["source"].is_string());
}

#[test]
fn the_picture_is_written_as_svg() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("order.svg");
    let path = path.to_str().unwrap();
    let text = kvtile(&["layout", "L|BH(kCN,vNC)", "--svg", path]).ok();
    assert!(text.contains(path));
    let svg = std::fs::read_to_string(path).unwrap();
    assert!(svg.starts_with("<svg ") && svg.trim_end().ends_with("</svg>"));
    assert!(svg.contains("plane k") && svg.contains("head 0 of 8"));
    // Every coloured shape has a class with a rule for dark pages, and a colour for programs without rules.
    let (before, dark) = svg
        .split_once("@media (prefers-color-scheme: dark) {")
        .unwrap();
    assert!(before.contains("max-width: 100%"));
    let (dark, shapes) = dark.split_once("</style>").unwrap();
    for shape in shapes.lines().filter(|line| line.contains(" fill=")) {
        let class = shape.split('"').nth(1).unwrap().split(' ').next().unwrap();
        assert!(dark.contains(&format!(".{class}")), "{class}: {shape}");
    }
    let error = kvtile(&["layout", "BLKNHC", "--svg", "/nonexistent/x.svg"]).fails(1);
    assert!(error.contains("cannot write /nonexistent/x.svg"), "{error}");
}

#[test]
fn a_shape_that_makes_no_sense_is_a_usage_error() {
    for args in [
        ["layout", "BLKNHC", "--blocks", "0"].as_slice(),
        &["layout", "BLKNHC", "--tp", "3"],
        &["layout", "BLKNHC", "--tp", "2", "--rank", "2"],
        &["layout", "BLKNHC", "--dtype", "float99"],
        &["layout", "BLKNHC", "--plane", "k"],
        &["layout", "BLKNHC", "--alignment", "3"],
        &["layout", "BLKNHC", "--blocks", "9223372036854775807"],
    ] {
        let error = kvtile(args).fails(2);
        assert!(!error.contains("panicked"), "{error}");
    }
}

#[test]
fn colours_are_left_out_where_they_are_not_wanted() {
    for (name, value) in [("NO_COLOR", "1"), ("TERM", "dumb")] {
        let output = program()
            .env(name, value)
            .args(["layout", "BLKNHC"])
            .output()
            .unwrap();
        assert!(!output.stdout.contains(&0x1b));
    }
}

/// A reader that leaves early, as `head` does, is no reason to panic.
#[test]
fn a_closed_pipe_is_no_error() {
    let mut child = std::process::Command::new(env!("CARGO_BIN_EXE_kvtile"))
        .args(["layout", "list", "--json"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{output:?}");
    assert!(output.stderr.is_empty(), "{output:?}");
}
