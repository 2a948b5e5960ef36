//! The program that checks kvtile on a machine with a GPU, built so that it needs an old C library alone.
//!
//! zig is the linker, as for wheels: it links against the glibc of [`GLIBC`] and not against that of this machine.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use crate::{
    python::{self, file},
    step::{StepFailure, root, run_program},
    wheels::path_with,
};

const PACKAGES: [&str; 2] = ["cargo-zigbuild>=0.20", "ziglang>=0.14"];
const PROGRAM: &str = "kvtile-gpu-check";
/// Runs the program and packs its files; people get both.
const SCRIPT: &str = "crates/kvtile-gpu-check/gpu-check.sh";
/// The oldest glibc that the program runs on.
const GLIBC: (u32, u32) = (2, 28);
const BYTES_MAX: u64 = 20_000_000;
/// The files with figures, and what each says of figures of the stand-in.
const REPORTS: [&str; 3] = ["gpu-check.json", "gpu-check.csv", "gpu-check.html"];
const LABEL: &str = "stand-in: figures say nothing about hardware";
/// Libraries of every glibc.
const LIBRARIES: [&str; 7] = [
    "ld-linux-x86-64.so.2",
    "ld-linux-aarch64.so.1",
    "libc.so.6",
    "libdl.so.2",
    "libm.so.6",
    "libpthread.so.0",
    "librt.so.1",
];

/// Builds the program, checks what it needs, and runs it with the stand-in in place of a driver.
pub(crate) fn run() -> Result<(), StepFailure> {
    let program = build()?;
    let size = fs::metadata(&program).map_err(|error| file(&program, &error))?;
    let needs = needs(&program)?;
    let found = format!(
        "{}: {:.1} MB, needs glibc {}.{} and {}",
        program.display(),
        size.len() as f64 / 1e6,
        needs.glibc.0,
        needs.glibc.1,
        needs.libraries.join(", ")
    );
    println!("{found}");
    let is_foreign = |library: &&String| !LIBRARIES.contains(&library.as_str());
    let libraries = &needs.libraries;
    let foreign = libraries.is_empty() || libraries.iter().any(|library| is_foreign(&library));
    if size.len() > BYTES_MAX || needs.glibc > GLIBC || foreign {
        return Err(StepFailure::Tool(format!(
            "more than {} MB, glibc {}.{} and its libraries: {found}",
            BYTES_MAX / 1_000_000,
            GLIBC.0,
            GLIBC.1
        )));
    }
    let library = python::standin_library()?;
    let out = python::target().join("gpu-check");
    let (library, folder) = (library.display().to_string(), out.display().to_string());
    let script = pack(&program)?;
    let script = script.display().to_string();
    let arguments = [&script, &folder, "--small", "--driver", &library];
    run_program(Path::new("sh"), &arguments)?;
    for name in REPORTS {
        let path = out.join(name);
        let text = fs::read_to_string(&path).map_err(|error| file(&path, &error))?;
        if !text.contains(LABEL) {
            return Err(StepFailure::Tool(format!(
                "{} does not say {LABEL:?}",
                path.display()
            )));
        }
    }
    println!("{script} and {PROGRAM} beside it are all that a machine with a GPU needs");
    println!(
        "{folder}: {}, labelled as figures of the stand-in",
        REPORTS.join(", ")
    );
    Ok(())
}

/// Puts the program and its script into a folder. Returns the path of the script there.
fn pack(program: &Path) -> Result<PathBuf, StepFailure> {
    let folder = python::target().join("gpu-check-program");
    fs::create_dir_all(&folder).map_err(|error| file(&folder, &error))?;
    let script = folder.join("gpu-check.sh");
    for (from, to) in [
        (program.to_path_buf(), folder.join(PROGRAM)),
        (root().join(SCRIPT), script.clone()),
    ] {
        fs::copy(&from, &to).map_err(|error| file(&from, &error))?;
    }
    Ok(script)
}

/// The release program, without symbols.
fn build() -> Result<PathBuf, StepFailure> {
    let tools = python::environment(&python::target().join("gpu-check-tools"), &PACKAGES)?;
    let target = format!("{}-unknown-linux-gnu", env::consts::ARCH);
    let with_glibc = format!("{target}.{}.{}", GLIBC.0, GLIBC.1);
    let mut arguments = vec!["zigbuild", "--release", "--locked", "-p", PROGRAM];
    arguments.extend(["--bin", PROGRAM, "--target", &with_glibc]);
    let variables = [
        // cargo-zigbuild finds zig as a module of the first `python3` in PATH.
        ("PATH", path_with(&tools.join("bin"))),
        ("CARGO_PROFILE_RELEASE_STRIP", "symbols".to_owned()),
    ];
    python::run_with(&tools, "cargo-zigbuild", &arguments, &variables)?;
    let folder = python::target().join(target).join("release");
    Ok(folder.join(PROGRAM))
}

/// What a program needs at run time.
#[derive(Debug, PartialEq, Eq)]
struct ProgramNeeds {
    glibc: (u32, u32),
    libraries: Vec<String>,
}

fn needs(program: &Path) -> Result<ProgramNeeds, StepFailure> {
    let read = |tool: &str, option: &str| {
        let output = Command::new(tool).arg(option).arg(program).output();
        let output = output.map_err(|error| {
            StepFailure::Tool(format!("cannot start {tool}, of binutils: {error}"))
        })?;
        match output.status.success() {
            true => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
            false => Err(StepFailure::Step(format!("{tool} {option}"))),
        }
    };
    Ok(ProgramNeeds {
        glibc: newest_glibc(&read("objdump", "-T")?)
            .ok_or_else(|| StepFailure::Tool("objdump lists no version of glibc".into()))?,
        libraries: needed(&read("readelf", "-dW")?),
    })
}

/// The newest version of glibc among the symbols that `objdump -T` lists.
fn newest_glibc(symbols: &str) -> Option<(u32, u32)> {
    let versions = symbols.split("GLIBC_").skip(1).filter_map(|text| {
        let end = text.find(|c: char| !c.is_ascii_digit() && c != '.');
        let version = text.get(..end.unwrap_or(text.len()))?;
        let mut parts = version.split('.').map(str::parse);
        match (parts.next(), parts.next()) {
            (Some(Ok(major)), Some(Ok(minor))) => Some((major, minor)),
            _ => None,
        }
    });
    versions.max()
}

/// The libraries that `readelf -d` lists.
fn needed(sections: &str) -> Vec<String> {
    let lines = sections.lines().filter(|line| line.contains("(NEEDED)"));
    let names = lines.filter_map(|line| {
        let (_, name) = line.split_once('[')?;
        Some(name.trim_end().trim_end_matches(']').to_owned())
    });
    names.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_version_and_all_libraries_are_found() {
        let symbols = "0 DF *UND* 0 (GLIBC_2.2.5) read\n0 DF *UND* 0 (GLIBC_2.28) fcntl64\n\
                       0 DF *UND* 0 (GLIBC_2.9) epoll\n0 w D *UND* 0 Base _ITM\n";
        assert_eq!(newest_glibc(symbols), Some((2, 28)));
        assert_eq!(newest_glibc("no symbols"), None);
        let sections = " 0x01 (NEEDED)  Shared library: [libc.so.6]\n 0x0c (INIT) 0x1000\n";
        assert_eq!(needed(sections), ["libc.so.6"]);
    }
}
