//! `kvtile doctor`: the features of this machine, with advice.

mod checks;
mod devices;
mod libraries;

use std::{fmt::Write as _, path::PathBuf};

use clap::Args;
use kvtile::memory::machine::Machine;
use serde::Serialize;

use self::checks::DoctorCheck;
use crate::{
    error::CliError,
    output::{self, Align, Screen, TextTable},
};

/// The end of `--help`.
pub(crate) const EXAMPLES: &str = "\
The command changes nothing. It opens the CUDA driver, if there is one, and uses no device. A missing
feature is no error: kvtile runs without all of them. Lines marked ! can be improved; the advice is below them.

Examples:
  kvtile doctor
  kvtile doctor --folder /mnt/nvme --folder /dev/shm      where would direct I/O work?
  kvtile doctor --json";

/// Arguments of `kvtile doctor`.
#[derive(Args, Debug)]
pub struct DoctorArgs {
    /// Folder to try direct I/O in; repeat for several [default: the current one and /var/tmp]
    #[arg(long = "folder", value_name = "FOLDER")]
    folders: Vec<PathBuf>,
    /// Library of the CUDA driver [default: libcuda.so.1 where the loader finds it]
    #[arg(long = "driver", value_name = "FILE")]
    driver: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// The whole report.
#[derive(Serialize)]
struct DoctorReport {
    version: &'static str,
    os: &'static str,
    arch: &'static str,
    checks: Vec<DoctorCheck>,
    machine: Machine,
}

/// Checks the machine.
pub(crate) fn run(args: &DoctorArgs) -> Result<(), CliError> {
    let machine = Machine::probe();
    let folders = match args.folders.as_slice() {
        [] => vec![PathBuf::from("."), PathBuf::from("/var/tmp")],
        given => given.to_vec(),
    };
    let mut checks = checks::of_machine(&machine);
    checks.extend(folders.iter().map(|folder| checks::direct_io(folder)));
    checks.extend(devices::cuda(args.driver.as_deref()));
    checks.push(libraries::nixl());
    let report = DoctorReport {
        version: env!("CARGO_PKG_VERSION"),
        os: std::env::consts::OS,
        arch: std::env::consts::ARCH,
        checks,
        machine,
    };
    if args.json {
        return output::print_json(&report);
    }
    output::print(&text(&report, Screen::of_stdout()))
}

fn text(report: &DoctorReport, screen: Screen) -> String {
    let heading = format!("kvtile {} on {} {}", report.version, report.os, report.arch);
    let mut text = format!("{}\n", screen.bold(&heading));
    let mut table = TextTable::bare([Align::Left, Align::Left, Align::Left]);
    for check in &report.checks {
        table.row([
            check.status.mark(screen),
            check.name.clone(),
            check.found.clone(),
        ]);
    }
    text.push_str(&table.text());
    let advice: Vec<&DoctorCheck> = report
        .checks
        .iter()
        .filter(|c| c.advice.is_some())
        .collect();
    if !advice.is_empty() {
        let _ = writeln!(text, "\n{}", screen.bold("What can be better"));
    }
    for check in advice {
        let advice = check.advice.as_deref().unwrap_or_default();
        let _ = writeln!(text, "  {}: {advice}", check.name);
    }
    text
}
