//! `kvtile doctor` as a user runs it.
use crate::program::kvtile;

#[test]
fn every_check_has_a_status_and_says_what_was_found() {
    let json = kvtile(&["doctor", "--json"]).json();
    let checks = json["checks"].as_array().unwrap();
    let names: Vec<&str> = checks
        .iter()
        .map(|check| check["name"].as_str().unwrap())
        .collect();
    for name in [
        "cores",
        "vector units",
        "memory",
        "memory limit",
        "huge pages",
        "locked memory",
        "io_uring",
        "direct I/O in .",
        "CUDA driver",
        "NIXL",
    ] {
        assert!(names.contains(&name), "{name} is missing in {names:?}");
    }
    for check in checks {
        let status = check["status"].as_str().unwrap();
        assert!(
            ["ok", "improvable", "absent", "unknown"].contains(&status),
            "{check}"
        );
        assert!(!check["found"].as_str().unwrap().is_empty(), "{check}");
    }
    assert!(json["machine"]["page_bytes"].is_u64());
}

#[test]
fn folders_are_tried_and_left_empty() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().to_str().unwrap();
    let text = kvtile(&["doctor", "--folder", path]).ok();
    assert!(text.contains(&format!("direct I/O in {path}")), "{text}");
    assert_eq!(std::fs::read_dir(path).unwrap().count(), 0);
    let text = kvtile(&["doctor", "--folder", "/nonexistent"]).ok();
    assert!(text.contains("cannot try"), "{text}");
}

#[test]
fn a_driver_that_is_absent_is_one_sentence_that_names_what_was_tried() {
    let text = kvtile(&["doctor", "--driver", "/nonexistent/libcuda.so"]).ok();
    let line = text.lines().find(|line| line.contains("CUDA driver"));
    let line = line.unwrap();
    for part in [
        "no CUDA driver: tried /nonexistent/libcuda.so: ",
        "kvtile's device code has not been run on hardware",
    ] {
        assert!(line.contains(part), "{line}");
    }
    // A library that is no driver.
    let text = kvtile(&["doctor", "--driver", "libc.so.6"]).ok();
    assert!(text.contains("libc.so.6 is no CUDA driver"), "{text}");
}

#[test]
fn help_teaches_and_nonsense_is_a_usage_error() {
    for command in ["layout", "plan", "bench", "inspect", "doctor"] {
        let help = kvtile(&[command, "--help"]).ok();
        assert!(help.contains("Examples:"), "{command}");
        assert!(help.contains("--json"), "{command}");
    }
    assert!(kvtile(&["--help"]).ok().contains("Start here:"));
    for args in [
        ["fly"].as_slice(),
        &["layout"],
        &["plan", "BLKNHC"],
        &["inspect"],
    ] {
        kvtile(args).fails(2);
    }
}
