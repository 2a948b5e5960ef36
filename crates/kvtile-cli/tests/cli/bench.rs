//! `kvtile bench` as a user runs it, on amounts that say nothing about speed.
use crate::program::kvtile;

#[test]
fn every_usual_row_has_all_figures() {
    let folder = tempfile::tempdir().unwrap();
    let args = [
        "bench",
        "--model",
        "smollm2-135m",
        "--bytes",
        "1MiB",
        "--rounds",
        "2",
        "--folder",
        folder.path().to_str().unwrap(),
        "--json",
    ];
    let json = kvtile(&args).json();
    let rows = json["rows"].as_array().unwrap();
    assert!(rows.len() >= 8);
    for row in rows {
        for field in ["source", "destination", "model"] {
            assert!(row[field].is_string(), "{field} of {row}");
        }
        for field in ["bytes", "run_bytes", "threads", "runs"] {
            assert!(row[field].as_u64().unwrap() > 0, "{field} of {row}");
        }
        for field in [
            "gb_per_s",
            "memcpy_gb_per_s",
            "ratio",
            "chunked_memcpy_gb_per_s",
            "chunked_ratio",
        ] {
            assert!(row[field].as_f64().unwrap() > 0.0, "{field} of {row}");
        }
    }
    assert_eq!(
        std::fs::read_dir(folder.path()).unwrap().count(),
        0,
        "files stay behind"
    );
}

#[test]
fn one_pair_is_measured_where_one_is_given() {
    let args = [
        "bench",
        "L|KBNHC",
        "BHLKNC",
        "--heads",
        "2",
        "--head-size",
        "16",
        "--layers",
        "2",
    ];
    let more = [
        "--bytes",
        "65536",
        "--rounds",
        "1",
        "--filter",
        "→ BHLKNC",
        "--json",
    ];
    let json = kvtile(&[&args[..], &more].concat()).json();
    let rows = json["rows"].as_array().unwrap();
    assert_eq!(rows.len(), 2, "memory and file");
    assert_eq!(rows[0]["bytes"], 65536);
    assert_eq!(rows[0]["run_bytes"], 32);
}

#[test]
fn requests_that_make_no_sense_are_refused() {
    for args in [
        ["--bytes", "0"],
        ["--bytes", "99999GiB"],
        ["--rounds", "0"],
        ["--filter", "tape"],
    ] {
        let args = [&["bench", "--quick"], &args[..]].concat();
        kvtile(&args).fails(2);
    }
    let args = [
        "bench",
        "--filter",
        "file",
        "--bytes",
        "1MiB",
        "--folder",
        "/nonexistent",
    ];
    assert!(kvtile(&args).fails(1).contains("/nonexistent"));
}
