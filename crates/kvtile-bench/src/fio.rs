//! `fio`, where it is installed: what the disk gives, measured by somebody else.

use std::{
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use serde::Deserialize;

use crate::error::BenchError;

/// What is missing where it is.
pub(crate) const NOT_INSTALLED: &str =
    "fio: not installed, so that direct files have nothing to compare with (apt-get install fio)";

/// Bytes of one request.
const PIECE_BYTES: u64 = 1 << 20;

/// Shorter jobs measure how `fio` starts: a small file is gone through as often as comes to this.
const JOB_BYTES: u64 = 256 << 20;

/// Which way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Direction {
    Read,
    Write,
}

/// Whether it can be run.
pub(crate) fn is_installed() -> bool {
    let version = Command::new("fio")
        .arg("--version")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    version.is_ok_and(|status| status.success())
}

#[derive(Deserialize)]
struct Output {
    jobs: Vec<Job>,
}

#[derive(Deserialize)]
struct Job {
    read: Done,
    write: Done,
}

#[derive(Deserialize)]
struct Done {
    io_bytes: u64,
    bw_bytes: u64,
}

/// The time for `bytes` of a file, in pieces of 1 MiB, 8 in flight, past the page cache.
pub(crate) fn run(path: &Path, bytes: u64, direction: Direction) -> Result<Duration, BenchError> {
    let failed = |problem: String| BenchError::Program {
        program: "fio",
        problem,
    };
    let how = match direction {
        Direction::Read => "read",
        Direction::Write => "write",
    };
    // Where io_uring is forbidden, the older interface has as many in flight.
    let mut last = String::new();
    for engine in ["io_uring", "libaio"] {
        let output = Command::new("fio")
            .args(["--name=kvtile", "--iodepth=8", "--direct=1"])
            .args(["--thread", "--output-format=json", "--overwrite=1"])
            .arg(format!("--ioengine={engine}"))
            .arg(format!("--rw={how}"))
            .arg(format!("--bs={}", bytes.min(PIECE_BYTES)))
            .arg(format!("--size={bytes}"))
            .arg(format!("--loops={}", JOB_BYTES.div_ceil(bytes.max(1))))
            .arg(format!("--filename={}", path.display()))
            .output()
            .map_err(|error| failed(error.to_string()))?;
        let text = String::from_utf8_lossy(&output.stdout);
        // Notes may stand before the object.
        let object = text.find('{').and_then(|start| text.get(start..));
        let parsed = object.map(serde_json::from_str::<Output>);
        if let (true, Some(Ok(done))) = (output.status.success(), parsed) {
            let job = done.jobs.first().map(|job| match direction {
                Direction::Read => &job.read,
                Direction::Write => &job.write,
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
