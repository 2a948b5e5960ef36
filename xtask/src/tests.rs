//! All tests and doc tests, several test programs at a time: many tests wait, for a disk, a lease or another process.

use std::{
    collections::VecDeque,
    fs::File,
    io::{self, Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
    process::Command,
    sync::Mutex,
    time::Instant,
};

use rustix::fs::{MemfdFlags, memfd_create};
use serde_json::Value;

use crate::step::{CargoStep, StepFailure};

const AT_ONCE: usize = 3;

/// The longest ones begin first, so that none of them runs alone at the end.
const LONGEST: [&str; 8] = [
    "kvtile-tiers cache",
    "kvtile-tiers disk_tier",
    "kvtile-tiers groups",
    "kvtile-program demo",
    "kvtile-tiers disk_memory",
    "kvtile-tiers disk_follow",
    "kvtile-tiers block_store",
    "kvtile-demo demonstration",
];

/// One built test program, or all doc tests.
struct TestRun {
    /// The package and the target.
    name: String,
    program: PathBuf,
    arguments: Vec<String>,
    /// Where it runs.
    folder: PathBuf,
}

/// Builds all test programs, and runs them and the doc tests. The output of each is printed when it ends.
pub(crate) fn run() -> Result<(), StepFailure> {
    let build = ["test", "--workspace", "--locked", "--no-run"];
    println!("$ cargo {}", build.join(" "));
    let json = ["--message-format", "json-render-diagnostics"];
    let messages = CargoStep::cargo(build.into_iter().chain(json)).output()?;
    let mut runs: Vec<TestRun> = messages
        .split(|&byte| byte == b'\n')
        .filter_map(|line| serde_json::from_slice(line).ok())
        .filter_map(|message: Value| program_of(&message))
        .collect();
    if runs.is_empty() {
        return Err(StepFailure::Tool(
            "cargo test built no test programs".into(),
        ));
    }
    runs.push(documents());
    let place = |run: &TestRun| LONGEST.iter().position(|name| *name == run.name);
    runs.sort_by_key(|run| place(run).unwrap_or(LONGEST.len()));
    let count = runs.len();
    let failed = run_all(runs);
    if failed.is_empty() {
        println!("\nall {count} test programs succeeded");
        return Ok(());
    }
    let failed = failed.join(", ");
    Err(StepFailure::Step(format!("tests of {failed}")))
}

fn documents() -> TestRun {
    let arguments = ["test", "--workspace", "--locked", "--no-fail-fast", "--doc"];
    TestRun {
        name: "doc tests".to_owned(),
        program: "cargo".into(),
        arguments: arguments.map(str::to_owned).to_vec(),
        folder: crate::step::root(),
    }
}

/// The test program that a message of cargo reports.
fn program_of(message: &Value) -> Option<TestRun> {
    if message.pointer("/profile/test")?.as_bool() != Some(true) {
        return None;
    }
    let text = |path: &str| message.pointer(path).and_then(Value::as_str);
    let folder = Path::new(text("/manifest_path")?).parent()?;
    let package = folder.file_name()?.to_string_lossy();
    Some(TestRun {
        name: format!("{package} {}", text("/target/name")?),
        program: text("/executable")?.into(),
        arguments: Vec::new(),
        folder: folder.to_owned(),
    })
}

/// Runs all; returns the names of those that failed.
fn run_all(runs: Vec<TestRun>) -> Vec<String> {
    let runs = Mutex::new(VecDeque::from(runs));
    let failed = Mutex::new(Vec::new());
    let next = || runs.lock().ok().and_then(|mut runs| runs.pop_front());
    std::thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                while let Some(run) = next() {
                    if !run.succeeds()
                        && let Ok(mut failed) = failed.lock()
                    {
                        failed.push(run.name);
                    }
                }
            });
        }
    });
    failed.into_inner().unwrap_or_default()
}

impl TestRun {
    /// Runs it and prints its output.
    fn succeeds(&self) -> bool {
        println!("     Running {}", self.name);
        let start = Instant::now();
        let (output, result) = match self.output() {
            Ok((output, succeeded)) => (output, Ok(succeeded)),
            Err(error) => (Vec::new(), Err(error)),
        };
        let mut out = io::stdout().lock();
        let seconds = start.elapsed().as_secs_f64();
        let line = format!("\n     Ran {} in {seconds:.1} s\n", self.name);
        let printed = out
            .write_all(line.as_bytes())
            .and_then(|()| out.write_all(&output));
        if let Err(error) = &result {
            eprintln!("cannot run {}: {error}", self.program.display());
        }
        // A failure without its output would have no reason.
        printed.is_ok() && result.unwrap_or(false)
    }

    /// What it wrote to both outputs, in its order, and whether it succeeded. The output is a file in memory, because a
    /// process that a test leaves behind would keep a pipe open.
    fn output(&self) -> io::Result<(Vec<u8>, bool)> {
        let mut file = File::from(memfd_create("output", MemfdFlags::CLOEXEC)?);
        let mut command = Command::new(&self.program);
        command
            .args(&self.arguments)
            .current_dir(&self.folder)
            .env("CARGO_MANIFEST_DIR", &self.folder)
            .env_remove("RUSTUP_TOOLCHAIN")
            .env_remove("CARGO")
            .stdout(file.try_clone()?)
            .stderr(file.try_clone()?);
        let succeeded = command.status()?.success();
        let mut output = Vec::new();
        file.seek(SeekFrom::Start(0))?;
        file.read_to_end(&mut output)?;
        Ok((output, succeeded))
    }
}
