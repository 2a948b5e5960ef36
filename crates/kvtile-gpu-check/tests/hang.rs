//! A driver that does not return. The test is alone in its process, because its run leaves a thread behind.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::sync::{Arc, Condvar, Mutex};

use kvtile_gpu_check::{CheckPhase, GpuCheckSettings, MeasuredDirection, PhaseEnd};
use kvtile_standin::{
    PtxEngine, Standin, StandinOptions,
    kernel::{KernelEngine, KernelEntry, KernelFault, KernelLaunch, KernelMemory},
};

/// Interprets kernels after the gate is open.
#[derive(Default)]
struct GatedEngine {
    engine: PtxEngine,
    is_open: Mutex<bool>,
    opened: Condvar,
}

impl KernelEngine for GatedEngine {
    fn entries(&self, ptx: &str) -> Result<Vec<KernelEntry>, String> {
        self.engine.entries(ptx)
    }

    fn launch(
        &self,
        launch: &KernelLaunch<'_>,
        memory: &mut dyn KernelMemory,
    ) -> Result<(), KernelFault> {
        let is_open = self.is_open.lock().unwrap();
        drop(
            self.opened
                .wait_while(is_open, |is_open| !*is_open)
                .unwrap(),
        );
        self.engine.launch(launch, memory)
    }
}

#[test]
fn a_call_that_does_not_return_ends_the_run_with_what_was_measured_before() {
    let engine = Arc::new(GatedEngine::default());
    let standin = Standin::start(StandinOptions {
        kernels: Some(Arc::clone(&engine) as _),
        ..StandinOptions::seeded(1)
    });
    let settings = GpuCheckSettings {
        phases: vec![CheckPhase::Ceilings, CheckPhase::Costs],
        seconds: 0,
        patience_seconds: 1,
        ..GpuCheckSettings::small()
    };
    let driver = standin.driver().unwrap();
    let report = kvtile_gpu_check::run(&driver, &settings, |_| {}).unwrap();
    assert!(report.ceiling(MeasuredDirection::HostToDevice).is_some());
    let [outcome] = &report.phases[..] else {
        panic!("{:?}", report.phases);
    };
    assert_eq!(outcome.phase, CheckPhase::Ceilings);
    let reason = "a call of the driver does not return".to_owned();
    assert_eq!(outcome.end, PhaseEnd::Failed(reason));
    *engine.is_open.lock().unwrap() = true;
    engine.opened.notify_all();
}
