//! Whole runs against the stand-in driver.
#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests")]

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use kvtile_device::cuda;
use kvtile_gpu_check::{
    ByteCheck, CheckPhase, GoalRow, GoalState, GpuCheckReport, GpuCheckSettings, MeasuredDirection,
    PhaseEnd, ReportFiles,
};
use kvtile_standin::{
    PtxEngine, Standin, StandinLeaks, StandinOptions,
    kernel::{KernelEngine, KernelEntry, KernelFault, KernelLaunch, KernelMemory},
};

const LABEL: &str = "stand-in: figures say nothing about hardware";

fn standin(seed: u64, kernels: Arc<dyn KernelEngine>) -> Standin {
    Standin::start(StandinOptions {
        kernels: Some(kernels),
        ..StandinOptions::seeded(seed)
    })
}

fn run(standin: &Standin, phases: &[CheckPhase]) -> GpuCheckReport {
    let settings = GpuCheckSettings {
        phases: phases.to_vec(),
        ..GpuCheckSettings::small()
    };
    let driver = standin.driver().unwrap();
    kvtile_gpu_check::run(&driver, &settings, |_| {}).unwrap()
}

#[test]
fn a_whole_run_is_complete_compares_equal_and_writes_its_files() {
    let standin = standin(2, Arc::new(PtxEngine::new()));
    let report = run(&standin, &CheckPhase::ALL);
    assert_eq!(standin.complaints(), []);
    assert_eq!(standin.leaks(), StandinLeaks::default());
    assert_eq!(report.label, LABEL);
    assert!(!report.has_faults());
    let phases: Vec<CheckPhase> = report.phases.iter().map(|outcome| outcome.phase).collect();
    assert_eq!(phases, CheckPhase::ALL);
    for outcome in &report.phases {
        assert_eq!(outcome.end, PhaseEnd::Complete, "{outcome:?}");
        assert!(
            outcome.done == outcome.planned && outcome.done > 0,
            "{outcome:?}"
        );
    }
    let (refusals, transfers): (Vec<&ByteCheck>, Vec<&ByteCheck>) = report
        .bytes
        .iter()
        .partition(|check| check.work == "plans that leave their regions");
    assert!(
        refusals.len() == 1 && refusals[0].refused == 6,
        "{refusals:?}"
    );
    // Nine ways of known and of random ones, and three of the manager.
    assert_eq!(transfers.len(), 21);
    for check in transfers {
        // In the device, known layouts go both ways.
        let is_known = check.work == "known layouts";
        let ways = if is_known && check.direction == MeasuredDirection::Inside {
            2
        } else {
            1
        };
        assert_eq!(check.compared + check.refused, 3 * ways, "{check:?}");
        assert!(check.compared > 0, "{check:?}");
    }
    for direction in MeasuredDirection::ALL {
        assert!(report.ceiling(direction).unwrap() > 0.0);
    }
    let undecided = |goal: &&GoalRow| goal.found.is_some() && goal.state == GoalState::Undecided;
    assert!(report.goals.iter().filter(undecided).count() >= 10);
    let open = report.goals.iter();
    let open = open.filter(|goal| goal.state == GoalState::NotMeasured);
    let open: Vec<&str> = open.map(|goal| goal.work.as_str()).collect();
    // The largest run of the small sweep has 4 KiB.
    let expected = [
        "runs of 64 KiB or more, both ways",
        "runs of 28 to 64 KiB, both ways",
        "cost for a model that computes beside a transfer",
    ];
    let open: Vec<&str> = open
        .into_iter()
        .filter(|work| !work.contains("registering"))
        .collect();
    assert_eq!(open, expected);
    assert!(report.routes.len() > 10, "{:?}", report.routes);
    check_files(&report);
}

/// The files of a report hold what it has.
fn check_files(report: &GpuCheckReport) {
    let folder = tempfile::tempdir().unwrap();
    let files = ReportFiles::in_folder(&folder.path().join("new")).unwrap();
    files.write(report).unwrap();
    let text = |name| std::fs::read_to_string(files.path(name)).unwrap();
    let json: GpuCheckReport = serde_json::from_str(&text(ReportFiles::JSON)).unwrap();
    assert_eq!(json.bytes, report.bytes);
    assert_eq!(json.figures.len(), report.figures.len());
    assert_eq!(
        text(ReportFiles::CSV).lines().count(),
        report.figures.len() + 2
    );
    let page = text(ReportFiles::PAGE);
    assert!(page.contains(LABEL) && page.contains("<h2>Goals</h2>") && page.contains("<polyline"));
    let routes: toml::Table = text(ReportFiles::ROUTES).parse().unwrap();
    assert_eq!(routes["measured"].as_str(), Some(LABEL));
    assert_eq!(
        routes["route"].as_array().unwrap().len(),
        report.routes.len()
    );
}

/// Interprets kernels, and changes what one of them writes.
#[derive(Default)]
struct WrongEngine {
    engine: PtxEngine,
    is_armed: AtomicBool,
}

struct WrongMemory<'m> {
    memory: &'m mut dyn KernelMemory,
    is_armed: bool,
}

impl KernelMemory for WrongMemory<'_> {
    fn read(&mut self, address: u64, into: &mut [u8]) -> bool {
        self.memory.read(address, into)
    }

    fn write(&mut self, address: u64, from: &[u8]) -> bool {
        let mut bytes = from.to_vec();
        if let Some(first) = bytes.first_mut()
            && std::mem::take(&mut self.is_armed)
        {
            *first ^= 1;
        }
        self.memory.write(address, &bytes)
    }
}

impl KernelEngine for WrongEngine {
    fn entries(&self, ptx: &str) -> Result<Vec<KernelEntry>, String> {
        self.engine.entries(ptx)
    }

    fn launch(
        &self,
        launch: &KernelLaunch<'_>,
        memory: &mut dyn KernelMemory,
    ) -> Result<(), KernelFault> {
        let mut memory = WrongMemory {
            memory,
            is_armed: self.is_armed.load(Ordering::Relaxed),
        };
        self.engine.launch(launch, &mut memory)
    }
}

#[test]
fn one_wrong_bit_of_a_kernel_is_found_and_named() {
    let engine = Arc::new(WrongEngine::default());
    engine.is_armed.store(true, Ordering::Relaxed);
    let standin = standin(3, engine);
    let report = run(&standin, &[CheckPhase::Bytes]);
    assert!(report.has_faults());
    let transfers = report.bytes.iter();
    let transfers = transfers.filter(|check| check.work == "random transfers");
    for check in transfers {
        // The transfer manager chooses a kernel for what stays on the device, and perhaps for the rest.
        let is_inside = check.direction == MeasuredDirection::Inside;
        let by_kernel = match check.route.name() {
            "kvtile's transfer" if !is_inside => None,
            name => Some(["kernel", "staged", "kvtile's transfer"].contains(&name)),
        };
        if let Some(by_kernel) = by_kernel {
            assert_eq!(check.wrong.is_some(), by_kernel, "{check:?}");
        }
        if let Some(wrong) = &check.wrong {
            assert!(
                wrong.contains("in place of") && wrong.contains("of seed 20261130"),
                "{wrong}"
            );
        }
    }
}

/// Each function fails once, early and late: the phase ends with the error, the other phases run, and no resource of the driver is left.
#[test]
fn a_failure_of_the_driver_ends_its_phase_and_keeps_what_was_measured() {
    let phases = [CheckPhase::Bytes, CheckPhase::Ceilings];
    let functions = [
        ("cuDevicePrimaryCtxRetain", 1),
        ("cuModuleLoadDataEx", 1),
        ("cuModuleGetFunction", 3),
        ("cuStreamCreate", 2),
        ("cuMemAlloc_v2", 2),
        ("cuMemHostAlloc", 1),
        ("cuMemGetInfo_v2", 1),
        ("cuMemcpyAsync", 40),
        ("cuMemcpyBatchAsync_v2", 2),
        ("cuStreamSynchronize", 30),
        ("cuLaunchKernel", 9),
        ("cuEventRecord", 1),
        ("cuEventSynchronize", 1),
    ];
    for (seed, (function, nth)) in (10..).zip(functions) {
        let standin = standin(seed, Arc::new(PtxEngine::new()));
        standin.fail(function, nth, cuda::OUT_OF_MEMORY);
        let report = run(&standin, &phases);
        assert!(report.has_faults(), "{function}");
        let failed = report
            .phases
            .iter()
            .filter_map(|outcome| match &outcome.end {
                PhaseEnd::Failed(reason) => Some(reason.as_str()),
                _ => None,
            });
        let failed: Vec<&str> = failed.collect();
        assert_eq!(failed.len(), 1, "{function}: {failed:?}");
        let name = function.trim_end_matches("_v2");
        assert!(failed[0].contains(name), "{function}: {failed:?}");
        assert_eq!(report.phases.len(), phases.len());
        assert_eq!(standin.leaks(), StandinLeaks::default(), "{function}");
        assert!(report.page().contains("failed: "));
    }
}

#[test]
fn a_lost_device_ends_the_run_with_what_was_measured_before() {
    let standin = standin(30, Arc::new(PtxEngine::new()));
    standin.fail("cuEventSynchronize", 1, cuda::ILLEGAL_ADDRESS);
    let phases = [CheckPhase::Ceilings, CheckPhase::Sweep];
    let report = run(&standin, &phases);
    assert!(report.ceiling(MeasuredDirection::HostToDevice).is_some());
    let ends: Vec<&PhaseEnd> = report.phases.iter().map(|outcome| &outcome.end).collect();
    let [PhaseEnd::Failed(first), PhaseEnd::NotStarted(second)] = ends[..] else {
        panic!("{ends:?}");
    };
    for reason in [first, second] {
        assert!(
            reason.contains("device 0 is lost since cuEventSynchronize"),
            "{reason}"
        );
    }
    assert_eq!(standin.leaks(), StandinLeaks::default());
}

#[test]
fn phases_stop_at_their_time_and_say_how_far_they_came() {
    let standin = standin(31, Arc::new(PtxEngine::new()));
    let settings = GpuCheckSettings {
        seconds: 0,
        ..GpuCheckSettings::small()
    };
    let driver = standin.driver().unwrap();
    let mut seen = 0;
    let report = kvtile_gpu_check::run(&driver, &settings, |_| seen += 1).unwrap();
    assert_eq!(seen, 2 * CheckPhase::ALL.len());
    for outcome in &report.phases {
        assert!(
            outcome.done >= 1 && outcome.done <= outcome.planned,
            "{outcome:?}"
        );
        assert!(outcome.done < 40, "{outcome:?}");
    }
    let sweep = report
        .phases
        .iter()
        .find(|outcome| outcome.phase == CheckPhase::Sweep);
    assert_eq!(sweep.unwrap().end, PhaseEnd::CutShort);
    assert!(!report.has_faults());
}

#[test]
fn a_device_that_does_not_exist_is_an_error_before_anything_runs() {
    let standin = standin(32, Arc::new(PtxEngine::new()));
    let settings = GpuCheckSettings {
        device: 4,
        ..GpuCheckSettings::small()
    };
    let error = kvtile_gpu_check::run(&standin.driver().unwrap(), &settings, |_| {}).unwrap_err();
    assert_eq!(
        error.to_string(),
        "there is no device 4: the driver has 1, numbered from 0"
    );
}
