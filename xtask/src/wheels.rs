//! Wheels for users, and the check that they install on a machine without Rust.
//!
//! zig is the linker: it links against the glibc of [`PLATFORM`] and not against that of this machine, so no container
//! is needed. maturin refuses a wheel that needs a library or a symbol which that platform does not have.

use std::{
    collections::BTreeMap,
    env, fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use crate::{
    python::{self, file},
    step::{StepFailure, root},
};

/// What wheels are built with.
const PACKAGES: [&str; 2] = ["maturin>=1.9,<2", "ziglang>=0.14"];

/// The oldest glibc that the standard library of Rust supports is 2.17.
const PLATFORM: &str = "manylinux_2_17";

/// Prints the version and the path of a Python that can install the wheel. Fails in Pythons older than 3.10, in
/// those without the modules that make a virtual environment, and in free-threaded ones, which have no stable ABI.
const PROBE: &str = "import sys, sysconfig, venv, ensurepip
assert sys.version_info >= (3, 10) and sys.implementation.name == 'cpython'
assert not sysconfig.get_config_var('Py_GIL_DISABLED')
print('%d.%d' % sys.version_info[:2], sys.executable)";

/// Stores and loads with buffers of the standard library.
const EXAMPLE: &str = "examples/python/standard_library.py";

/// Builds the wheel of a target, this machine's where there is none given, and returns its path.
pub(crate) fn build(target: Option<&str>) -> Result<PathBuf, StepFailure> {
    let tools = python::environment(&python::target().join("wheel-tools"), &PACKAGES)?;
    let host = format!("{}-unknown-linux-gnu", env::consts::ARCH);
    let target = target.unwrap_or(&host);
    let folder = python::target().join("wheels");
    // An earlier wheel of this target would be taken for the new one.
    for old in wheels_of(&folder, target) {
        fs::remove_file(&old).map_err(|error| file(&old, &error))?;
    }
    let out = folder.display().to_string();
    let mut arguments = vec!["build", "--release", "--locked", "--out", &out];
    arguments.extend(["--target", target, "--zig", "--compatibility", PLATFORM]);
    // Not `repair`, which would put libraries of this machine into the wheel.
    arguments.extend(["--auditwheel", "check"]);
    // maturin finds zig as a module of the first `python3` in PATH.
    let path = path_with(&tools.join("bin"));
    python::run_with(&tools, "maturin", &arguments, &[("PATH", path)])?;
    let Some(wheel) = wheels_of(&folder, target).pop() else {
        let none = format!("maturin has put no wheel of {target} into {out}");
        return Err(StepFailure::Tool(none));
    };
    println!("{}", wheel.display());
    Ok(wheel)
}

/// The wheels of a target in a folder.
fn wheels_of(folder: &Path, target: &str) -> Vec<PathBuf> {
    let arch = target.split('-').next().unwrap_or(target);
    let end = format!("_{arch}.whl");
    let mut wheels = entries(folder);
    wheels.retain(|path| path.to_string_lossy().ends_with(&end));
    wheels
}

/// Builds the wheel and installs it for each Python of this machine, without Rust, an index or other packages.
pub(crate) fn check() -> Result<(), StepFailure> {
    let wheel = build(None)?;
    let pythons = pythons();
    if pythons.is_empty() {
        return Err(StepFailure::Tool(
            "no Python of version 3.10 or later was found".to_owned(),
        ));
    }
    for (version, python) in &pythons {
        println!("Python {version}: {}", python.display());
        check_with(version, python, &wheel)?;
    }
    let versions: Vec<&str> = pythons.keys().map(String::as_str).collect();
    let versions = versions.join(", ");
    match pythons.len() {
        1 => println!("the wheel works with Python {versions}, the only one found here"),
        _ => println!("the wheel works with Python {versions}"),
    }
    Ok(())
}

/// Installs the wheel into an empty environment and uses it from an empty folder.
fn check_with(version: &str, python: &Path, wheel: &Path) -> Result<(), StepFailure> {
    let folder = python::target().join("wheel-check").join(version);
    let environment = folder.join("environment");
    let empty = folder.join("empty");
    if folder.exists() {
        fs::remove_dir_all(&folder).map_err(|error| file(&folder, &error))?;
    }
    fs::create_dir_all(&empty).map_err(|error| file(&empty, &error))?;
    let bin = environment.join("bin");
    let run = |program: &Path, arguments: &[&str]| {
        let mut command = Command::new(program);
        // Nothing of this machine but the environment: no cargo, no rustc, no settings of pip.
        command.args(arguments).current_dir(&empty).env_clear();
        command
            .env("PATH", &bin)
            .env("PIP_CONFIG_FILE", "/dev/null");
        finish(command, program, arguments)
    };
    let path = environment.display().to_string();
    run(python, &["-m", "venv", &path])?;
    let python = bin.join("python");
    let wheels = wheel.parent().unwrap_or(wheel).display().to_string();
    let install = ["-m", "pip", "install", "--quiet", "--no-index", "--no-deps"];
    let links = ["--find-links", &wheels, "kvtile"];
    run(&python, &[&install[..], &links].concat())?;
    run(&python, &["-c", "import kvtile; print(kvtile.__file__)"])?;
    run(&python, &["-m", "kvtile", "--version"])?;
    run(&bin.join("kvtile"), &["doctor"])?;
    let example = root().join(EXAMPLE).display().to_string();
    run(&python, &["-W", "error", &example])
}

fn finish(mut command: Command, program: &Path, arguments: &[&str]) -> Result<(), StepFailure> {
    let text = format!("{} {}", program.display(), arguments.join(" "));
    println!("$ {text}");
    let status = command.status();
    let status =
        status.map_err(|error| StepFailure::Tool(format!("cannot start {text}: {error}")))?;
    match status.success() {
        true => Ok(()),
        false => Err(StepFailure::Step(text)),
    }
}

/// The Pythons of this machine that can install the wheel, the first found of each version.
fn pythons() -> BTreeMap<String, PathBuf> {
    let mut found = BTreeMap::new();
    for python in candidates() {
        let mut probe = Command::new(&python);
        probe.args(["-I", "-c", PROBE]).stderr(Stdio::null());
        let Ok(output) = probe.output() else {
            continue;
        };
        let printed = String::from_utf8_lossy(&output.stdout);
        // Its own path: the program may be a script that looks for a Python in PATH.
        if let Some((version, path)) = printed.trim().split_once(' ')
            && output.status.success()
        {
            let python = PathBuf::from(path);
            found.entry(version.to_owned()).or_insert(python);
        }
    }
    found
}

/// Programs named `python3` or `python3.N` in PATH, and those of pyenv and uv.
fn candidates() -> Vec<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let mut folders: Vec<PathBuf> = env::split_paths(&path).collect();
    if let Some(home) = env::var_os("HOME").map(PathBuf::from) {
        for versions in [".pyenv/versions", ".local/share/uv/python"] {
            let versions = entries(&home.join(versions));
            folders.extend(versions.into_iter().map(|version| version.join("bin")));
        }
    }
    let all = folders.iter().flat_map(|folder| entries(folder));
    all.filter(|path| {
        path.file_name()
            .is_some_and(|name| is_python(&name.to_string_lossy()))
    })
    .collect()
}

fn is_python(name: &str) -> bool {
    let Some(minor) = name.strip_prefix("python3") else {
        return false;
    };
    minor.is_empty()
        || minor
            .strip_prefix('.')
            .is_some_and(|minor| minor.parse::<u16>().is_ok())
}

/// The paths in a folder, in order; none where it cannot be read.
fn entries(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten();
    let mut paths: Vec<PathBuf> = entries.filter_map(Result::ok).map(|e| e.path()).collect();
    paths.sort();
    paths
}

/// PATH with a folder before the others.
pub(crate) fn path_with(folder: &Path) -> String {
    let path = env::var("PATH").unwrap_or_default();
    format!("{}:{path}", folder.display())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interpreters_are_known_by_their_names() {
        for name in ["python3", "python3.10", "python3.14"] {
            assert!(is_python(name), "{name}");
        }
        for name in [
            "python",
            "python2.7",
            "python3-config",
            "python3.11-config",
            "python3.13t",
        ] {
            assert!(!is_python(name), "{name}");
        }
    }
}
