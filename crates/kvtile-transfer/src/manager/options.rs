//! The options of a transfer.

use kvtile_device::{DeviceMark, DeviceQueue};
use kvtile_layout::RangePair;

use crate::{error::TransferError, execute::DeviceRoute};

/// Settings of one transfer. The default copies whole blocks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TransferOptions {
    pub(super) layers: Option<RangePair>,
    pub(super) tokens: Option<RangePair>,
    pub(super) heads: Option<RangePair>,
    pub(super) verify: bool,
    pub(super) layer_by_layer: Option<bool>,
    pub(super) read_next: bool,
    pub(super) after: Vec<DeviceWork>,
    pub(super) route: Option<DeviceRoute>,
}

/// Work of a device that comes before a transfer.
#[derive(Clone, Debug)]
pub(super) enum DeviceWork {
    /// All that a mark is behind.
    Mark(DeviceMark),
    /// All that is in a queue when the transfer starts.
    Queue(DeviceQueue),
}

impl DeviceWork {
    /// A mark behind the work, as of now.
    pub(super) fn mark(&self) -> Result<DeviceMark, TransferError> {
        match self {
            DeviceWork::Mark(mark) => Ok(mark.clone()),
            DeviceWork::Queue(queue) => Ok(queue.record()?),
        }
    }
}

impl PartialEq for DeviceWork {
    fn eq(&self, other: &DeviceWork) -> bool {
        match (self, other) {
            (DeviceWork::Mark(one), DeviceWork::Mark(other)) => one.as_raw() == other.as_raw(),
            (DeviceWork::Queue(one), DeviceWork::Queue(other)) => one.as_raw() == other.as_raw(),
            _ => false,
        }
    }
}

impl Eq for DeviceWork {}

impl TransferOptions {
    /// Whole blocks, without verification.
    #[must_use]
    pub fn new() -> TransferOptions {
        TransferOptions::default()
    }

    /// Copies only these layers, numbered in each layout. The transfer leases only these layers, so
    /// transfers of different layers of a block may run concurrently.
    #[must_use]
    pub fn layers(mut self, layers: RangePair) -> TransferOptions {
        self.layers = Some(layers);
        self
    }

    /// Copies only these tokens of every block.
    #[must_use]
    pub fn tokens(mut self, tokens: RangePair) -> TransferOptions {
        self.tokens = Some(tokens);
        self
    }

    /// Copies only these heads, numbered in each layout: source heads 0..4 may be copied to heads
    /// 4..8.
    #[must_use]
    pub fn heads(mut self, heads: RangePair) -> TransferOptions {
        self.heads = Some(heads);
        self
    }

    /// Compares destination and source after the copy.
    #[must_use]
    pub fn verify(mut self, verify: bool) -> TransferOptions {
        self.verify = verify;
        self
    }

    /// A hint that the destination is read at once. The copy then keeps it in the CPU caches, if it
    /// fits half of the last-level cache. Without the hint, a copy larger than a core's level-2
    /// cache uses streaming stores, unless both layouts together fit half of the last-level cache.
    /// Streaming is faster and does not evict other data from the caches.
    #[must_use]
    pub fn read_next(mut self, read_next: bool) -> TransferOptions {
        self.read_next = read_next;
        self
    }

    /// Completes one layer after the other, so that
    /// [`wait_layer`](crate::TransferCompletion::wait_layer) returns early. By default this is on
    /// where it costs nothing: the destination is memory with one region per layer, as in engine
    /// caches. A source in files must have one region per layer too.
    #[must_use]
    pub fn layer_by_layer(mut self, layer_by_layer: bool) -> TransferOptions {
        self.layer_by_layer = Some(layer_by_layer);
        self
    }

    /// Reads and writes memory of a device only after the work before `mark`. A device must take part in the transfer.
    /// May be given several times.
    #[must_use]
    pub fn after(mut self, mark: DeviceMark) -> TransferOptions {
        self.after.push(DeviceWork::Mark(mark));
        self
    }

    /// As [`after`](Self::after), for all work that is in `queue`, such as an engine's stream, when the transfer starts.
    #[must_use]
    pub fn after_queue(mut self, queue: DeviceQueue) -> TransferOptions {
        self.after.push(DeviceWork::Queue(queue));
        self
    }

    /// The way that a device prefers, in place of the one with the least estimated time. All ways copy the same. Where a
    /// transfer has no such way ([`DeviceRoute`]), the copy engine copies; transfers without a device ignore it.
    #[must_use]
    pub fn route(mut self, route: DeviceRoute) -> TransferOptions {
        self.route = Some(route);
        self
    }
}
