//! The state of a stand-in: one driver with its devices, memory, streams and work.

mod clock;
mod copies;
mod launch;
mod memory;
mod order;
mod streams;
mod work;

pub(crate) use copies::CopyRequest;
pub(crate) use launch::StandinFunction;
pub(crate) use memory::MemoryPlace;
pub use order::Complaint;
pub(crate) use streams::StandinEvent;
pub(crate) use work::PendingLaunch;

use self::clock::VectorClock;
use self::launch::LoadedText;
use self::memory::MemoryMap;
use self::order::OrderChecker;
use self::streams::StandinStream;
use self::work::WorkList;
use crate::StandinLeaks;
use crate::options::StandinOptions;
use kvtile_device::cuda;
use kvtile_random::SplitMix64;
use std::cell::Cell;
use std::collections::BTreeMap;

/// `CUDA_ERROR_DEINITIALIZED`: there is no stand-in any more.
pub(crate) const DEINITIALIZED: u32 = 4;

/// Handles of contexts: this and the ordinal of the device.
const CONTEXT: usize = 0xC0DE_0000;

/// Functions that need no initialised driver and no working device.
const ALWAYS: [&str; 4] = [
    "cuDriverGetVersion",
    "cuGetErrorName",
    "cuGetErrorString",
    "cuInit",
];

/// Functions that a lost device does not stop.
const WITHOUT_DEVICE: [&str; 4] = [
    "cuCtxGetCurrent",
    "cuCtxSetCurrent",
    "cuDeviceGetCount",
    "cuDeviceGet",
];

thread_local! {
    /// The world and the context that are current in this thread.
    static CURRENT: Cell<(u64, usize)> = const { Cell::new((0, 0)) };
}

/// A function that will fail.
struct PlannedFault {
    function: &'static str,
    /// Calls until then, this one included.
    nth: u64,
    code: u32,
}

/// One driver with its devices.
pub(crate) struct World {
    /// Tells worlds of this process apart.
    number: u64,
    pub(crate) options: StandinOptions,
    numbers: SplitMix64,
    /// Work runs beside a call once in so many calls; 0 is never.
    idleness: u64,
    is_initialised: bool,
    lost: Option<u32>,
    pub(crate) calls: BTreeMap<&'static str, u64>,
    faults: Vec<PlannedFault>,
    /// For each device, how often its primary context is retained.
    pub(crate) contexts: Vec<u32>,
    pub(crate) memory: MemoryMap,
    pub(crate) streams: BTreeMap<u64, StandinStream>,
    pub(crate) events: BTreeMap<usize, StandinEvent>,
    pub(crate) modules: BTreeMap<usize, LoadedText>,
    pub(crate) functions: BTreeMap<usize, StandinFunction>,
    /// Actors with clocks: the host, and two for each stream.
    actors: usize,
    host: VectorClock,
    pub(crate) work: WorkList,
    pub(crate) order: OrderChecker,
    last_handle: usize,
}

impl World {
    pub(crate) fn new(number: u64, options: StandinOptions) -> World {
        let mut numbers = SplitMix64::new(options.seed);
        let idleness = [0, 2, 3, 5, 17].get(numbers.index(5)).copied();
        World {
            number,
            numbers,
            idleness: idleness.unwrap_or(0),
            is_initialised: false,
            lost: None,
            calls: BTreeMap::new(),
            faults: Vec::new(),
            contexts: (0..options.devices).map(|_| 0).collect(),
            memory: MemoryMap::default(),
            streams: BTreeMap::new(),
            events: BTreeMap::new(),
            modules: BTreeMap::new(),
            functions: BTreeMap::new(),
            actors: 1,
            host: VectorClock::default(),
            work: WorkList::default(),
            order: OrderChecker::default(),
            last_handle: 0x1000,
            options,
        }
    }

    /// What every call begins with: counts it, fails it where that is planned, and lets work run beside it.
    pub(crate) fn begin(&mut self, function: &'static str) -> Result<(), u32> {
        *self.calls.entry(function).or_default() += 1;
        let mut failed = None;
        for fault in &mut self.faults {
            if fault.function == function && fault.nth > 0 {
                fault.nth -= 1;
                failed = failed.or((fault.nth == 0).then_some(fault.code));
            }
        }
        if let Some(code) = failed {
            if cuda::STICKY.contains(&code) {
                self.lose(code);
            }
            return Err(code);
        }
        if ALWAYS.contains(&function) {
            return Ok(());
        }
        if !self.is_initialised {
            return Err(cuda::NOT_INITIALIZED);
        }
        while self.numbers.once_in(self.idleness) {
            if !self.run_any() {
                break;
            }
        }
        if WITHOUT_DEVICE.contains(&function) {
            return Ok(());
        }
        self.check_lost()
    }

    pub(crate) fn initialise(&mut self) -> Result<(), u32> {
        self.is_initialised = true;
        if self.contexts.is_empty() {
            return Err(cuda::NO_DEVICE);
        }
        Ok(())
    }

    /// Plans that the `nth` call of a function from now on returns `code`.
    pub(crate) fn plan_fault(&mut self, function: &'static str, nth: u64, code: u32) {
        self.faults.push(PlannedFault {
            function,
            nth,
            code,
        });
    }

    /// Drops the plans that no call has met.
    pub(crate) fn drop_faults(&mut self) {
        self.faults.clear();
    }

    /// The device is lost: no work runs any more, and every call returns `code`.
    pub(crate) fn lose(&mut self, code: u32) {
        self.lost.get_or_insert(code);
        self.work.clear();
    }

    pub(crate) fn check_lost(&self) -> Result<(), u32> {
        self.lost.map_or(Ok(()), Err)
    }

    /// The device of the current context.
    pub(crate) fn current(&self) -> Result<u32, u32> {
        let ordinal = self.ordinal_of(self.current_context());
        ordinal.ok_or(cuda::INVALID_CONTEXT)
    }

    /// The current context of the calling thread, or 0.
    pub(crate) fn current_context(&self) -> usize {
        let (world, context) = CURRENT.get();
        if world == self.number { context } else { 0 }
    }

    pub(crate) fn set_current(&self, context: usize) -> Result<(), u32> {
        if context != 0 && self.ordinal_of(context).is_none() {
            return Err(cuda::INVALID_CONTEXT);
        }
        CURRENT.set((self.number, context));
        Ok(())
    }

    /// The device of a context that is retained.
    fn ordinal_of(&self, context: usize) -> Option<u32> {
        let index = context.checked_sub(CONTEXT)?;
        let is_retained = self.contexts.get(index).is_some_and(|count| *count > 0);
        is_retained.then_some(u32::try_from(index).ok()?)
    }

    pub(crate) fn context_of(ordinal: u32) -> usize {
        CONTEXT + ordinal as usize
    }

    /// What is left of what was made.
    pub(crate) fn leaks(&self) -> StandinLeaks {
        let count = |is: fn(MemoryPlace) -> bool| {
            let known = self.memory.iter().filter(|known| is(known.place));
            known.count()
        };
        StandinLeaks {
            contexts: self.contexts.iter().map(|count| *count as usize).sum(),
            streams: self.created_streams(),
            events: self.events.len(),
            modules: self.modules.len(),
            device_memory: count(|place| matches!(place, MemoryPlace::Device(_))),
            pinned_memory: count(|place| place == MemoryPlace::Pinned),
            registrations: count(|place| place == MemoryPlace::Registered),
            opened_memory: count(|place| matches!(place, MemoryPlace::Opened(_))),
        }
    }

    /// A fresh handle.
    pub(crate) fn handle(&mut self) -> usize {
        self.last_handle += 16;
        self.last_handle
    }

    /// Runs a random piece of work that waits for nothing; false if there is none.
    pub(crate) fn run_any(&mut self) -> bool {
        let Some(work) = self.work.take_any(&mut self.numbers) else {
            return false;
        };
        if let Err(code) = self.run(work) {
            self.lose(code);
        }
        let waiting = self.work.iter().map(|work| &*work.moment.clock);
        self.order.forget(&self.host, waiting);
        true
    }

    /// Runs everything.
    pub(crate) fn run_all(&mut self) {
        while self.run_any() {}
    }

    /// Runs work until `is_done`.
    pub(crate) fn run_until(
        &mut self,
        mut is_done: impl FnMut(&mut World) -> Result<bool, u32>,
    ) -> Result<(), u32> {
        while !is_done(self)? {
            // Work waits only for work that was enqueued before, so some is ready as long as some is pending.
            if !self.run_any() {
                return self.check_lost();
            }
        }
        Ok(())
    }

    /// Ends all work and removes memory; a use that the host does not know to have ended is a complaint.
    pub(crate) fn release(&mut self, start: u64, release: &str) -> Result<(), u32> {
        self.run_all();
        let known = self.memory.remove(start).ok_or(cuda::INVALID_VALUE)?;
        let is_last = !self.memory.iter().any(|other| other.buffer == known.buffer);
        // A lost device ends all work, and every caller knows it.
        if is_last && self.lost.is_none() {
            let name = format!("{release} at {start:#x}");
            self.order.release(&known.identity(), &self.host, &name);
        }
        Ok(())
    }
}
