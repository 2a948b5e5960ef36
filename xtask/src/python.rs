//! The Python package: its environment, its wheel, its tests.
//!
//! The environment is a folder in cargo's target folder. It is created once and reused while the
//! list of packages stays the same.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use crate::step::{CargoStep, StepFailure, root};

/// Packages for building and testing. Torch is not included: tests that need it skip here and run
/// in vLLM's environment.
const PACKAGES: [&str; 5] = [
    "maturin>=1.9,<2",
    "ml_dtypes>=0.5",
    "mypy>=1.18",
    "numpy>=2.0",
    "pytest>=8.4",
];

/// Names under which a recent Python may be installed.
const PYTHONS: [&str; 5] = [
    "python3",
    "python3.13",
    "python3.12",
    "python3.11",
    "python3.10",
];

/// Builds the package into the environment and runs its tests.
pub(crate) fn test() -> Result<(), StepFailure> {
    let environment = environment(&target().join("python"), &PACKAGES)?;
    run(&environment, "maturin", &["develop", "--locked", "--quiet"])?;
    let standin = standin_library()?.display().to_string();
    let variables = [("KVTILE_STANDIN", standin)];
    run_with(&environment, "python", &["-m", "pytest"], &variables)
}

/// The stand-in driver as a library, for tests of devices. It has the name of the driver's library, so a process that has
/// loaded it finds it under that name. No wheel contains it.
pub(crate) fn standin_library() -> Result<PathBuf, StepFailure> {
    let standin = [
        "rustc",
        "--locked",
        "-p",
        "kvtile-standin",
        "--example",
        "driver_library",
        "--",
        "-Clink-arg=-Wl,-soname,libcuda.so.1",
    ];
    CargoStep::cargo(standin).run()?;
    Ok(target().join("debug/examples/libdriver_library.so"))
}

/// How a wheel is compiled.
#[derive(Clone, Copy)]
pub(crate) enum WheelProfile {
    /// A fast build for tests.
    Tests,
    /// The build for users.
    Release,
}

fn build(profile: WheelProfile, folder: &Path) -> Result<(), StepFailure> {
    let environment = environment(&target().join("python"), &PACKAGES)?;
    let folder = folder.display().to_string();
    let mut arguments = vec!["build", "--locked", "--out", &folder];
    if matches!(profile, WheelProfile::Release) {
        arguments.push("--release");
    }
    run(&environment, "maturin", &arguments)
}

/// Builds a wheel into an otherwise empty folder.
pub(crate) fn wheel_alone(profile: WheelProfile) -> Result<PathBuf, StepFailure> {
    let folder = target().join("wheel-alone");
    if folder.exists() {
        fs::remove_dir_all(&folder).map_err(|error| file(&folder, &error))?;
    }
    build(profile, &folder)?;
    let out = folder.display();
    let made = fs::read_dir(&folder).map_err(|error| file(&folder, &error))?;
    let wheel = made.filter_map(Result::ok).map(|entry| entry.path()).next();
    wheel.ok_or_else(|| StepFailure::Tool(format!("maturin wrote no wheel to {out}")))
}

pub(crate) fn target() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from)
}

/// A virtual environment with these packages.
pub(crate) fn environment(folder: &Path, packages: &[&str]) -> Result<PathBuf, StepFailure> {
    let stamp = folder.join("packages.txt");
    let listed = packages.join("\n");
    if fs::read_to_string(&stamp).is_ok_and(|found| found == listed) {
        return Ok(folder.to_owned());
    }
    make_environment(folder)?;
    let install = [
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
    ];
    let install = [&install[..], packages].concat();
    run(folder, "python", &install)?;
    fs::write(&stamp, listed).map_err(|error| file(&stamp, &error))?;
    Ok(folder.to_owned())
}

/// Creates an empty virtual environment.
pub(crate) fn make_environment(folder: &Path) -> Result<(), StepFailure> {
    let python = PYTHONS.into_iter().find(|python| is_new_enough(python));
    let Some(python) = python else {
        return Err(StepFailure::Tool(
            "no Python of version 3.10 or later was found".to_owned(),
        ));
    };
    let path = folder.display().to_string();
    command(python, &["-m", "venv", "--clear", &path])
}

pub(crate) fn file(path: &Path, error: &std::io::Error) -> StepFailure {
    StepFailure::Tool(format!("{}: {error}", path.display()))
}

fn is_new_enough(python: &str) -> bool {
    let check = "import sys, venv; sys.exit(sys.version_info < (3, 10))";
    let mut command = Command::new(python);
    command
        .args(["-c", check])
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}

/// Runs a program of the environment.
fn run(environment: &Path, program: &str, arguments: &[&str]) -> Result<(), StepFailure> {
    run_with(environment, program, arguments, &[])
}

/// Runs a program of the environment with environment variables.
pub(crate) fn run_with(
    environment: &Path,
    program: &str,
    arguments: &[&str],
    variables: &[(&str, String)],
) -> Result<(), StepFailure> {
    let program = environment.join("bin").join(program);
    let mut command = Command::new(&program);
    command.env("VIRTUAL_ENV", environment);
    command.envs(variables.iter().map(|(name, value)| (name, value)));
    finish(command, &program.display().to_string(), arguments)
}

fn command(program: &str, arguments: &[&str]) -> Result<(), StepFailure> {
    finish(Command::new(program), program, arguments)
}

fn finish(mut command: Command, program: &str, arguments: &[&str]) -> Result<(), StepFailure> {
    let text = format!("{program} {}", arguments.join(" "));
    println!("$ {text}");
    command.args(arguments).current_dir(root());
    // The cargo that runs this program sets these; they would disturb the cargo that maturin
    // starts.
    command.env_remove("RUSTUP_TOOLCHAIN").env_remove("CARGO");
    let status = command.status();
    let status =
        status.map_err(|error| StepFailure::Tool(format!("cannot start {text}: {error}")))?;
    if status.success() {
        return Ok(());
    }
    Err(StepFailure::Step(text))
}
