//! Every wait for work of a device, by name.
//!
//! Lanes, reapers and completions wait through these names alone: a lint forbids the waiting calls of `kvtile-device` in
//! the rest of the crate (`clippy.toml`). The crate's own tests leave out one name at a time, and the checker of the
//! stand-in driver must complain (`manager/tests/device_waits.rs`); a build without tests has no way to leave one out.

use kvtile_device::{DeviceError, DeviceMark, DeviceQueue, SourceOrder};

/// Declares the names, and their list for the tests.
macro_rules! device_waits {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// A wait for work of a device. Each name is used at one place.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(crate) enum DeviceWait {
            $($(#[$doc])* $name,)*
        }

        #[cfg(test)]
        #[cfg(not(loom))]
        impl DeviceWait {
            /// All of them.
            pub(crate) const ALL: &[DeviceWait] = &[$(DeviceWait::$name,)*];
        }
    };
}

device_waits! {
    /// The host waits for the work before a transfer whose last step is on the host.
    WorkBeforeHost,
    /// The queue of a direction waits for the work before a transfer.
    WorkBeforeQueue,
    /// Sources are read behind the work before a transfer, not from the call on.
    SourceBehindWork,
    /// Packed memory is read behind the kernel that fills it, not from the call on.
    PackedBehindKernel,
    /// The host waits for the copies of a transfer before it compares both sides.
    CopiesCompared,
    /// A slot of staging memory waits for the work of its last user.
    SlotReused,
    /// The host waits for bytes of a device in a slot, for digests and comparisons.
    SlotRead,
    /// The host waits for bytes of a device in a slot, which it then copies or writes.
    SlotBounced,
    /// The slot of a copy without a mark waits until its queue is idle.
    SlotUnmarked,
    /// Memory of a queue waits until the queue is idle before larger memory replaces it.
    BufferReplaced,
    /// The leases of a flight wait for the mark behind its last copy.
    FlightLanded,
    /// The leases of a flight that failed wait until its queue is idle.
    FlightFailed,
    /// A transfer that fails on the caller's thread waits until its queue is idle.
    CarryFailed,
    /// A stream waits for a layer.
    LayerOnStream,
}

#[expect(
    clippy::disallowed_methods,
    reason = "the one place that waits for devices"
)]
impl DeviceWait {
    /// The host waits until `mark` is passed.
    pub(crate) fn until_passed(self, mark: &DeviceMark) -> Result<(), DeviceError> {
        match self.is_left_out() {
            true => Ok(()),
            false => mark.wait(),
        }
    }

    /// The host waits until all work of `queue` has ended.
    pub(crate) fn until_idle(self, queue: &DeviceQueue) -> Result<(), DeviceError> {
        match self.is_left_out() {
            true => Ok(()),
            false => queue.synchronize(),
        }
    }

    /// What is enqueued on `queue` from now on waits until `mark` is passed.
    pub(crate) fn on_queue(
        self,
        queue: &DeviceQueue,
        mark: &DeviceMark,
    ) -> Result<(), DeviceError> {
        match self.is_left_out() {
            true => Ok(()),
            false => queue.wait(mark),
        }
    }

    /// The order of copies that read their sources in the order of the queue.
    pub(crate) fn source_order(self) -> SourceOrder {
        match self.is_left_out() {
            true => SourceOrder::Any,
            false => SourceOrder::Queue,
        }
    }

    #[cfg(test)]
    #[cfg(not(loom))]
    fn is_left_out(self) -> bool {
        *left_out::LEFT_OUT.lock() == Some(self)
    }

    #[cfg(any(not(test), loom))]
    #[expect(clippy::unused_self, reason = "tests leave out one of them")]
    const fn is_left_out(self) -> bool {
        false
    }
}

/// The host reads or writes memory that devices reach: the checker of the tests cannot see it otherwise.
#[cfg(test)]
#[cfg(not(loom))]
pub(super) fn note_host_access(address: u64, bytes: usize, is_write: bool) {
    kvtile_standin::note_host_access(address, bytes, is_write, "the host");
}

/// Unit tests report an access of the host to the checker of the stand-in; other builds do nothing.
#[cfg(any(not(test), loom))]
pub(super) const fn note_host_access(_: u64, _: usize, _: bool) {}

#[cfg(test)]
#[cfg(not(loom))]
pub(crate) mod left_out {
    //! The wait that tests leave out.

    use super::DeviceWait;
    use parking_lot::Mutex;

    pub(super) static LEFT_OUT: Mutex<Option<DeviceWait>> = Mutex::new(None);

    /// Leaves out a wait of this process until the drop. One test at a time has one, as it holds the stand-in driver.
    pub(crate) struct LeftOutWait(());

    impl LeftOutWait {
        pub(crate) fn of(wait: DeviceWait) -> LeftOutWait {
            *LEFT_OUT.lock() = Some(wait);
            LeftOutWait(())
        }
    }

    impl Drop for LeftOutWait {
        fn drop(&mut self) {
            *LEFT_OUT.lock() = None;
        }
    }
}
