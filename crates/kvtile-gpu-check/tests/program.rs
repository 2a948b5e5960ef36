//! The program itself, with the stand-in as the library of a driver.
#![expect(clippy::unwrap_used, reason = "tests")]

#[path = "../../kvtile-standin/tests/shared/driver_library.rs"]
mod driver_library;

use assert_cmd::cargo::cargo_bin_cmd;
use kvtile_gpu_check::{GpuCheckReport, ReportFiles};

#[test]
fn the_program_runs_some_phases_and_writes_its_files() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    let mut program = cargo_bin_cmd!("kvtile-gpu-check");
    program.arg("--small").arg("--only").arg("ceilings,bytes");
    program
        .arg("--driver")
        .arg(driver_library::library())
        .arg("--out")
        .arg(&out);
    let done = program.assert().success();
    let printed = String::from_utf8_lossy(&done.get_output().stdout).into_owned();
    for text in [
        "device 0: kvtile stand-in, no hardware",
        "seed 20261130",
        "bytes: complete",
        "stand-in: figures say nothing about hardware",
        "equal the naive copy",
    ] {
        assert!(printed.contains(text), "{text}\n{printed}");
    }
    let files = ReportFiles::in_folder(&out).unwrap();
    let json = std::fs::read_to_string(files.path(ReportFiles::JSON)).unwrap();
    let report: GpuCheckReport = serde_json::from_str(&json).unwrap();
    assert_eq!(report.phases.len(), 2);
    assert!(files.path(ReportFiles::PAGE).exists() && files.path(ReportFiles::CSV).exists());
}

#[test]
fn the_program_refuses_in_one_sentence_where_there_is_no_driver() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    let mut program = cargo_bin_cmd!("kvtile-gpu-check");
    program
        .arg("--driver")
        .arg("/nonexistent/libcuda.so")
        .arg("--out")
        .arg(&out);
    let done = program.assert().code(2).stdout("");
    let error = String::from_utf8_lossy(&done.get_output().stderr).into_owned();
    assert!(error.starts_with("kvtile-gpu-check: no CUDA driver: tried /nonexistent/libcuda.so"));
    assert_eq!(error.lines().count(), 1, "{error}");
    assert!(!out.exists());
}
