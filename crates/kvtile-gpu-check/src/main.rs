//! The program `kvtile-gpu-check`: runs the phases and writes the report.

use std::{path::PathBuf, process::ExitCode};

use clap::Parser;
use kvtile_device::{DeviceOptions, Driver};
use kvtile_gpu_check::{
    CheckPhase, CheckProgress, GpuCheckError, GpuCheckReport, GpuCheckSettings, PhaseEnd,
    ReportFiles,
};

/// Bytes differ from the naive copy, or the driver failed.
const FAULTS: u8 = 1;
/// There is nothing to run on.
const REFUSED: u8 = 2;

/// Checks and measures kvtile's device code on this machine: about seven minutes, four files.
#[derive(Parser, Debug)]
#[command(name = "kvtile-gpu-check", version)]
struct GpuCheckArgs {
    /// The folder for the report; made if it is absent.
    #[arg(long, default_value = "gpu-check")]
    out: PathBuf,
    /// The device.
    #[arg(long, default_value_t = 0)]
    device: u32,
    /// Phases to run, separated by commas; all of them by default.
    #[arg(long, value_delimiter = ',')]
    only: Vec<CheckPhase>,
    /// Seconds of all phases together, where all run.
    #[arg(long, default_value_t = GpuCheckSettings::default().seconds)]
    seconds: u32,
    /// The seed of transfers and block orders.
    #[arg(long, default_value_t = GpuCheckSettings::default().seed)]
    seed: u64,
    /// Random transfers for each direction and route.
    #[arg(long, conflicts_with = "small", default_value_t = GpuCheckSettings::default().cases)]
    cases: u32,
    /// Everything as small as for a driver that interprets kernels: seconds, and no useful figures.
    #[arg(long)]
    small: bool,
    /// The library of the driver; by default the usual names are tried.
    #[arg(long)]
    driver: Option<PathBuf>,
}

impl GpuCheckArgs {
    fn settings(&self) -> GpuCheckSettings {
        let base = match self.small {
            true => GpuCheckSettings::small(),
            false => GpuCheckSettings {
                cases: self.cases,
                ..GpuCheckSettings::default()
            },
        };
        let phases = match self.only.is_empty() {
            true => base.phases.clone(),
            false => self.only.clone(),
        };
        GpuCheckSettings {
            device: self.device,
            seed: self.seed,
            seconds: self.seconds,
            phases,
            ..base
        }
    }
}

fn main() -> ExitCode {
    let arguments = GpuCheckArgs::parse();
    let options = DeviceOptions {
        library: arguments.driver.clone(),
    };
    let driver = match Driver::open(&options) {
        Ok(driver) => driver,
        Err(error) => {
            eprintln!("kvtile-gpu-check: {error}");
            return ExitCode::from(REFUSED);
        }
    };
    match check(&driver, &arguments) {
        Ok(report) if report.has_faults() => ExitCode::from(FAULTS),
        Ok(_) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("kvtile-gpu-check: {error}");
            ExitCode::from(REFUSED)
        }
    }
}

fn check(driver: &Driver, arguments: &GpuCheckArgs) -> Result<GpuCheckReport, GpuCheckError> {
    let settings = arguments.settings();
    let description = driver.describe(settings.device)?;
    println!(
        "driver of CUDA {}, device {}: {}, compute capability {}.{}, {} multiprocessors, {} MiB",
        driver.version(),
        description.ordinal,
        description.name,
        description.capability.0,
        description.capability.1,
        description.multiprocessors,
        description.bytes >> 20,
    );
    println!("seed {}", settings.seed);
    let files = ReportFiles::in_folder(&arguments.out)?;
    let mut written = Ok(());
    let report = kvtile_gpu_check::run(driver, &settings, |progress| match progress {
        CheckProgress::Began(phase, time) => println!("{phase}: {} s", time.as_secs()),
        CheckProgress::Ended(outcome, report) => {
            let end = match &outcome.end {
                PhaseEnd::Complete => "complete".to_owned(),
                PhaseEnd::CutShort => {
                    format!("{} of {} parts in its time", outcome.done, outcome.planned)
                }
                PhaseEnd::Failed(reason) => format!("failed: {reason}"),
                PhaseEnd::NotStarted(reason) => format!("not started: {reason}"),
            };
            println!("{}: {end}, {:.1} s", outcome.phase, outcome.seconds);
            if let Err(error) = files.write(report) {
                written = Err(error);
            }
        }
        _ => {}
    })?;
    written?;
    files.write(&report)?;
    print(&report, &files);
    Ok(report)
}

fn print(report: &GpuCheckReport, files: &ReportFiles) {
    println!("{}", report.label);
    for (name, value) in report
        .device
        .state_before
        .iter()
        .chain(&report.device.state_after)
    {
        println!("  {name}: {value}");
    }
    for check in &report.bytes {
        let found = match &check.wrong {
            None if check.compared == 0 => format!("{} refused", check.refused),
            None => format!("{} equal the naive copy", check.compared),
            Some(wrong) => format!("WRONG: {wrong}"),
        };
        let (way, route) = (check.direction.name(), check.route.name());
        println!("  {}, {way}, {route}: {found}", check.work);
    }
    for goal in &report.goals {
        let state = goal.state.name();
        let found = goal
            .found
            .map_or_else(String::new, |found| format!("{found:.3} "));
        let bound = if goal.at_least { "≥" } else { "≤" };
        println!(
            "  {state}: {}: {found}{bound} {} {} ({})",
            goal.work, goal.goal, goal.unit, goal.by
        );
    }
    for name in [
        ReportFiles::PAGE,
        ReportFiles::JSON,
        ReportFiles::CSV,
        ReportFiles::ROUTES,
    ] {
        println!("{}", files.path(name).display());
    }
}
