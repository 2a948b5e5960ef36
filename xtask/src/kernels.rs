//! The kernels for devices: compiles their source and compares the text with the one in the repository.
//!
//! It needs clang 19 (the package `clang-19` of Debian and Ubuntu) and no CUDA toolkit. NVIDIA's assembler, from a
//! Python wheel, reports registers and spills where it can be installed.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use crate::{
    cached::CachedEnvironment,
    step::{StepFailure, root},
};

const COMPILER: &str = "clang-19";

/// The folder of the source and of the text.
const FOLDER: &str = "crates/kvtile-kernels/cuda";

/// PTX 7.4 is what drivers of CUDA 11.4 take; newer compilers write newer text, which older drivers refuse.
const ARGUMENTS: [&str; 14] = [
    "-x",
    "cuda",
    "--cuda-device-only",
    "-nocudainc",
    "-nocudalib",
    "--cuda-gpu-arch=sm_80",
    "--cuda-feature=+ptx74",
    "-O3",
    "-std=c++17",
    "-Wall",
    "-Werror",
    "-include",
    "device.h",
    "-S",
];

/// Devices that the assembler is tried for.
const DEVICES: [&str; 2] = ["sm_80", "sm_90"];

/// Most registers of a thread: with these, eight blocks of 128 threads fit.
const REGISTERS_MAX: u64 = 64;

const ASSEMBLER: CachedEnvironment<'_> = CachedEnvironment {
    name: "nvidia-cuda-nvcc-13.5.37",
    needed_gb: 1,
    overrides: &[],
    packages: &["nvidia-cuda-nvcc==13.5.37"],
    alone: &[],
};

/// Compiles the source and compares the text, then assembles it. With `write`, the new text replaces the old one.
pub(crate) fn run(write: bool) -> Result<(), StepFailure> {
    if !has_compiler() {
        return Err(StepFailure::Tool(format!(
            "{COMPILER} is not installed: apt-get install {COMPILER}"
        )));
    }
    compare(write)?;
    assemble()
}

/// The comparison alone, where the compiler is installed.
pub(crate) fn check() -> Result<(), StepFailure> {
    if has_compiler() {
        return compare(false);
    }
    println!("kernels: the text was not compared with its source, {COMPILER} is not installed");
    Ok(())
}

fn has_compiler() -> bool {
    let version = Command::new(COMPILER).arg("--version").output();
    version.is_ok_and(|output| output.status.success())
}

fn compare(write: bool) -> Result<(), StepFailure> {
    let (folder, target) = (root().join(FOLDER), root().join("target"));
    fs::create_dir_all(&target).map_err(|error| file(&target, &error))?;
    let made = target.join("move.ptx");
    let mut command = Command::new(COMPILER);
    command.current_dir(&folder).args(ARGUMENTS);
    command.arg("-o").arg(&made).arg("move.cu");
    output(&mut command)?;
    let kept = folder.join("move.ptx");
    let new = fs::read_to_string(&made).map_err(|error| file(&made, &error))?;
    if write {
        return fs::write(&kept, new).map_err(|error| file(&kept, &error));
    }
    let old = fs::read_to_string(&kept).map_err(|error| file(&kept, &error))?;
    match first_difference(&old, &new) {
        None => {
            println!("kernels: {FOLDER}/move.ptx is what {COMPILER} makes of move.cu");
            Ok(())
        }
        Some(line) => Err(StepFailure::Tool(format!(
            "{FOLDER}/move.ptx differs from what {COMPILER} makes of move.cu, first in line {line}; after a change of \
             move.cu run: cargo x kernels --write"
        ))),
    }
}

/// The first line that differs, from 1.
fn first_difference(old: &str, new: &str) -> Option<usize> {
    if old == new {
        return None;
    }
    let same = old
        .split('\n')
        .zip(new.split('\n'))
        .take_while(|(old, new)| old == new);
    Some(same.count() + 1)
}

/// Assembles the text for each device, where the assembler can be installed.
fn assemble() -> Result<(), StepFailure> {
    let (environment, _lock) = match ASSEMBLER.install() {
        Ok(installed) => installed,
        Err(failure) => {
            println!("kernels: not assembled, ptxas cannot be installed: {failure}");
            return Ok(());
        }
    };
    let assembler = find(&environment.join("lib"), "ptxas")?;
    let assembler = assembler
        .ok_or_else(|| StepFailure::Tool(format!("no ptxas in {}", environment.display())))?;
    let text = root().join(FOLDER).join("move.ptx");
    for device in DEVICES {
        let mut command = Command::new(&assembler);
        command
            .arg(format!("-arch={device}"))
            .args(["-v", "-o", "/dev/null"])
            .arg(&text);
        let report = output(&mut command)?;
        let resources = AssembledResources::of(&report);
        println!(
            "kernels: {} for {device}, at most {} registers, {} bytes spilled",
            resources.kernels, resources.registers, resources.spilled
        );
        if resources.kernels == 0 || resources.registers > REGISTERS_MAX || resources.spilled > 0 {
            return Err(StepFailure::Tool(format!(
                "at most {REGISTERS_MAX} registers and no spills are allowed; ptxas reports:\n{report}"
            )));
        }
    }
    Ok(())
}

/// What the assembler reports of all kernels.
#[derive(Debug, Default, PartialEq, Eq)]
struct AssembledResources {
    kernels: u64,
    registers: u64,
    spilled: u64,
}

impl AssembledResources {
    fn of(report: &str) -> AssembledResources {
        let mut found = AssembledResources::default();
        for line in report.lines() {
            let before = |what: &str| -> Option<u64> {
                let (before, _) = line.split_once(what)?;
                before.split_whitespace().last()?.parse().ok()
            };
            found.kernels += u64::from(line.contains("Compiling entry function"));
            found.registers = found.registers.max(before(" registers").unwrap_or(0));
            found.spilled += before(" bytes spill stores").unwrap_or(0);
            found.spilled += before(" bytes spill loads").unwrap_or(0);
        }
        found
    }
}

/// A file called `name` below `folder`.
fn find(folder: &Path, name: &str) -> Result<Option<PathBuf>, StepFailure> {
    for entry in crate::words::entries(folder)? {
        if entry.is_dir() {
            if let Some(found) = find(&entry, name)? {
                return Ok(Some(found));
            }
        } else if entry.file_name().is_some_and(|found| found == name) {
            return Ok(Some(entry));
        }
    }
    Ok(None)
}

/// What a command prints, to both outputs.
fn output(command: &mut Command) -> Result<String, StepFailure> {
    let done = command.output();
    let done = done.map_err(|error| StepFailure::Tool(format!("{command:?}: {error}")))?;
    let text = [done.stdout, done.stderr].concat();
    let text = String::from_utf8_lossy(&text).into_owned();
    match done.status.success() {
        true => Ok(text),
        false => Err(StepFailure::Tool(format!("{command:?}: {text}"))),
    }
}

fn file(path: &Path, error: &std::io::Error) -> StepFailure {
    StepFailure::Tool(format!("{}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_line_that_differs_is_named() {
        assert_eq!(first_difference("a\nb\n", "a\nb\n"), None);
        assert_eq!(first_difference("a\nb\n", "a\nc\n"), Some(2));
        assert_eq!(first_difference("a\n", "a\nb\n"), Some(2));
    }

    #[test]
    fn reports_of_the_assembler_are_summed() {
        let report = "ptxas info    : Compiling entry function 'a' for 'sm_80'\n\
            \u{20}   0 bytes stack frame, 4 bytes spill stores, 8 bytes spill loads\n\
            ptxas info    : Used 61 registers, used 1 barriers\n\
            ptxas info    : Compiling entry function 'b' for 'sm_80'\n\
            ptxas info    : Used 32 registers\n";
        let expected = AssembledResources {
            kernels: 2,
            registers: 61,
            spilled: 12,
        };
        assert_eq!(AssembledResources::of(report), expected);
        assert_eq!(
            AssembledResources::of("error"),
            AssembledResources::default()
        );
    }
}
