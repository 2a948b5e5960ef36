//! A run: the phases one after the other, on a thread that the caller's thread watches.

use std::{
    sync::mpsc::{self, RecvTimeoutError, Sender},
    thread,
    time::{Duration, Instant},
};

use kvtile_bench::machine::MachineFacts;
use kvtile_device::{Device, Driver};

use crate::{
    error::GpuCheckError,
    figures::CheckFigure,
    goals, machine,
    measure::RoundSpread,
    phase::CheckPhase,
    phases::{self, PhaseContext},
    report::{self, DeviceFacts, GpuCheckReport, PhaseEnd, PhaseOutcome, SharedReport},
    rig::Rig,
    settings::GpuCheckSettings,
};

/// What the check does not measure, and why.
const LEFT_OUT: [&str; 4] = [
    "the cost for a model that computes beside a transfer: it needs matrix products",
    "the bulk copies of sm_90: kvtile has no kernel for them",
    "several devices, and memory of other processes",
    "timing by events of the device: times are those of the host, from the call to the end of a wait",
];

/// Seconds for making the context and compiling the kernels.
const OPEN_SECONDS: u64 = 60;

/// What a caller sees of a run.
#[derive(Debug)]
#[non_exhaustive]
pub enum CheckProgress<'a> {
    /// A phase starts, with this time.
    Began(CheckPhase, Duration),
    /// A phase has ended; the report has everything so far.
    Ended(&'a PhaseOutcome, &'a GpuCheckReport),
}

/// What the working thread reports.
enum WorkerMessage {
    Opened,
    Began(CheckPhase, Duration),
    Ended(PhaseOutcome),
}

/// Runs the phases of `settings` on a device of `driver`.
///
/// An error of a phase ends that phase, and the report has it with all figures before. A call of the driver that does
/// not return ends the run: the report names the phase, and the thread stays in the call until the process ends.
///
/// # Errors
///
/// A device that does not exist, or cannot be described.
pub fn run(
    driver: &Driver,
    settings: &GpuCheckSettings,
    mut progress: impl FnMut(CheckProgress<'_>),
) -> Result<GpuCheckReport, GpuCheckError> {
    let shared = SharedReport::default();
    let mut facts = DeviceFacts::of(driver, &driver.describe(settings.device)?);
    facts.state_before = machine::state(&facts.uuid);
    let uuid = facts.uuid.clone();
    shared.change(|report| {
        report.label = report::label(&facts);
        report.machine = MachineFacts::probe();
        report.device = facts;
        report.settings = Some(settings.clone());
        report.left_out = LEFT_OUT.map(str::to_owned).to_vec();
    });
    let (sender, receiver) = mpsc::channel();
    let worker = {
        let (driver, settings, shared) = (driver.clone(), settings.clone(), shared.clone());
        thread::spawn(move || work(&driver, &settings, &shared, &sender))
    };
    let patience = Duration::from_secs(u64::from(settings.patience_seconds));
    let mut limit = Duration::from_secs(OPEN_SECONDS);
    let mut current = settings.ordered().first().copied();
    let mut started = Instant::now();
    loop {
        match receiver.recv_timeout(limit.saturating_add(patience)) {
            Ok(WorkerMessage::Opened) => {}
            Ok(WorkerMessage::Began(phase, time)) => {
                (current, limit, started) = (Some(phase), time, Instant::now());
                progress(CheckProgress::Began(phase, time));
            }
            Ok(WorkerMessage::Ended(outcome)) => {
                shared.change(|report| report.phases.push(outcome.clone()));
                progress(CheckProgress::Ended(&outcome, &shared.concluded()));
            }
            Err(RecvTimeoutError::Disconnected) => break,
            Err(RecvTimeoutError::Timeout) => {
                let outcome = PhaseOutcome {
                    phase: current.unwrap_or(CheckPhase::Ceilings),
                    end: PhaseEnd::Failed("a call of the driver does not return".to_owned()),
                    seconds: started.elapsed().as_secs_f64(),
                    seconds_max: limit.as_secs_f64(),
                    done: 0,
                    planned: 0,
                };
                shared.change(|report| report.phases.push(outcome.clone()));
                progress(CheckProgress::Ended(&outcome, &shared.concluded()));
                return Ok(shared.concluded());
            }
        }
    }
    if let Err(panicked) = worker.join() {
        std::panic::resume_unwind(panicked);
    }
    shared.change(|report| report.device.state_after = machine::state(&uuid));
    Ok(shared.concluded())
}

/// The phases, on a thread of their own.
fn work(
    driver: &Driver,
    settings: &GpuCheckSettings,
    shared: &SharedReport,
    sender: &Sender<WorkerMessage>,
) {
    // A caller that has given up does not read any more.
    let send = |message| drop(sender.send(message));
    let phases = settings.ordered();
    let rig = match open(driver, settings, shared) {
        Ok(rig) => rig,
        Err(error) => {
            for (index, phase) in phases.into_iter().enumerate() {
                let end = match index {
                    0 => PhaseEnd::Failed(error.to_string()),
                    _ => PhaseEnd::NotStarted(error.to_string()),
                };
                send(WorkerMessage::Ended(not_run(phase, settings, end)));
            }
            return;
        }
    };
    send(WorkerMessage::Opened);
    for phase in phases {
        let time = settings.time_of(phase);
        if let Some(lost) = rig.device().lost() {
            let end = PhaseEnd::NotStarted(lost.to_string());
            send(WorkerMessage::Ended(not_run(phase, settings, end)));
            continue;
        }
        send(WorkerMessage::Began(phase, time));
        let start = Instant::now();
        let mut context = PhaseContext {
            rig: &rig,
            settings,
            report: shared,
            phase,
            deadline: start + time,
            done: 0,
            planned: 0,
        };
        let ended = phases::run(phase, &mut context);
        // Buffers of a phase end with it, so its work does too.
        let ended = ended.and_then(|()| rig.idle());
        let end = match ended {
            Err(error) => PhaseEnd::Failed(error.to_string()),
            Ok(()) if context.done < context.planned => PhaseEnd::CutShort,
            Ok(()) => PhaseEnd::Complete,
        };
        send(WorkerMessage::Ended(PhaseOutcome {
            phase,
            end,
            seconds: start.elapsed().as_secs_f64(),
            seconds_max: time.as_secs_f64(),
            done: context.done,
            planned: context.planned,
        }));
    }
}

fn not_run(phase: CheckPhase, settings: &GpuCheckSettings, end: PhaseEnd) -> PhaseOutcome {
    PhaseOutcome {
        phase,
        end,
        seconds: 0.0,
        seconds_max: settings.time_of(phase).as_secs_f64(),
        done: 0,
        planned: 0,
    }
}

/// Takes the device into use and loads the kernels, whose first loading is a figure.
fn open(
    driver: &Driver,
    settings: &GpuCheckSettings,
    shared: &SharedReport,
) -> Result<Rig, GpuCheckError> {
    let device: Device = driver.device(settings.device)?;
    let start = Instant::now();
    let rig = Rig::open(&device)?;
    let seconds = RoundSpread::of(vec![start.elapsed().as_secs_f64()], 1);
    let figure = CheckFigure::of(CheckPhase::Ceilings, goals::work::FIRST_COMPILE, seconds);
    shared.change(|report| report.figures.push(figure));
    Ok(rig)
}
