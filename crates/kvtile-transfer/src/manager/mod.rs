//! The transfer manager: registered layouts, leases, and transfers between them.
//!
//! The manager checks a transfer completely before it writes the first byte, so an error leaves the
//! destination unchanged. Only a device failure during the transfer can leave destination blocks
//! half written; the error reports it.

mod builder;
mod completion;
mod content;
mod options;
#[cfg(test)]
mod tests;

use std::{
    fmt,
    ops::Range,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

pub use builder::TransferManagerBuilder;
pub use completion::{EnqueuedLayer, TransferCompletion};
pub use content::FillPattern;
pub(crate) use content::checksum;
use kvtile_device::DeviceMark;
use kvtile_layout::Selection;
use options::DeviceWork;
pub use options::TransferOptions;

use crate::{
    completion::Completer,
    error::{CopyError, TransferError},
    execute::{Lanes, LayerMarks, TransferFlight},
    lease::{
        BlockLease, LayoutHandle, LeaseLedger, LeaseMode, LedgerHandle, PlannedTransfer, RouteKey,
        SharedLedger, TransferPairs, TransferRoute, TransferTerms, lock,
    },
    physical::PhysicalLayout,
    sync::Mutex,
};

/// Registers layouts and moves blocks between them.
///
/// ```
/// use kvtile_layout::{Word, tradition::LayoutConfig};
/// use kvtile_transfer::{PhysicalLayout, TransferManager, TransferOptions};
///
/// let config = LayoutConfig::builder()
///     .num_blocks(4)
///     .num_layers(2)
///     .outer_dim(2)
///     .page_size(16)
///     .inner_dim(128)
///     .num_heads(4)
///     .build()?;
/// let build = |word: &str| -> Result<PhysicalLayout, Box<dyn std::error::Error>> {
///     let builder = PhysicalLayout::builder().with_config(config.clone());
///     Ok(builder.layout(word.parse::<Word>()?).allocate_system().build()?)
/// };
/// let manager = TransferManager::new();
/// let engine = manager.register(build("L|KBNHC")?)?;
/// let host = manager.register(build("BHLKNC")?)?;
/// let done = manager.execute_transfer(engine, &[0, 1], host, &[2, 3], TransferOptions::new())?;
/// assert_eq!(done.wait()?.bytes, 2 * 2 * 2 * 16 * 128 * 2);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct TransferManager {
    ledger: SharedLedger,
    lanes: Lanes,
}

impl fmt::Debug for TransferManager {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TransferManager").finish_non_exhaustive()
    }
}

impl Default for TransferManager {
    fn default() -> Self {
        TransferManager::new()
    }
}

impl TransferManager {
    /// A manager without layouts. Its threads start with the first transfers that need them.
    #[must_use]
    pub fn new() -> TransferManager {
        TransferManager::builder().build()
    }

    /// A manager over the given lanes.
    fn over(lanes: Lanes) -> TransferManager {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let id = NEXT.fetch_add(1, Ordering::Relaxed);
        TransferManager {
            ledger: Arc::new(Mutex::new(LeaseLedger::new(id))),
            lanes,
        }
    }

    /// Starts a [`TransferManagerBuilder`].
    pub fn builder() -> TransferManagerBuilder {
        TransferManagerBuilder::default()
    }

    /// Registers a layout. It may share memory with other layouts of this manager, leased or not;
    /// leases then conflict byte by byte.
    ///
    /// # Errors
    /// A layout that is already registered; memory of a layout of another manager; leased blocks
    /// over the same memory with too many runs to check for overlap.
    pub fn register(&self, layout: PhysicalLayout) -> Result<LayoutHandle, TransferError> {
        // A refused layout is dropped outside the lock, because freeing its memory may run foreign
        // code.
        let kept = layout.clone();
        let registered = lock(&self.ledger).register(layout);
        drop(kept);
        registered
    }

    /// Unregisters a layout and returns it.
    ///
    /// # Errors
    /// A handle that is not registered; a layout with leased blocks.
    pub fn unregister(&self, handle: LayoutHandle) -> Result<PhysicalLayout, TransferError> {
        lock(&self.ledger).unregister(handle)
    }

    /// The layout of a handle.
    ///
    /// # Errors
    /// A handle that is not registered.
    pub fn layout(&self, handle: LayoutHandle) -> Result<PhysicalLayout, TransferError> {
        lock(&self.ledger).layout(handle).cloned()
    }

    /// Leases blocks, all or none.
    ///
    /// # Errors
    /// A handle that is not registered; a block that is out of range or held by a conflicting
    /// lease.
    pub fn lease(
        &self,
        handle: LayoutHandle,
        block_ids: &[usize],
        mode: LeaseMode,
    ) -> Result<BlockLease, TransferError> {
        let blocks: Vec<u64> = block_ids.iter().map(|&id| id as u64).collect();
        BlockLease::take(&self.ledger, handle, &blocks, None, mode)
    }

    /// Leases some layers of blocks, all or none. Two leases on one block conflict where they have
    /// a layer in common and one of them writes. A transfer of a [range of
    /// layers](TransferOptions::layers) takes such leases.
    ///
    /// Against other layouts over the same memory, such a lease counts for its blocks as a whole.
    ///
    /// # Errors
    /// As for [`TransferManager::lease`]; an empty or out-of-range layer range.
    pub fn lease_layers(
        &self,
        handle: LayoutHandle,
        block_ids: &[usize],
        layers: Range<u64>,
        mode: LeaseMode,
    ) -> Result<BlockLease, TransferError> {
        let blocks: Vec<u64> = block_ids.iter().map(|&id| id as u64).collect();
        BlockLease::take(&self.ledger, handle, &blocks, Some(layers), mode)
    }

    /// Copies block `i` of the source list to block `i` of the destination list.
    ///
    /// A small transfer between memories completes before the call returns. Any other is queued:
    /// transfers between memories, file transfers and transfers with devices have separate queues and never block each
    /// other. While its queue is full ([`queue_capacity`](TransferManagerBuilder::queue_capacity)),
    /// the call blocks. Transfers in flight complete in any order; leases exclude conflicts
    /// ([`file_transfers`](TransferManagerBuilder::file_transfers)).
    ///
    /// # Errors
    /// All errors that are detectable before the copy, and then no byte is written: handles, remote
    /// layouts, lists of different lengths, ids out of range or written twice, shapes that differ,
    /// ranges, blocks in use, a read-only destination, work of a device to wait for where no device takes part. The
    /// completion reports later errors.
    pub fn execute_transfer(
        &self,
        source: LayoutHandle,
        source_block_ids: &[usize],
        destination: LayoutHandle,
        destination_block_ids: &[usize],
        options: TransferOptions,
    ) -> Result<TransferCompletion, TransferError> {
        let route = self.route(RouteKey {
            source,
            destination,
            layers: options.layers,
            heads: options.heads,
        })?;
        let tokens = route.tokens(options.tokens)?;
        let pairs = TransferPairs::blocks(source_block_ids, destination_block_ids, tokens)?;
        self.start(route, pairs, &options)
    }

    /// Copies an arbitrary selection: block pairs with token offsets, which allow pages of
    /// different sizes. Layer and head ranges of `options` take precedence over those of the
    /// selection; only the selection's pairs specify tokens.
    ///
    /// # Errors
    /// As for [`TransferManager::execute_transfer`]; a token range in `options`.
    pub fn execute_selection(
        &self,
        source: LayoutHandle,
        destination: LayoutHandle,
        selection: Selection,
        options: TransferOptions,
    ) -> Result<TransferCompletion, TransferError> {
        if options.tokens.is_some() {
            return Err(TransferError::Copy(CopyError::TokensOfSelection));
        }
        let route = self.route(RouteKey {
            source,
            destination,
            layers: options.layers.or(selection.layers),
            heads: options.heads.or(selection.heads),
        })?;
        let pairs = TransferPairs::Selected(selection.pairs.into());
        self.start(route, pairs, &options)
    }

    /// The route of a transfer, from the cache or new.
    fn route(&self, key: RouteKey) -> Result<Arc<TransferRoute>, TransferError> {
        let mut ledger = lock(&self.ledger);
        if let Some(route) = ledger.routes.find(&key) {
            return Ok(route);
        }
        let from = ledger.layout(key.source)?.clone();
        let to = ledger.layout(key.destination)?.clone();
        drop(ledger);
        let route = Arc::new(TransferRoute::new(key, from, to, &self.lanes)?);
        let mut ledger = lock(&self.ledger);
        // A concurrent call may have unregistered one of them; its handle is never reused.
        if ledger.layout(key.source).is_ok() && ledger.layout(key.destination).is_ok() {
            ledger.routes.keep(key, &route);
        }
        drop(ledger);
        Ok(route)
    }

    /// Plans and leases a transfer, and runs or queues it.
    fn start(
        &self,
        route: Arc<TransferRoute>,
        pairs: TransferPairs<'_>,
        options: &TransferOptions,
    ) -> Result<TransferCompletion, TransferError> {
        let planned = PlannedTransfer::new(route, pairs, options.layer_by_layer)?;
        let layers = planned.layers();
        let terms = TransferTerms {
            verify: options.verify,
            read_next: options.read_next,
            route: options.route,
            after: after_marks(&planned, &options.after)?,
        };
        if planned.is_short() {
            let transfer = planned.lease(LedgerHandle::Borrowed(&self.ledger), terms)?;
            return Ok(TransferCompletion::ended(layers, transfer.fly_here()));
        }
        let lane = Arc::clone(planned.lane());
        lane.open()?;
        let ledger = LedgerHandle::Shared(Arc::clone(&self.ledger));
        let transfer = planned.into_owned().lease(ledger, terms)?;
        let completer = Completer::new(layers, 1);
        let marks = lane.lane().has_marks().then(|| LayerMarks::new(layers));
        let completion = TransferCompletion::pending(&completer, marks.clone());
        lane.start(TransferFlight::new(Box::new(transfer), completer, marks));
        Ok(completion)
    }
}

/// Marks behind the work that comes before a transfer.
fn after_marks(
    planned: &PlannedTransfer<'_>,
    after: &[DeviceWork],
) -> Result<Vec<DeviceMark>, TransferError> {
    if after.is_empty() {
        return Ok(Vec::new());
    }
    planned.check_has_marks()?;
    after.iter().map(DeviceWork::mark).collect()
}

impl Drop for TransferManager {
    /// Waits until every flight has ended.
    fn drop(&mut self) {
        self.lanes.close();
    }
}
