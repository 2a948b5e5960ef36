//! `kvtile bench` as a user runs it, on amounts that say nothing about speed.
use serde_json::Value;

use crate::program::{kvtile, program};

/// A tiny model, so that every pair of the matrix is measured in little time.
const TINY: [&str; 8] = [
    "--heads",
    "4",
    "--head-size",
    "16",
    "--layers",
    "2",
    "--bytes",
    "65536",
];

/// Runs with `--json` and gives the rows.
fn rows(arguments: &[&str]) -> Vec<Value> {
    let arguments = [&["bench"], arguments, &["--rounds", "1", "--json"]].concat();
    let json = kvtile(&arguments).json();
    json.get("rows").unwrap().as_array().unwrap().clone()
}

#[test]
fn every_pair_of_the_matrix_has_all_figures() {
    let folder = tempfile::tempdir().unwrap();
    let folder_name = folder.path().to_str().unwrap();
    let rows = rows(&[&TINY[..], &["--folder", folder_name]].concat());
    assert!(rows.len() >= 80, "{} rows", rows.len());
    for row in &rows {
        for field in ["source", "destination", "model", "method", "class"] {
            assert!(row[field].is_string(), "{field} of {row}");
        }
        for field in ["bytes", "run_bytes", "run_bytes_min", "threads", "runs"] {
            assert!(row[field].as_u64().unwrap() > 0, "{field} of {row}");
        }
        for field in ["gb_per_s", "memcpy_gb_per_s", "ratio"] {
            assert!(row[field].as_f64().unwrap() > 0.0, "{field} of {row}");
        }
        let (speed, flat) = (row["gb_per_s"].as_f64(), row["memcpy_gb_per_s"].as_f64());
        let ratio = speed.unwrap() / flat.unwrap();
        assert!(
            (ratio - row["ratio"].as_f64().unwrap()).abs() < 0.01 * ratio,
            "{row}"
        );
    }
    for purpose in ["equal", "across", "store", "load", "extra"] {
        assert!(
            rows.iter().any(|row| row["purpose"] == purpose),
            "{purpose}"
        );
    }
    let files = rows.iter().filter(|row| row["class"] == "file");
    assert!(files.count() >= 4);
    let fixed = rows.iter().filter(|row| row["ns_per_transfer"].is_number());
    assert_eq!(fixed.count(), 2);
    let left = std::fs::read_dir(folder.path()).unwrap().count();
    assert_eq!(left, 0, "files stay behind");
}

#[test]
fn one_pair_is_measured_where_one_is_given() {
    let pair = [
        "L|KBNHC",
        "BHLKNC",
        "--threads",
        "1",
        "--filter",
        "BHLKNC  ",
    ];
    let rows = rows(&[&TINY[..], &pair].concat());
    assert_eq!(rows.len(), 1, "files have another text: {rows:#?}");
    assert_eq!(rows[0]["bytes"], 65536);
    assert_eq!(rows[0]["run_bytes"], 32);
    assert_eq!(rows[0]["class"], "short_rows");
}

#[test]
fn the_plain_ways_copy_the_same() {
    let filters = ["--filter", "L|BH(kCN,vNC) → BHLKNC", "--compare"];
    let rows = rows(&[&TINY[..], &filters].concat());
    for method in ["kvtile", "memcpy loop", "ndarray"] {
        assert!(rows.iter().any(|row| row["method"] == method), "{method}");
    }
}

/// The colour of every cell follows its ratio to memcpy, the page has one legend, and goals are folded.
fn check_colours(page: &str) {
    assert!(page.contains("prefers-color-scheme: dark") && page.contains("max-width: 640px"));
    assert_eq!(page.matches("class=\"legend\"").count(), 1);
    let (shown, folded) = page.split_once("<details>").unwrap();
    let (_, body) = shown.split_once("</style>").unwrap();
    assert!(!body.contains("goal"), "goals only in the folded part");
    assert!(folded.contains("reached") && folded.contains("furthest"));
    let mut cells = 0;
    for cell in body.split("<td class=\"g").skip(1) {
        let step: usize = cell[..1].parse().unwrap();
        let ratio = cell
            .split("</td>")
            .next()
            .unwrap()
            .rsplit('>')
            .next()
            .unwrap();
        let ratio: f64 = ratio.parse().unwrap();
        let bounds = [0.0, 0.25, 0.5, 0.75, 0.9, 1.1, 1.5, f64::INFINITY];
        let (low, high) = bounds.iter().zip(bounds.iter().skip(1)).nth(step).unwrap();
        // The cell shows two digits.
        let inside = low - 0.006..=high + 0.006;
        assert!(inside.contains(&ratio), "{ratio} has colour {step}");
        cells += 1;
    }
    assert!(cells > 5, "{cells} cells");
    let tables = page.matches("<table").count();
    assert_eq!(page.matches("<div class=\"scroll\"><table").count(), tables);
}

#[test]
fn stored_results_become_a_page_that_stands_alone() {
    let folder = tempfile::tempdir().unwrap();
    let (stored, page) = (
        folder.path().join("results.json"),
        folder.path().join("page.html"),
    );
    let filters = ["--filter", "L|KBNHC", "--filter", "BLKNHC", "--compare"];
    let measure = [
        &["bench"],
        &TINY[..],
        &filters,
        &["--rounds", "1", "--json"],
    ]
    .concat();
    let json = kvtile(&measure).json();
    std::fs::write(&stored, json.to_string()).unwrap();
    let (from, to) = (stored.to_str().unwrap(), page.to_str().unwrap());
    let again = kvtile(&["bench", "--from", from, "--html", to, "--json"]).json();
    assert_eq!(again, json);
    let page = std::fs::read_to_string(&page).unwrap();
    for text in [
        "<!doctype html>",
        "L|KBNHC → BLKNHC",
        "title=",
        "memcpy",
        "Goals, for developers",
    ] {
        assert!(page.contains(text), "{text}");
    }
    for text in ["<script", "http://", "https://", "src=", "@import", "url("] {
        assert!(!page.contains(text), "{text}");
    }
    check_colours(&page);
    let text = kvtile(&["bench", "--from", from]).ok();
    assert!(
        text.contains("L|KBNHC → BLKNHC") && text.contains("Checked:"),
        "{text}"
    );
}

#[test]
fn requests_that_make_no_sense_are_refused() {
    for args in [
        ["--bytes", "0"],
        ["--bytes", "99999GiB"],
        ["--bytes", "64KiB,0"],
        ["--threads", "1,1025"],
        ["--rounds", "4294967296"],
        ["--rounds", "0"],
        ["--threads", "0"],
        ["--filter", "tape"],
    ] {
        let args = [&["bench", "--quick"], &args[..]].concat();
        kvtile(&args).fails(2);
    }
    let file = ["bench", "--filter", "file", "--bytes", "1MiB"];
    let nowhere = [&file[..], &["--folder", "/nonexistent"]].concat();
    assert!(kvtile(&nowhere).fails(1).contains("/nonexistent"));
    let no_results = ["bench", "--from", "Cargo.toml"];
    assert!(kvtile(&no_results).fails(1).contains("no results"));
}

#[test]
fn blocks_are_measured_by_profile_and_by_policy() {
    let json = kvtile(&[
        "bench", "blocks", "--rounds", "1", "--pool", "512", "--json",
    ])
    .json();
    let figures = |part: &str, names: [&str; 2], figure: &str| {
        let rows = json[part].as_array().unwrap();
        for row in rows {
            assert!(names.iter().all(|&name| !row[name].is_null()), "{row}");
            assert!(row[figure].as_f64().unwrap() > 0.0, "{row}");
        }
        rows.len()
    };
    assert_eq!(
        figures("hashing", ["profile", "page_size"], "ns_per_block"),
        12
    );
    assert_eq!(
        figures("operations", ["policy", "operation"], "ns_per_block"),
        24
    );
    assert_eq!(
        figures(
            "threads",
            ["policy", "one_thread_ns_per_block"],
            "one_pool_gain"
        ),
        4
    );
    let contenders = if cfg!(feature = "rivals") { 5 } else { 3 };
    assert_eq!(
        figures("managers", ["manager", "operation"], "ns_per_block"),
        5 * contenders + 1
    );
    let text = kvtile(&["bench", "blocks", "--rounds", "1", "--pool", "512"]).ok();
    assert_eq!(
        text.contains("without its feature rivals"),
        !cfg!(feature = "rivals"),
        "{text}"
    );
    for word in [
        "blake3",
        "router",
        "gittins",
        "s3-fifo",
        "match inactive and release",
    ] {
        assert!(text.contains(word), "{text}");
    }
}

/// Without `fio` the store is measured alone, and the report names what is missing.
#[test]
fn the_disk_tier_is_measured_by_block_size_and_placement() {
    let folder = tempfile::tempdir().unwrap();
    let arguments = ["bench", "disk", "--rounds", "1", "--bytes", "256KiB"];
    let arguments = [&arguments[..], &["--block", "8KiB,64KiB", "--folder"]].concat();
    let run = |more: &[&str]| {
        let mut command = program();
        command.env("PATH", "").args(&arguments).arg(folder.path());
        let output = command.args(more).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    let report: Value = serde_json::from_str(&run(&["--json"])).unwrap();
    let rows = report["rows"].as_array().unwrap();
    assert_eq!(rows.len(), 16);
    for row in rows {
        assert!(row["gb_per_s"].as_f64().unwrap() > 0.0, "{row}");
        assert!(row["ratio"].is_null(), "{row}");
    }
    let left_out = report["left_out"].to_string();
    assert!(left_out.contains("fio: not installed"), "{left_out}");
    let text = run(&[]);
    for word in [
        "8 KiB",
        "64 KiB",
        "side by side",
        "scattered",
        "in a cache",
        "fio: not installed",
    ] {
        assert!(text.contains(word), "{text}");
    }
    let left = std::fs::read_dir(folder.path()).unwrap().count();
    assert_eq!(left, 0, "files stay behind");
    for wrong in [["--block", "8000"], ["--bytes", "0"]] {
        kvtile(&[&["bench", "disk"], &wrong[..]].concat()).fails(2);
    }
    let nowhere = ["bench", "disk", "--folder", "/nonexistent"];
    assert!(kvtile(&nowhere).fails(1).contains("/nonexistent"));
}

#[test]
fn groups_are_measured_against_one_group_and_memcpy() {
    let small = [
        "bench", "groups", "--tokens", "1536", "--state", "1MiB", "--rounds", "1",
    ];
    let report = kvtile(&[&small[..], &["--json"]].concat()).json();
    let rows = report["rows"].as_array().unwrap();
    let operations: Vec<&str> = rows
        .iter()
        .map(|row| row["operation"].as_str().unwrap())
        .collect();
    assert_eq!(operations, ["lookup", "lookup_lost", "store", "load"]);
    assert!(rows[0]["of_memcpy"].is_null() && rows[3]["of_memcpy"].is_array());
    let text = kvtile(&small).ok();
    assert!(text.contains("state lost"), "{text}");
    for refused in [
        ["--tokens", "17"],
        ["--tokens", "0"],
        ["--state", "3"],
        ["--rounds", "0"],
    ] {
        kvtile(&[&["bench", "groups"], &refused[..]].concat()).fails(2);
    }
}
