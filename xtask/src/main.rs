//! The project's own commands, run as `cargo x`.
//!
//! The README names `cargo x test`. CI runs `cargo x check`. `cargo x fuzz` needs a nightly
//! toolchain; CI runs it if there is one. Every step is a plain command, printed before it runs.

mod arrows;
mod cached;
mod circles;
mod compare;
mod devices;
mod engines;
mod files;
mod gpu_check;
mod groups;
mod kernels;
mod licences;
mod links;
mod metadata;
mod names;
mod python;
mod sharing;
mod step;
mod tests;
mod vllm;
mod wheels;
mod words;

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use step::{CargoStep, StepFailure};

/// The project's own commands.
#[derive(Parser)]
#[command(name = "cargo x", bin_name = "cargo x")]
struct XtaskArguments {
    #[command(subcommand)]
    command: XtaskCommand,
}

#[derive(Subcommand)]
enum XtaskCommand {
    /// All tests and doc tests.
    Test,
    /// All checks of CI: format, lints, rules, tests, documents, the demonstration, fuzzing.
    Check {
        /// Skip the tests, for instance because they have just run.
        #[arg(long)]
        without_tests: bool,
    },
    /// The fuzz targets, for some seconds each.
    Fuzz {
        /// Seconds per target.
        #[arg(long, default_value_t = 60)]
        seconds: u32,
    },
    /// Model-checks the block pool's concurrent core with loom, over all thread interleavings.
    Loom,
    /// Only the executors' tests under the address sanitizer.
    Sanitize,
    /// Soak tests of the cache and its disk tier: killed writers, simulated disks, and a mixed load
    /// of several threads.
    Soak {
        /// Number of kills of the writer.
        #[arg(long, default_value_t = 1000)]
        kills: u64,
        /// Number of seeds of the simulation.
        #[arg(long, default_value_t = 100_000)]
        seeds: u64,
        /// Duration of the mixed load in seconds.
        #[arg(long, default_value_t = 300)]
        seconds: u64,
        /// Run only the disk tier's simulation with this seed, step by step.
        #[arg(long)]
        seed: Option<u64>,
    },
    /// Compiles the kernels for devices with clang 19 and compares the text with the one in the repository; NVIDIA's
    /// assembler, installed into the user's cache folder, reports registers and spills.
    Kernels {
        /// Replace the text in the repository.
        #[arg(long)]
        write: bool,
    },
    /// Builds the program that checks kvtile on a machine with a GPU, for glibc 2.28 or later, and runs it with the
    /// stand-in for a driver.
    GpuCheck,
    /// Transfers and caches with devices under the stand-in driver, many more than in CI: all bytes equal those of the naive
    /// copy, and the checker finds no access without an order.
    SoakDevices {
        /// Number of random transfers; a tenth as many plans go through the kernels alone.
        #[arg(long, default_value_t = 100_000)]
        transfers: u32,
        /// Number of seeds of the simulation of a cache with its engine on a device.
        #[arg(long, default_value_t = 1000)]
        seeds: u64,
    },
    /// The cache over groups: the simulation in which any page of any group disappears, in a process and over a daemon, and
    /// killed processes, many more than in CI.
    SoakGroups {
        /// Number of seeds of the simulation; a tenth as many run over a daemon.
        #[arg(long, default_value_t = 10_000)]
        seeds: u64,
        /// Number of kills of a cache, of clients of a daemon, and of daemons.
        #[arg(long, default_value_t = 200)]
        kills: u64,
        /// Run only the simulation with this seed.
        #[arg(long)]
        seed: Option<u64>,
    },
    /// Only the rules for dependencies, licences, files and rooms.
    Rules,
    /// Builds the Python package into its own environment and tests it there.
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
    /// End-to-end tests of vLLM with the connector and a real model, installed into the user's
    /// cache folder.
    TestVllm,
    /// Tests of the tier and of the eviction policy against the scheduler's side of other versions of vLLM, which are
    /// installed beside the one of `test-vllm`, without an engine.
    TestVllmVersions,
    /// Tests of the adapters for SGLang and LMCache against these engines' own code, without a GPU. The
    /// environment is installed into the user's cache folder.
    TestEngines {
        /// Arguments of pytest in place of the whole folder, for instance a file in
        /// `crates/kvtile-python/tests_engines`.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// The adapters for vLLM's tiers, SGLang and LMCache under load for a long time, with restarts and damage: neither
    /// memory nor folders may grow. Uses the environments of `test-vllm` and `test-engines`.
    SoakEngines {
        /// Seconds of each adapter.
        #[arg(long, default_value_t = 300)]
        seconds: u64,
    },
    /// Tests of shared tiers on real servers, which it installs and starts on the loopback interface:
    /// SeaweedFS, moto, Redis, Valkey, and a file system with two mounts.
    TestSharing {
        /// `--server NAME` and `--suite NAME`, to run some of the table.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// The same tests, with more load and more kills.
    SoakSharing {
        /// Seconds of each test under load.
        #[arg(long, default_value_t = 120)]
        seconds: u64,
        /// How often Redis, Valkey and writers are killed; the slower servers a twentieth of it.
        #[arg(long, default_value_t = 1000)]
        kills: u64,
        /// As for `test-sharing`.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Tests of Mooncake's store as a shared tier, with its real master, installed into the user's cache folder.
    TestMooncake,
    /// Measures shared stores: S3 against `object_store`, Redis against `redis-benchmark`, a folder
    /// against `fio`, in turns, with the servers of `test-sharing`.
    BenchSharing {
        /// `--rounds N`, `--part bucket|redis|folder`, `--folder FOLDER`, `--json FILE`.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Measures how long vLLM takes to the first token with and without the connector: two minutes,
    /// a table and a chart.
    DemoVllm {
        /// Options of the demonstration: `--html FILE`, `--rounds N`, … (`-- --help` lists all).
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Measures how long vLLM takes to the first token when another engine has written the prompt to a shared store: from
    /// a bucket or a Valkey server, from one that is slow, and from one that is stopped.
    DemoSharing {
        /// Options of the demonstration: `--server bucket|valkey`, `--rounds N`, … (`-- --help` lists all).
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Measures the rate from disk into the caller's rows: kvtile's block store, the files of vLLM's
    /// `fs` tier and `fio`, in turns.
    BenchRows {
        /// Options of the benchmark: `--rounds N`, `--row-bytes N`, … (`-- --help` lists all).
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Runs the benchmarks with an earlier revision and with this tree, in turns, and fails if a figure
    /// is worse by more than its spread.
    Compare(compare::CompareArguments),
    /// Flips bits in what vLLM's `fs` tier and kvtile keep for the same prompts, and shows what an
    /// engine answers.
    DemoDamage {
        /// Options of the demonstration: `--json FILE`.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Measures how long transformers takes to the first token, by the source of the prompt's KV.
    DemoTransformers {
        /// Options of the demonstration: `--rounds N`, `--json FILE`, … (`-- --help` lists all).
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
}

fn main() -> ExitCode {
    let result = match XtaskArguments::parse().command {
        XtaskCommand::Test => tests::run(),
        XtaskCommand::Check { without_tests } => check(without_tests),
        XtaskCommand::Fuzz { seconds } => fuzz(seconds),
        XtaskCommand::Loom => loom(),
        XtaskCommand::Sanitize => sanitize(),
        XtaskCommand::Soak {
            kills,
            seeds,
            seconds,
            seed,
        } => soak((kills, seeds, seconds), seed),
        XtaskCommand::Kernels { write } => kernels::run(write),
        XtaskCommand::GpuCheck => gpu_check::run(),
        XtaskCommand::SoakDevices { transfers, seeds } => devices::soak(transfers, seeds),
        XtaskCommand::SoakGroups { seeds, kills, seed } => groups::soak(seeds, kills, seed),
        XtaskCommand::Rules => rules(),
        XtaskCommand::TestPython => python::test(),
        XtaskCommand::Wheel { check: true, .. } => wheels::check(),
        XtaskCommand::Wheel { target, .. } => wheels::build(target.as_deref()).map(|_| ()),
        XtaskCommand::TestVllm => vllm::test(),
        XtaskCommand::TestVllmVersions => vllm::test_versions(),
        XtaskCommand::TestEngines { arguments } => engines::test(&arguments),
        XtaskCommand::TestSharing { arguments } => sharing::test(&arguments),
        XtaskCommand::SoakEngines { seconds } => {
            engines::soak(seconds).and_then(|()| vllm::soak(seconds))
        }
        XtaskCommand::SoakSharing {
            seconds,
            kills,
            arguments,
        } => sharing::soak((seconds, kills), &arguments),
        XtaskCommand::TestMooncake => sharing::mooncake(),
        XtaskCommand::BenchSharing { arguments } => sharing::bench(&arguments),
        XtaskCommand::DemoVllm { arguments } => vllm::demonstrate(vllm::DEMO_VLLM, &arguments),
        XtaskCommand::DemoSharing { arguments } => vllm::demonstrate_sharing(&arguments),
        XtaskCommand::BenchRows { arguments } => vllm::demonstrate(vllm::BENCH_ROWS, &arguments),
        XtaskCommand::Compare(arguments) => compare::run(&arguments),
        XtaskCommand::DemoDamage { arguments } => vllm::demonstrate(vllm::DEMO_DAMAGE, &arguments),
        XtaskCommand::DemoTransformers { arguments } => {
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

fn check(without_tests: bool) -> Result<(), StepFailure> {
    rules()?;
    kernels::check()?;
    CargoStep::cargo(["fmt", "--all", "--check"]).run()?;
    let clippy = ["clippy", "--workspace", "--all-targets", "--locked", "--"];
    CargoStep::cargo(clippy.into_iter().chain(["-D", "warnings"])).run()?;
    // The default build leaves out the benchmark's rivals, so build and test the program with them
    // too.
    let rivals = ["-p", "kvtile-program", "--features", "rivals", "--locked"];
    let clippy = ["clippy"]
        .into_iter()
        .chain(rivals)
        .chain(["--all-targets"]);
    CargoStep::cargo(clippy.chain(["--", "-D", "warnings"])).run()?;
    if !without_tests {
        tests::run()?;
        let test = ["test"].into_iter().chain(rivals);
        CargoStep::cargo(test.chain(["--test", "cli", "blocks"])).run()?;
    }
    CargoStep::cargo(["doc", "--workspace", "--no-deps", "--locked"])
        .env("RUSTDOCFLAGS", "-D warnings")
        .run()?;
    demonstration()?;
    advisories()?;
    loom()?;
    sanitize()?;
    fuzz(CHECK_FUZZ_SECONDS)
}

fn soak((kills, seeds, seconds): (u64, u64, u64), seed: Option<u64>) -> Result<(), StepFailure> {
    let step = |test, name| {
        let crate_tests = ["test", "--locked", "-p", "kvtile-tiers", "--test", test];
        CargoStep::cargo(crate_tests.into_iter().chain(["--", "--nocapture", name]))
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
    step("block_store", "simulation")
        .env("KVTILE_STORE_SEEDS", seeds.div_ceil(10))
        .run()?;
    step("cache", "mixed")
        .env("KVTILE_CACHE_SECONDS", seconds)
        .run()?;
    let daemon = [
        "test",
        "--locked",
        "-p",
        "kvtile-daemon",
        "--test",
        "daemon",
    ];
    let killed = ["--", "--nocapture", "killed_at_any_moment"];
    CargoStep::cargo(daemon.into_iter().chain(killed))
        .env("KVTILE_DAEMON_KILLS", kills)
        .run()
}

/// Seconds of CI's fuzzing per target.
const CHECK_FUZZ_SECONDS: u32 = 10;

/// Runs the demonstration with the tiny model, then with the real one, which it downloads if the package
/// index is reachable. It takes the program of the tests, because any other build takes longer than both runs.
fn demonstration() -> Result<(), StepFailure> {
    CargoStep::cargo(["test", "--workspace", "--locked", "--no-run", "--quiet"]).run()?;
    let program = python::target().join("debug/kvtile");
    step::run_program(&program, &["demo", "--tiny"])?;
    step::run_program(&program, &["demo"])
}

fn rules() -> Result<(), StepFailure> {
    let metadata = metadata::read()?;
    let mut broken = arrows::check(&metadata);
    broken.extend(licences::check(&metadata));
    broken.extend(files::check()?);
    broken.extend(circles::check()?);
    broken.extend(links::check()?);
    broken.extend(names::check()?);
    broken.extend(words::check()?);
    if broken.is_empty() {
        println!(
            "rules: dependencies, licences, files, links, rooms, names and words are in order"
        );
        return Ok(());
    }
    Err(StepFailure::Rules(broken))
}

/// Checks for known vulnerabilities, if `cargo-deny` is installed and its database can be fetched.
fn advisories() -> Result<(), StepFailure> {
    if !CargoStep::cargo(["deny", "--version"]).succeeds() {
        println!("advisories: not checked, cargo-deny is not installed");
        return Ok(());
    }
    if !CargoStep::cargo(["deny", "fetch", "db"]).succeeds() {
        println!("advisories: not checked, the advisory database cannot be fetched");
        return Ok(());
    }
    CargoStep::cargo(["deny", "check", "advisories"]).run()
}

/// Runs the tests that access bytes through pointers under the address sanitizer.
fn sanitize() -> Result<(), StepFailure> {
    if !CargoStep::cargo(["+nightly", "--version"]).succeeds() {
        println!("sanitize: skipped, there is no nightly toolchain");
        return Ok(());
    }
    // An explicit target keeps the sanitizer out of build scripts and macros.
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
    let quick = unoptimised("dev");
    CargoStep::cargo(
        test.into_iter()
            .chain([target.as_str()])
            .chain(tests)
            .chain(folder)
            .chain(quick.iter().map(String::as_str)),
    )
    .env("RUSTFLAGS", "-Zsanitizer=address")
    .run()
}

/// The loom models of the block pool, completions and flights. They have a target folder of their
/// own, because their flags rebuild all dependencies.
fn loom() -> Result<(), StepFailure> {
    for (package, models) in [
        ("kvtile-blocks", &["--test", "pool_loom"][..]),
        ("kvtile-transfer", &["--test", "completion_loom"]),
        ("kvtile-transfer", &["--lib", "flights_loom"]),
    ] {
        let test = ["test", "--locked", "-p", package, "--release"];
        let folder = ["--target-dir", "target/loom"];
        let quick = unoptimised("release");
        let options = folder.into_iter().chain(quick.iter().map(String::as_str));
        CargoStep::cargo(
            test.into_iter()
                .chain(options)
                .chain(models.iter().copied()),
        )
        .env("RUSTFLAGS", "--cfg loom")
        .run()?;
    }
    Ok(())
}

/// Options that compile what the testkit needs, and the executors' tests do not call, without optimisation: these steps
/// compile everything anew.
fn unoptimised(profile: &str) -> Vec<String> {
    let unused = ["kvtile-tiers", "kvtile-shared", "kvtile-daemon-wire"];
    let option = |package| {
        let setting = format!("profile.{profile}.package.{package}.opt-level=0");
        ["--config".to_owned(), setting]
    };
    unused.into_iter().flat_map(option).collect()
}

fn fuzz(seconds: u32) -> Result<(), StepFailure> {
    if !CargoStep::cargo(["+nightly", "--version"]).succeeds() {
        println!("fuzz: skipped, there is no nightly toolchain");
        return Ok(());
    }
    if !CargoStep::cargo(["fuzz", "--version"]).succeeds() {
        let install = ["install", "cargo-fuzz", "--debug", "--locked"];
        CargoStep::cargo(install.into_iter().chain(["--version", "0.13.2"])).run()?;
    }
    let time = format!("-max_total_time={seconds}");
    let limits = [time.as_str(), "-rss_limit_mb=2048", "-verbosity=0"];
    for target in [
        "word",
        "descriptor",
        "saved_header",
        "daemon_wire",
        "events",
    ] {
        let corpus = step::root().join("fuzz/corpus").join(target);
        std::fs::create_dir_all(&corpus)
            .map_err(|error| StepFailure::Tool(format!("{}: {error}", corpus.display())))?;
        let (corpus, seeds) = (
            format!("fuzz/corpus/{target}"),
            format!("fuzz/seeds/{target}"),
        );
        let run = ["+nightly", "fuzz", "run", "--target-dir", "target/fuzz"];
        let what = [target, &corpus, &seeds, "--"];
        CargoStep::cargo(run.into_iter().chain(what).chain(limits)).run()?;
    }
    Ok(())
}
