//! Modules and kernels.

use super::World;
use super::memory::MemoryMap;
use super::order::{Moment, OrderChecker};
use super::work::{PendingLaunch, WorkKind};
use crate::kernel::{KernelEngine, KernelEntry, KernelFault, KernelLaunch, KernelMemory};
use kvtile_device::cuda;
use std::ops::Range;
use std::sync::Arc;

/// `CUDA_ERROR_JIT_COMPILER_NOT_FOUND`.
const NO_COMPILER: u32 = 221;

/// A module.
pub(crate) struct LoadedText {
    ptx: Arc<str>,
    entries: Vec<KernelEntry>,
}

/// A kernel of a module.
#[derive(Clone)]
pub(crate) struct StandinFunction {
    pub(crate) module: usize,
    pub(crate) ptx: Arc<str>,
    pub(crate) entry: KernelEntry,
}

/// Why a text was refused: the error, and the log of the compiler.
pub(crate) struct RefusedText {
    pub(crate) code: u32,
    pub(crate) log: String,
}

impl World {
    /// Loads PTX text.
    pub(crate) fn load(&mut self, ptx: &str) -> Result<usize, RefusedText> {
        let refuse = |code, log: String| RefusedText { code, log };
        let Some((major, minor)) = stated_version(ptx) else {
            let log = "the text states no .version".to_owned();
            return Err(refuse(cuda::INVALID_PTX, log));
        };
        let newest = newest_ptx(self.options.version);
        if (major, minor) > newest {
            let log = format!(
                "PTX {major}.{minor} is newer than {}.{}",
                newest.0, newest.1
            );
            return Err(refuse(cuda::UNSUPPORTED_PTX_VERSION, log));
        }
        let Some(engine) = self.engine() else {
            return Err(refuse(NO_COMPILER, String::new()));
        };
        let entries = engine.entries(ptx);
        let entries = entries.map_err(|log| refuse(cuda::INVALID_PTX, log))?;
        let module = self.handle();
        let loaded = LoadedText {
            ptx: ptx.into(),
            entries,
        };
        self.modules.insert(module, loaded);
        Ok(module)
    }

    /// The function with a name.
    pub(crate) fn function(&mut self, module: usize, name: &str) -> Result<usize, u32> {
        let loaded = self.modules.get(&module).ok_or(cuda::INVALID_HANDLE)?;
        let entry = loaded.entries.iter().find(|entry| entry.name == name);
        let function = StandinFunction {
            module,
            ptx: Arc::clone(&loaded.ptx),
            entry: entry.ok_or(cuda::NOT_FOUND)?.clone(),
        };
        let handle = self.handle();
        self.functions.insert(handle, function);
        Ok(handle)
    }

    /// Unloads a module. Launches of it that have not run lose their code, so they run first.
    pub(crate) fn unload(&mut self, module: usize) -> Result<(), u32> {
        self.run_all();
        let unloaded = self.modules.remove(&module);
        self.functions
            .retain(|_, function| function.module != module);
        unloaded.map(|_| ()).ok_or(cuda::INVALID_HANDLE)
    }

    /// Enqueues a launch.
    pub(crate) fn enqueue_launch(&mut self, handle: u64, launch: PendingLaunch) {
        let name = format!("kernel {} on {handle:#x}", launch.kernel);
        let (after, moment) = self.next_moment(handle, &name.into());
        self.enqueue(handle, vec![WorkKind::Launch(launch)], &after, &moment);
    }

    fn engine(&self) -> Option<Arc<dyn KernelEngine>> {
        self.options.kernels.clone()
    }

    pub(super) fn run_launch(
        &mut self,
        launch: &PendingLaunch,
        moment: &Moment,
    ) -> Result<(), u32> {
        let engine = self.engine().ok_or(NO_COMPILER)?;
        let mut memory = NotedMemory {
            memory: &self.memory,
            reads: NotedRanges::default(),
            writes: NotedRanges::default(),
        };
        let launch = KernelLaunch {
            ptx: &launch.ptx,
            kernel: &launch.kernel,
            grid: launch.grid,
            block: launch.block,
            shared_bytes: launch.shared_bytes,
            parameters: &launch.parameters,
        };
        let ended = engine.launch(&launch, &mut memory);
        let NotedMemory { reads, writes, .. } = memory;
        reads.enter(false, &mut self.order, moment);
        writes.enter(true, &mut self.order, moment);
        ended.map_err(|fault| match fault {
            KernelFault::IllegalAddress { .. } => cuda::ILLEGAL_ADDRESS,
            KernelFault::Misaligned { .. } => cuda::MISALIGNED_ADDRESS,
            KernelFault::IllegalInstruction { .. } => cuda::ILLEGAL_INSTRUCTION,
            KernelFault::Timeout { .. } => cuda::LAUNCH_TIMEOUT,
        })
    }
}

/// Memory for a kernel. It notes the ranges that the kernel accesses.
struct NotedMemory<'a> {
    memory: &'a MemoryMap,
    reads: NotedRanges,
    writes: NotedRanges,
}

/// Ranges that are merged where they touch.
#[derive(Default)]
struct NotedRanges {
    ranges: Vec<Range<u64>>,
    /// How many there are after the last merge.
    merged: usize,
}

impl NotedRanges {
    fn note(&mut self, range: Range<u64>) {
        match self.ranges.last_mut() {
            Some(last) if last.end == range.start => last.end = range.end,
            _ => self.ranges.push(range),
        }
        if self.ranges.len() > 2 * self.merged + 4096 {
            self.merge();
        }
    }

    fn merge(&mut self) {
        self.ranges.sort_by_key(|range| range.start);
        self.ranges.dedup_by(|next, before| {
            let touches = next.start <= before.end;
            if touches {
                before.end = before.end.max(next.end);
            }
            touches
        });
        self.merged = self.ranges.len();
    }

    fn enter(mut self, is_write: bool, order: &mut OrderChecker, moment: &Moment) {
        self.merge();
        for range in self.ranges {
            order.enter(range, is_write, moment);
        }
    }
}

impl KernelMemory for NotedMemory<'_> {
    fn read(&mut self, address: u64, into: &mut [u8]) -> bool {
        let Ok(place) = self.memory.resolve(address, into.len(), false) else {
            return false;
        };
        self.reads.note(place.identity());
        // SAFETY: the range is in the map of memory, which drops it only when no work is pending.
        unsafe { place.read(into) };
        true
    }

    fn write(&mut self, address: u64, from: &[u8]) -> bool {
        let Ok(place) = self.memory.resolve(address, from.len(), true) else {
            return false;
        };
        self.writes.note(place.identity());
        // SAFETY: as above.
        unsafe { place.write(from) };
        true
    }
}

/// The version that PTX text states.
fn stated_version(ptx: &str) -> Option<(u32, u32)> {
    let line = ptx
        .lines()
        .find_map(|line| line.trim().strip_prefix(".version"))?;
    let (major, minor) = line.trim().split_once('.')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

/// The newest PTX that a driver takes, by the table of the PTX manual: 7.4 came with CUDA 11.4, 8.5 with 12.5 and 12.6,
/// 8.8 with 12.9, 9.0 with 13.0.
fn newest_ptx(version: i32) -> (u32, u32) {
    let number = u32::try_from(version).unwrap_or(0);
    let (major, minor) = (number / 1000, number % 1000 / 10);
    match (major, minor) {
        (12, 6..) => (8, minor - 1),
        (0..5, _) => (1, 0),
        _ => (major - 4, minor),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drivers_take_the_ptx_of_their_time() {
        let cases = [
            (11_040, (7, 4)),
            (12_050, (8, 5)),
            (12_060, (8, 5)),
            (12_090, (8, 8)),
            (13_000, (9, 0)),
        ];
        for (version, newest) in cases {
            assert_eq!(newest_ptx(version), newest);
        }
        assert_eq!(stated_version("//\n\t.version 8.8\n.target"), Some((8, 8)));
        assert_eq!(stated_version(".target sm_80"), None);
    }
}
