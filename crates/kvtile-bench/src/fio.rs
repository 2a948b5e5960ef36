//! Runs `fio`, where it is installed, as an independent measurement of the disk.

use std::{
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use serde::{Deserialize, Serialize};

use crate::error::BenchError;

/// The reason for missing rows of `fio`.
pub(crate) const NOT_INSTALLED: &str =
    "fio: not installed, so that direct files have nothing to compare with (apt-get install fio)";

/// Shorter jobs would measure the start of `fio`: it repeats a small file until this many bytes.
const JOB_BYTES: u64 = 256 << 20;

/// The direction of a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum FioDirection {
    Read,
    Write,
}

/// Whether `fio` can run.
pub(crate) fn is_installed() -> bool {
    let version = Command::new("fio")
        .arg("--version")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    version.is_ok_and(|status| status.success())
}

/// A job of `fio` with direct I/O.
#[derive(Clone, Copy, Debug)]
pub(crate) struct FioJob<'a> {
    pub(crate) path: &'a Path,
    /// Bytes of the file.
    pub(crate) bytes: u64,
    /// Bytes of one request.
    pub(crate) piece_bytes: u64,
    /// Requests in flight.
    pub(crate) depth: u32,
    pub(crate) direction: FioDirection,
    /// Whether the requests are in random order.
    pub(crate) is_random: bool,
}

#[derive(Deserialize)]
struct FioOutput {
    jobs: Vec<FioFigures>,
}

#[derive(Deserialize)]
struct FioFigures {
    read: FioTotals,
    write: FioTotals,
}

#[derive(Deserialize)]
struct FioTotals {
    io_bytes: u64,
    bw_bytes: u64,
}

/// Runs the job. Returns the time for all bytes of the file once.
pub(crate) fn run(job: &FioJob<'_>) -> Result<Duration, BenchError> {
    let failed = |problem: String| BenchError::Program {
        program: "fio",
        problem,
    };
    let (bytes, direction) = (job.bytes, job.direction);
    let how = match (direction, job.is_random) {
        (FioDirection::Read, false) => "read",
        (FioDirection::Read, true) => "randread",
        (FioDirection::Write, false) => "write",
        (FioDirection::Write, true) => "randwrite",
    };
    // Where io_uring is forbidden, libaio allows as many requests in flight.
    let mut last = String::new();
    for engine in ["io_uring", "libaio"] {
        let output = Command::new("fio")
            .args(["--name=kvtile", "--direct=1"])
            .arg(format!("--iodepth={}", job.depth))
            .args(["--thread", "--output-format=json", "--overwrite=1"])
            .arg(format!("--ioengine={engine}"))
            .arg(format!("--rw={how}"))
            .arg(format!("--bs={}", bytes.min(job.piece_bytes)))
            .arg(format!("--size={bytes}"))
            .arg(format!("--loops={}", JOB_BYTES.div_ceil(bytes.max(1))))
            .arg(format!("--filename={}", job.path.display()))
            .output()
            .map_err(|error| failed(error.to_string()))?;
        let text = String::from_utf8_lossy(&output.stdout);
        // Messages may precede the JSON object.
        let object = text.find('{').and_then(|start| text.get(start..));
        let parsed = object.map(serde_json::from_str::<FioOutput>);
        if let (true, Some(Ok(done))) = (output.status.success(), parsed) {
            let job = done.jobs.first().map(|job| match direction {
                FioDirection::Read => &job.read,
                FioDirection::Write => &job.write,
            });
            if let Some(job) = job.filter(|job| job.bw_bytes > 0 && job.io_bytes > 0) {
                return Ok(Duration::from_secs_f64(bytes as f64 / job.bw_bytes as f64));
            }
        }
        last = String::from_utf8_lossy(&output.stderr).into_owned();
    }
    let line = last.lines().next().unwrap_or("no figures");
    Err(failed(line.to_owned()))
}
