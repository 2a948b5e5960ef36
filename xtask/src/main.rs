//! The project's own commands, run as `cargo x`.
//!
//! `cargo x test` is what the README promises, `cargo x check` is what CI runs, `cargo x fuzz` is
//! for people with a nightly toolchain (CI runs it where there is one). Every step is a command
//! that a person could type; it is printed before it runs.

mod arrows;
mod circles;
mod files;
mod licences;
mod metadata;
mod names;
mod python;
mod step;
mod vllm;
mod wheels;
mod words;

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use step::{Failure, Step};

/// The project's own commands.
#[derive(Parser)]
#[command(name = "cargo x", bin_name = "cargo x")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// All tests and doc tests.
    Test,
    /// Everything that CI runs: format, lints, rules, tests, documents, the demonstration, fuzzing.
    Check {
        /// Leave out the tests, because they have just run.
        #[arg(long)]
        without_tests: bool,
    },
    /// The fuzz targets, for some seconds each.
    Fuzz {
        /// Seconds a target.
        #[arg(long, default_value_t = 60)]
        seconds: u32,
    },
    /// The concurrent core of the block pool, in every order in which threads can meet.
    Loom,
    /// The executors' tests under the address sanitizer alone.
    Sanitize,
    /// The cache and its disk tier, for as long as asked: a writer that is killed, simulated disks, and
    /// a mixed load of several threads.
    Soak {
        /// How often the writer is killed.
        #[arg(long, default_value_t = 1000)]
        kills: u64,
        /// How many seeds of the simulation.
        #[arg(long, default_value_t = 100_000)]
        seeds: u64,
        /// How long the mixed load lasts, in seconds.
        #[arg(long, default_value_t = 300)]
        seconds: u64,
        /// One seed of the simulation of the disk tier alone, step by step.
        #[arg(long)]
        seed: Option<u64>,
    },
    /// The rules for dependencies, licences, files and rooms alone.
    Rules,
    /// The Python package: built into an environment of its own, and tested there.
    TestPython,
    /// The wheel of the Python package, for Linux with glibc 2.17 or later and Python 3.10 or later.
    Wheel {
        /// Another target, such as aarch64-unknown-linux-gnu (after `rustup target add`).
        #[arg(long, conflicts_with = "check")]
        target: Option<String>,
        /// Install the wheel for each Python of this machine, without Rust, and use it there.
        #[arg(long)]
        check: bool,
    },
    /// vLLM with the connector, end to end: installed into the user's cache folder, with a real model.
    TestVllm,
    /// How long vLLM takes to the first token with the connector and without: two minutes, a table and a
    /// chart.
    DemoVllm {
        /// What the demonstration takes: `--html FILE`, `--rounds N`, … (`-- --help` says all).
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// How long transformers takes to the first token, by where the KV of the prompt comes from.
    DemoTransformers {
        /// What the demonstration takes: `--rounds N`, `--json FILE`, … (`-- --help` says all).
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
}

fn main() -> ExitCode {
    let result = match Arguments::parse().command {
        Command::Test => test(),
        Command::Check { without_tests } => check(without_tests),
        Command::Fuzz { seconds } => fuzz(seconds),
        Command::Loom => loom(),
        Command::Sanitize => sanitize(),
        Command::Soak {
            kills,
            seeds,
            seconds,
            seed,
        } => soak((kills, seeds, seconds), seed),
        Command::Rules => rules(),
        Command::TestPython => python::test(),
        Command::Wheel { check: true, .. } => wheels::check(),
        Command::Wheel { target, .. } => wheels::build(target.as_deref()).map(|_| ()),
        Command::TestVllm => vllm::test(),
        Command::DemoVllm { arguments } => vllm::demonstrate(vllm::DEMO_VLLM, &arguments),
        Command::DemoTransformers { arguments } => {
            vllm::demonstrate(vllm::DEMO_TRANSFORMERS, &arguments)
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("cargo x: {failure}");
            ExitCode::FAILURE
        }
    }
}

fn test() -> Result<(), Failure> {
    Step::cargo(["test", "--workspace", "--locked", "--no-fail-fast"]).run()
}

fn check(without_tests: bool) -> Result<(), Failure> {
    rules()?;
    Step::cargo(["fmt", "--all", "--check"]).run()?;
    let clippy = ["clippy", "--workspace", "--all-targets", "--locked", "--"];
    Step::cargo(clippy.into_iter().chain(["-D", "warnings"])).run()?;
    // The program with the rivals of the benchmark, which it is not built with otherwise.
    let rivals = ["-p", "kvtile-program", "--features", "rivals", "--locked"];
    let clippy = ["clippy"]
        .into_iter()
        .chain(rivals)
        .chain(["--all-targets"]);
    Step::cargo(clippy.chain(["--", "-D", "warnings"])).run()?;
    if !without_tests {
        test()?;
        let test = ["test"].into_iter().chain(rivals);
        Step::cargo(test.chain(["--test", "cli", "blocks"])).run()?;
    }
    Step::cargo(["doc", "--workspace", "--no-deps", "--locked"])
        .env("RUSTDOCFLAGS", "-D warnings")
        .run()?;
    demonstration()?;
    advisories()?;
    loom()?;
    sanitize()?;
    fuzz(CHECK_FUZZ_SECONDS)
}

fn soak((kills, seeds, seconds): (u64, u64, u64), seed: Option<u64>) -> Result<(), Failure> {
    let step = |test, name| {
        let crate_tests = ["test", "--locked", "-p", "kvtile-tiers", "--test", test];
        Step::cargo(crate_tests.into_iter().chain(["--", "--nocapture", name]))
    };
    if let Some(seed) = seed {
        let simulation = step("disk_tier", "simulation");
        return simulation.env("KVTILE_DISK_SEED", seed).run();
    }
    let crash = step("disk_tier", "crash");
    crash.env("KVTILE_DISK_KILLS", kills).run()?;
    let crash = step("cache", "crash");
    crash.env("KVTILE_CACHE_KILLS", kills.div_ceil(10)).run()?;
    let simulation = step("disk_tier", "simulation");
    simulation.env("KVTILE_DISK_SEEDS", seeds).run()?;
    let simulation = step("cache", "simulation");
    simulation
        .env("KVTILE_CACHE_SEEDS", seeds.div_ceil(10))
        .run()?;
    step("cache", "mixed")
        .env("KVTILE_CACHE_SECONDS", seconds)
        .run()
}

/// Seconds that CI fuzzes each target.
const CHECK_FUZZ_SECONDS: u32 = 20;

/// The demonstration as a user runs it: with the tiny model always, and with the real one, which it
/// fetches itself, where the package index can be reached.
fn demonstration() -> Result<(), Failure> {
    let demo = ["run", "--release", "--locked", "--", "demo"];
    Step::cargo(demo.into_iter().chain(["--tiny"])).run()?;
    Step::cargo(demo).run()
}

fn rules() -> Result<(), Failure> {
    let metadata = metadata::read()?;
    let mut broken = arrows::check(&metadata);
    broken.extend(licences::check(&metadata));
    broken.extend(files::check()?);
    broken.extend(circles::check()?);
    broken.extend(names::check()?);
    broken.extend(words::check()?);
    if broken.is_empty() {
        println!("rules: dependencies, licences, files, rooms, names and words are in order");
        return Ok(());
    }
    Err(Failure::Rules(broken))
}

/// Known vulnerabilities, where `cargo-deny` is installed and its database can be fetched.
fn advisories() -> Result<(), Failure> {
    if !Step::cargo(["deny", "--version"]).succeeds() {
        println!("advisories: not checked, cargo-deny is not installed");
        return Ok(());
    }
    if !Step::cargo(["deny", "fetch", "db"]).succeeds() {
        println!("advisories: not checked, the advisory database cannot be fetched");
        return Ok(());
    }
    Step::cargo(["deny", "check", "advisories"]).run()
}

/// The tests that touch bytes through pointers, where every access is checked.
fn sanitize() -> Result<(), Failure> {
    if !Step::cargo(["+nightly", "--version"]).succeeds() {
        println!("sanitize: skipped, there is no nightly toolchain");
        return Ok(());
    }
    // With a target given, build scripts and macros are left as they are.
    let target = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    let tests = ["--lib", "--test", "transfers_reference", "--test", "large"];
    let test = [
        "+nightly",
        "test",
        "--locked",
        "-p",
        "kvtile-transfer",
        "--target",
    ];
    let folder = ["--target-dir", "target/sanitize"];
    Step::cargo(
        test.into_iter()
            .chain([target.as_str()])
            .chain(tests)
            .chain(folder),
    )
    .env("RUSTFLAGS", "-Zsanitizer=address")
    .run()
}

/// The models of the block pool, of completions and of flights. They have a folder of their own, as
/// everything below them is built with other flags.
fn loom() -> Result<(), Failure> {
    for (package, models) in [
        ("kvtile-blocks", &["--test", "pool_loom"][..]),
        ("kvtile-transfer", &["--test", "completion_loom"]),
        ("kvtile-transfer", &["--lib", "flights_loom"]),
    ] {
        let test = ["test", "--locked", "-p", package, "--release"];
        let folder = ["--target-dir", "target/loom"];
        Step::cargo(test.into_iter().chain(folder).chain(models.iter().copied()))
            .env("RUSTFLAGS", "--cfg loom")
            .run()?;
    }
    Ok(())
}

fn fuzz(seconds: u32) -> Result<(), Failure> {
    if !Step::cargo(["+nightly", "--version"]).succeeds() {
        println!("fuzz: skipped, there is no nightly toolchain");
        return Ok(());
    }
    if !Step::cargo(["fuzz", "--version"]).succeeds() {
        Step::cargo(["install", "cargo-fuzz", "--locked", "--version", "0.13.2"]).run()?;
    }
    let time = format!("-max_total_time={seconds}");
    let limits = [time.as_str(), "-rss_limit_mb=2048", "-verbosity=0"];
    for target in ["word", "descriptor", "saved_header"] {
        let corpus = step::root().join("fuzz/corpus").join(target);
        std::fs::create_dir_all(&corpus)
            .map_err(|error| Failure::Tool(format!("{}: {error}", corpus.display())))?;
        let (corpus, seeds) = (
            format!("fuzz/corpus/{target}"),
            format!("fuzz/seeds/{target}"),
        );
        let run = ["+nightly", "fuzz", "run", "--target-dir", "target/fuzz"];
        let what = [target, &corpus, &seeds, "--"];
        Step::cargo(run.into_iter().chain(what).chain(limits)).run()?;
    }
    Ok(())
}
