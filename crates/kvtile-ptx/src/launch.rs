//! Launches: the blocks of a grid one after the other, and in a block the threads in turn from barrier to barrier.

use crate::{
    counts::{PtxCounts, WARP, WarpAccesses},
    error::{PtxFault, PtxFaultKind, PtxLaunchError},
    memory::PtxMemory,
    module::{PtxKernel, PtxModule},
    shared::{PtxShared, SHARED_BYTES_MAX},
    thread::{PtxSurroundings, PtxThread, ThreadState},
};

/// Most blocks of a grid.
const BLOCKS_MAX: u32 = 0x7fff_ffff;

/// A launch: blocks and threads along one dimension.
#[derive(Clone, Copy, Debug)]
pub struct PtxLaunch<'a> {
    /// The kernel.
    pub kernel: &'a str,
    /// Blocks of the grid.
    pub blocks: u32,
    /// Threads of a block.
    pub threads: u32,
    /// Bytes of shared memory besides those that the text declares.
    pub shared_bytes: u32,
    /// The packed parameters.
    pub parameters: &'a [u8],
    /// Most instructions that all threads together may execute.
    pub instructions_max: u64,
}

/// The result of a launch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PtxReport {
    /// What it did.
    pub counts: PtxCounts,
}

impl PtxModule {
    /// Runs a launch to its end.
    ///
    /// # Errors
    /// A launch that the kernel does not take; the first fault of a thread. Stores before it have happened.
    pub fn launch(
        &self,
        launch: &PtxLaunch<'_>,
        memory: &mut dyn PtxMemory,
    ) -> Result<PtxReport, PtxLaunchError> {
        let kernel = self
            .kernels()
            .iter()
            .find(|kernel| kernel.name == launch.kernel);
        let kernel = kernel.ok_or_else(|| PtxLaunchError::NoKernel {
            name: launch.kernel.to_owned(),
            known: self
                .kernels()
                .iter()
                .map(|kernel| kernel.name.clone())
                .collect(),
        })?;
        let shared = check(kernel, launch)?;
        let mut around = PtxSurroundings {
            kernel,
            parameters: launch.parameters,
            memory,
            shared: PtxShared::new(shared),
            accesses: WarpAccesses::new(kernel.sites.iter().copied()),
            threads: launch.threads,
            block: 0,
            blocks: launch.blocks,
            thread: 0,
            lane: 0,
            instructions: 0,
            instructions_max: launch.instructions_max,
        };
        let mut counts = PtxCounts::default();
        let mut threads: Vec<PtxThread> = Vec::new();
        threads.resize_with(launch.threads as usize, || {
            PtxThread::new(kernel.registers.len())
        });
        for block in 0..launch.blocks {
            around.block = block;
            run_block(&mut threads, &mut around, &mut counts)?;
            around.shared.clear();
            threads.iter_mut().for_each(PtxThread::clear);
        }
        counts.instructions = around.instructions;
        Ok(PtxReport { counts })
    }
}

/// Bytes of shared memory, if the kernel takes the launch.
fn check(kernel: &PtxKernel, launch: &PtxLaunch<'_>) -> Result<usize, PtxLaunchError> {
    if launch.parameters.len() != kernel.parameter_bytes() {
        return Err(PtxLaunchError::Parameters {
            kernel: kernel.name.clone(),
            expected: kernel.parameter_bytes(),
            found: launch.parameters.len(),
        });
    }
    if launch.threads == 0 || launch.threads > kernel.threads_max {
        return Err(PtxLaunchError::Threads {
            kernel: kernel.name.clone(),
            threads: launch.threads,
            max: kernel.threads_max,
        });
    }
    if launch.blocks == 0 || launch.blocks > BLOCKS_MAX {
        return Err(PtxLaunchError::Blocks {
            blocks: launch.blocks,
            max: BLOCKS_MAX,
        });
    }
    let bytes = u64::from(kernel.shared_bytes) + u64::from(launch.shared_bytes);
    let fits = usize::try_from(bytes)
        .ok()
        .filter(|_| bytes <= SHARED_BYTES_MAX);
    fits.ok_or(PtxLaunchError::SharedBytes {
        bytes,
        max: SHARED_BYTES_MAX,
    })
}

fn run_block(
    threads: &mut [PtxThread],
    around: &mut PtxSurroundings<'_>,
    counts: &mut PtxCounts,
) -> Result<(), PtxFault> {
    loop {
        let mut ids = 0u32..;
        for warp in threads.chunks_mut(WARP) {
            for (lane, (thread, id)) in warp.iter_mut().zip(&mut ids).enumerate() {
                (around.thread, around.lane) = (id, lane);
                around.accesses.next_thread();
                let result = thread.run(around);
                result.map_err(|kind| fault(around, id, thread.next, kind))?;
            }
            around.accesses.count(counts);
        }
        let Some(barrier) = meet(threads, around)? else {
            return Ok(());
        };
        // All threads wait at it.
        debug_assert!(
            threads
                .iter()
                .all(|thread| thread.state == ThreadState::Waits(barrier))
        );
        around.shared.barrier();
    }
}

/// The barrier at which all threads wait; `None` where all have ended.
fn meet(threads: &[PtxThread], around: &PtxSurroundings<'_>) -> Result<Option<usize>, PtxFault> {
    let waiting = (0u32..)
        .zip(threads)
        .find_map(|(id, thread)| match thread.state {
            ThreadState::Waits(at) => Some((id, at)),
            ThreadState::Ended | ThreadState::New => None,
        });
    let Some((first, barrier)) = waiting else {
        return Ok(None);
    };
    let ended = threads
        .iter()
        .filter(|thread| thread.state == ThreadState::Ended)
        .count();
    if ended > 0 {
        let ended = u32::try_from(ended).unwrap_or(u32::MAX);
        return Err(fault(
            around,
            first,
            barrier,
            PtxFaultKind::EndedThreads { ended },
        ));
    }
    for (other, thread) in (0u32..).zip(threads) {
        if let ThreadState::Waits(at) = thread.state
            && at != barrier
        {
            let line = line_of(around.kernel, at);
            return Err(fault(
                around,
                first,
                barrier,
                PtxFaultKind::TwoBarriers { other, line },
            ));
        }
    }
    Ok(Some(barrier))
}

fn line_of(kernel: &PtxKernel, instruction: usize) -> u32 {
    let found = kernel
        .instructions
        .get(instruction)
        .or(kernel.instructions.last());
    found.map_or(0, |instruction| instruction.line)
}

fn fault(
    around: &PtxSurroundings<'_>,
    thread: u32,
    instruction: usize,
    kind: PtxFaultKind,
) -> PtxFault {
    PtxFault {
        kernel: around.kernel.name.clone(),
        line: line_of(around.kernel, instruction),
        block: around.block,
        thread,
        kind,
    }
}
