//! Kernels of any PTX text, executed by the interpreter `kvtile-ptx`.

use crate::kernel::{KernelEngine, KernelEntry, KernelFault, KernelLaunch, KernelMemory};
use kvtile_ptx::{
    PtxCounts, PtxFaultKind, PtxLaunch, PtxLaunchError, PtxMemory, PtxModule, PtxTextError,
};
use parking_lot::Mutex;
use std::collections::HashMap;
use std::sync::Arc;

/// Most instructions of a launch.
const INSTRUCTIONS_MAX: u64 = 1 << 30;

/// Executes PTX text and counts what it costs.
#[derive(Debug, Default)]
pub struct PtxEngine {
    modules: Mutex<HashMap<Box<str>, Arc<PtxModule>>>,
    counts: Mutex<PtxCounts>,
}

impl PtxEngine {
    /// An engine without counts.
    #[must_use]
    pub fn new() -> PtxEngine {
        PtxEngine::default()
    }

    /// The counts of all launches so far that ended without a fault.
    #[must_use]
    pub fn counts(&self) -> PtxCounts {
        *self.counts.lock()
    }

    /// The parsed text, which is kept for the next launch.
    fn module(&self, ptx: &str) -> Result<Arc<PtxModule>, PtxTextError> {
        let mut modules = self.modules.lock();
        if let Some(module) = modules.get(ptx) {
            return Ok(Arc::clone(module));
        }
        let module = Arc::new(PtxModule::parse(ptx)?);
        modules.insert(ptx.into(), Arc::clone(&module));
        Ok(module)
    }
}

impl KernelEngine for PtxEngine {
    fn entries(&self, ptx: &str) -> Result<Vec<KernelEntry>, String> {
        let module = self.module(ptx).map_err(|error| error.to_string())?;
        let kernels = module.kernels().iter().map(|kernel| KernelEntry {
            name: kernel.name().to_owned(),
            parameters: kernel.parameters().to_vec(),
            shared_bytes: kernel.shared_bytes(),
            threads_max: kernel.threads_max(),
        });
        Ok(kernels.collect())
    }

    fn launch(
        &self,
        launch: &KernelLaunch<'_>,
        memory: &mut dyn KernelMemory,
    ) -> Result<(), KernelFault> {
        let refused = |message: String| KernelFault::IllegalInstruction { message };
        let ([blocks, 1, 1], [threads, 1, 1]) = (launch.grid, launch.block) else {
            let facts = format!("{:?} blocks of {:?} threads", launch.grid, launch.block);
            return Err(refused(format!("{facts}: the interpreter knows one axis")));
        };
        let module = self.module(launch.ptx);
        let module = module.map_err(|error| refused(error.to_string()))?;
        let launch = PtxLaunch {
            kernel: launch.kernel,
            blocks,
            threads,
            shared_bytes: launch.shared_bytes,
            parameters: launch.parameters,
            instructions_max: INSTRUCTIONS_MAX,
        };
        match module.launch(&launch, &mut EngineMemory(memory)) {
            Ok(report) => {
                self.counts.lock().add(&report.counts);
                Ok(())
            }
            Err(error) => {
                eprintln!("stand-in driver: {error}");
                Err(fault(&error))
            }
        }
    }
}

/// The memory of the stand-in for the interpreter.
struct EngineMemory<'m>(&'m mut dyn KernelMemory);

impl PtxMemory for EngineMemory<'_> {
    fn read(&mut self, address: u64, into: &mut [u8]) -> bool {
        self.0.read(address, into)
    }

    fn write(&mut self, address: u64, from: &[u8]) -> bool {
        self.0.write(address, from)
    }
}

fn fault(error: &PtxLaunchError) -> KernelFault {
    let kind = match error {
        PtxLaunchError::Fault(fault) => Some(&fault.kind),
        _ => None,
    };
    let small = |bytes: usize| u32::try_from(bytes).unwrap_or(u32::MAX);
    match kind {
        Some(&PtxFaultKind::Refused {
            access,
            address,
            bytes,
        }) => KernelFault::IllegalAddress {
            address,
            bytes: small(bytes),
            write: access == "store",
        },
        Some(&PtxFaultKind::Misaligned { address, bytes, .. }) => KernelFault::Misaligned {
            address,
            bytes: small(bytes),
        },
        Some(&PtxFaultKind::Endless { max }) => KernelFault::Timeout { instructions: max },
        _ => KernelFault::IllegalInstruction {
            message: error.to_string(),
        },
    }
}
