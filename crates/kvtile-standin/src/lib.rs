//! A stand-in for the CUDA driver, for tests on machines without a device. It is a dev-dependency only.
//!
//! It fills the table of [`kvtile_device::DriverTable`] with functions that behave as the driver's are documented, and
//! makes visible what a real device hides most of the time:
//!
//! - **Nothing is done when a call returns.** Work waits until the scheduler picks it: at random, by a seed, among all
//!   that may run. The same seed and the same calls give the same order.
//! - **A CPU that touches device memory gets SIGSEGV**: device addresses are mapped without any access.
//! - **Copies of a batch run in any order, in two halves**, and read their sources early where they may.
//! - **The order checker** names two accesses to the same bytes that no wait has ordered, even where they happened to
//!   run in the intended order ([`Complaint::Race`]), memory that was freed while it was in use, and copies of memory
//!   that is not pinned.
//! - **Each function fails when a test plans it** ([`Standin::fail`]), and what no call releases is counted
//!   ([`StandinLeaks`]).
//!
//! It does not show the speed of anything, how PCIe or the memory of a device behave, or faults of real drivers.
//! Streams do not belong to threads here, so races among the threads of a host are left to other tools. Kernels are
//! executed by a [`kernel::KernelEngine`]: [`PtxEngine`] interprets their text.

mod fake;
pub mod kernel;
mod options;
mod ptx;
mod world;

pub use options::StandinOptions;
pub use ptx::PtxEngine;
pub use world::Complaint;

use kvtile_device::{DeviceError, Driver, DriverTable};
use parking_lot::{Mutex, MutexGuard};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use world::World;

/// A process has one driver, so one stand-in lives at a time.
static ALONE: Mutex<()> = Mutex::new(());

/// The driver of this process until the drop. Tests that start one wait for each other.
///
/// What was made with the driver must be dropped before; later calls return `CUDA_ERROR_DEINITIALIZED`.
pub struct Standin {
    version: i32,
    _alone: MutexGuard<'static, ()>,
}

/// What is left of what was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct StandinLeaks {
    /// References to primary contexts.
    pub contexts: usize,
    /// Streams.
    pub streams: usize,
    /// Events.
    pub events: usize,
    /// Modules.
    pub modules: usize,
    /// Allocations of device memory.
    pub device_memory: usize,
    /// Allocations of pinned memory.
    pub pinned_memory: usize,
    /// Registrations of host memory.
    pub registrations: usize,
    /// Opened memory of other processes.
    pub opened_memory: usize,
}

impl Standin {
    /// Starts a stand-in. It waits until the one before it is dropped, so a thread that holds one must not start
    /// another.
    #[must_use]
    pub fn start(options: StandinOptions) -> Standin {
        static NUMBER: AtomicU64 = AtomicU64::new(1);
        let alone = ALONE.lock();
        eprintln!("stand-in driver with seed {}", options.seed);
        let version = options.version;
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        fake::replace(Some(World::new(number, options)));
        Standin {
            version,
            _alone: alone,
        }
    }

    /// The table of its functions; newer ones are absent if it pretends to be an older driver.
    #[must_use]
    pub fn table(&self) -> DriverTable {
        let mut table = fake::table();
        if self.version < 13_000 {
            table.copy_batch = None;
        }
        if self.version < 12_080 {
            table.copy_batch_12 = None;
        }
        table
    }

    /// The driver.
    ///
    /// # Errors
    ///
    /// As [`Driver::open`].
    pub fn driver(&self) -> Result<Driver, DeviceError> {
        // SAFETY: the functions behave as the driver's are documented.
        unsafe { Driver::from_table(self.table()) }
    }

    /// The `nth` call of `function` from now on, counted from 1, does nothing and returns `code`. After an error of
    /// [`kvtile_device::cuda::STICKY`] all calls return it.
    pub fn fail(&self, function: &'static str, nth: u64, code: u32) {
        self.act(|world| world.plan_fault(function, nth, code));
    }

    /// How often each function was called.
    #[must_use]
    pub fn calls(&self) -> BTreeMap<&'static str, u64> {
        self.act(|world| world.calls.clone())
    }

    /// What the checker found so far.
    #[must_use]
    pub fn complaints(&self) -> Vec<Complaint> {
        self.act(|world| world.order.complaints.clone())
    }

    /// What is left of what was made.
    #[must_use]
    pub fn leaks(&self) -> StandinLeaks {
        self.act(|world| world.leaks())
    }

    /// How much work has not run.
    #[must_use]
    pub fn pending(&self) -> usize {
        self.act(|world| world.work.len())
    }

    /// Reads memory that devices reach, now, beside pending work; false if there is no such memory.
    #[must_use]
    pub fn peek(&self, address: u64, into: &mut [u8]) -> bool {
        self.act(|world| world.peek(address, into))
    }

    /// Writes memory that devices reach, as [`Standin::peek`].
    #[must_use]
    pub fn poke(&self, address: u64, from: &[u8]) -> bool {
        self.act(|world| world.poke(address, from))
    }

    /// Allocates managed memory on a device, as an engine may; `None` where there is no room. It lives as long as the
    /// stand-in.
    #[must_use]
    pub fn allocate_managed(&self, ordinal: u32, bytes: usize) -> Option<u64> {
        self.act(|world| world.memory.allocate_managed(ordinal, bytes).ok())
    }

    /// Enters an access of the host to pinned or registered memory into the order checker, which cannot see it; false if
    /// there is no such memory.
    #[must_use]
    pub fn host_access(&self, address: u64, bytes: usize, is_write: bool, name: &str) -> bool {
        self.act(|world| world.host_access(address, bytes, is_write, name))
    }

    /// Loses the device: no pending work runs, and all later calls return `code`.
    pub fn lose(&self, code: u32) {
        self.act(|world| world.lose(code));
    }

    fn act<T: Default>(&self, act: impl FnOnce(&mut World) -> T) -> T {
        // There is a world as long as `self` lives.
        fake::with_world(act).unwrap_or_default()
    }
}

/// Enters an access of the host as [`Standin::host_access`], for code under test without a [`Standin`]. Without a
/// stand-in, or where devices do not reach the memory, it does nothing.
pub fn note_host_access(address: u64, bytes: usize, is_write: bool, name: &str) {
    let _known = fake::with_world(|world| world.host_access(address, bytes, is_write, name));
}

impl Drop for Standin {
    fn drop(&mut self) {
        fake::replace(None);
    }
}
