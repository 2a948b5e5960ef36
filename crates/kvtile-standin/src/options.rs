//! What a stand-in pretends to be.

use crate::kernel::KernelEngine;
use std::fmt;
use std::sync::Arc;

/// What a stand-in pretends to be, and the seed of its order.
#[derive(Clone)]
pub struct StandinOptions {
    /// The seed: with the same seed and the same calls, everything happens in the same order.
    pub seed: u64,
    /// The version of the driver, as 1000 * major + 10 * minor. Older drivers lack newer functions and refuse newer PTX.
    pub version: i32,
    /// How many devices there are.
    pub devices: u32,
    /// Bytes of memory of a device.
    pub device_bytes: usize,
    /// Bytes of host memory that can be pinned.
    pub pinned_bytes: usize,
    /// Devices reach registered memory at other addresses than the host.
    pub aliases: bool,
    /// What executes kernels; without it no module can be loaded.
    pub kernels: Option<Arc<dyn KernelEngine>>,
}

impl Default for StandinOptions {
    fn default() -> Self {
        StandinOptions {
            seed: 1,
            version: 13_000,
            devices: 1,
            device_bytes: 64 << 20,
            pinned_bytes: 64 << 20,
            aliases: false,
            kernels: None,
        }
    }
}

impl StandinOptions {
    /// The defaults with a seed: a driver of version 13.0 with one device of 64 MiB.
    #[must_use]
    pub fn seeded(seed: u64) -> StandinOptions {
        StandinOptions {
            seed,
            ..StandinOptions::default()
        }
    }
}

impl fmt::Debug for StandinOptions {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("StandinOptions")
            .field("seed", &self.seed)
            .field("version", &self.version)
            .field("devices", &self.devices)
            .field("device_bytes", &self.device_bytes)
            .field("pinned_bytes", &self.pinned_bytes)
            .field("aliases", &self.aliases)
            .field("has_kernels", &self.kernels.is_some())
            .finish()
    }
}
