//! The Python package: its environment, its wheel, its tests.
//!
//! The environment is a folder beside what cargo builds, made once and used again as long as the
//! list of packages is the same.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use crate::step::{Failure, root};

/// What the package is built and tested with. Torch is not among them: tests that need it skip, and run
/// where vLLM is.
const PACKAGES: [&str; 5] = [
    "maturin>=1.9,<2",
    "ml_dtypes>=0.5",
    "mypy>=1.18",
    "numpy>=2.0",
    "pytest>=8.4",
];

/// Programs that may be a Python that is new enough.
const PYTHONS: [&str; 5] = [
    "python3",
    "python3.13",
    "python3.12",
    "python3.11",
    "python3.10",
];

/// Builds the package into the environment and runs its tests.
pub(crate) fn test() -> Result<(), Failure> {
    let environment = environment(&target().join("python"), &PACKAGES)?;
    run(&environment, "maturin", &["develop", "--locked", "--quiet"])?;
    run(&environment, "python", &["-m", "pytest"])
}

/// How a wheel is compiled.
#[derive(Clone, Copy)]
pub(crate) enum Profile {
    /// Quickly, to be tested.
    Tests,
    /// As users get it.
    Release,
}

fn build(profile: Profile, folder: &Path) -> Result<(), Failure> {
    let environment = environment(&target().join("python"), &PACKAGES)?;
    let folder = folder.display().to_string();
    let mut arguments = vec!["build", "--locked", "--out", &folder];
    if matches!(profile, Profile::Release) {
        arguments.push("--release");
    }
    run(&environment, "maturin", &arguments)
}

/// A wheel in a folder where it is alone.
pub(crate) fn wheel_alone(profile: Profile) -> Result<PathBuf, Failure> {
    let folder = target().join("wheel-alone");
    if folder.exists() {
        fs::remove_dir_all(&folder).map_err(|error| file(&folder, &error))?;
    }
    build(profile, &folder)?;
    let out = folder.display();
    let made = fs::read_dir(&folder).map_err(|error| file(&folder, &error))?;
    let wheel = made.filter_map(Result::ok).map(|entry| entry.path()).next();
    wheel.ok_or_else(|| Failure::Tool(format!("maturin has put no wheel into {out}")))
}

pub(crate) fn target() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from)
}

/// A virtual environment with these packages.
pub(crate) fn environment(folder: &Path, packages: &[&str]) -> Result<PathBuf, Failure> {
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

/// An empty virtual environment.
pub(crate) fn make_environment(folder: &Path) -> Result<(), Failure> {
    let python = PYTHONS.into_iter().find(|python| is_new_enough(python));
    let Some(python) = python else {
        return Err(Failure::Tool(
            "no Python of version 3.10 or later was found".to_owned(),
        ));
    };
    let path = folder.display().to_string();
    command(python, &["-m", "venv", "--clear", &path])
}

pub(crate) fn file(path: &Path, error: &std::io::Error) -> Failure {
    Failure::Tool(format!("{}: {error}", path.display()))
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

/// A program of the environment.
fn run(environment: &Path, program: &str, arguments: &[&str]) -> Result<(), Failure> {
    run_with(environment, program, arguments, &[])
}

/// A program of the environment, with variables.
pub(crate) fn run_with(
    environment: &Path,
    program: &str,
    arguments: &[&str],
    variables: &[(&str, String)],
) -> Result<(), Failure> {
    let program = environment.join("bin").join(program);
    let mut command = Command::new(&program);
    command.env("VIRTUAL_ENV", environment);
    command.envs(variables.iter().map(|(name, value)| (name, value)));
    finish(command, &program.display().to_string(), arguments)
}

fn command(program: &str, arguments: &[&str]) -> Result<(), Failure> {
    finish(Command::new(program), program, arguments)
}

fn finish(mut command: Command, program: &str, arguments: &[&str]) -> Result<(), Failure> {
    let text = format!("{program} {}", arguments.join(" "));
    println!("$ {text}");
    command.args(arguments).current_dir(root());
    // Set by the cargo that runs this program, and in the way of the one that maturin starts.
    command.env_remove("RUSTUP_TOOLCHAIN").env_remove("CARGO");
    let status = command.status();
    let status = status.map_err(|error| Failure::Tool(format!("cannot start {text}: {error}")))?;
    if status.success() {
        return Ok(());
    }
    Err(Failure::Step(text))
}
