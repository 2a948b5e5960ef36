//! The transfer manager: registered layouts, leases, and transfers between them.
//!
//! Everything about a transfer is checked before its first byte is written; an error then leaves
//! the destination as it was. Only a failing device (a disk error in the middle) can leave
//! destination blocks half written, and the error says so.

mod completion;
mod content;
mod extent;
mod job;
mod ledger;
mod options;
mod worker;

use std::{
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

pub use completion::{TransferCompletion, TransferReport};
pub use content::FillPattern;
pub(crate) use content::checksum;
use kvtile_layout::{RangePair, Selection};
pub(crate) use ledger::Ticket;
pub use options::TransferOptions;

use self::{completion::Shared, job::Job, ledger::Ledger, worker::Worker};
use crate::{
    error::TransferError,
    execute::{BlockLease, LeaseMode, LeasedTransfer, Side},
    physical::PhysicalLayout,
};

/// Memory transfers up to this size run on the caller's thread: shorter than waking another.
const INLINE_BYTES: u64 = 256 << 10;

/// A layout registered with a manager. Handles are never used again, so that an old one can only
/// be refused, never mean another layout.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LayoutHandle {
    manager: u64,
    layout: u64,
}

impl fmt::Display for LayoutHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.manager, self.layout)
    }
}

pub(crate) type SharedLedger = Arc<Mutex<Ledger>>;

pub(crate) fn lock(ledger: &SharedLedger) -> MutexGuard<'_, Ledger> {
    // The ledger changes only after its checks have passed, and changes do not panic.
    ledger.lock().unwrap_or_else(PoisonError::into_inner)
}

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
    worker: Mutex<Option<Worker>>,
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
    /// A manager without layouts. Its thread starts with the first transfer that needs one.
    #[must_use]
    pub fn new() -> TransferManager {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let id = NEXT.fetch_add(1, Ordering::Relaxed);
        TransferManager {
            ledger: Arc::new(Mutex::new(Ledger::new(id))),
            worker: Mutex::new(None),
        }
    }

    /// Registers a layout.
    ///
    /// # Errors
    /// A layout that is registered already; memory of a layout of another manager, or of one of
    /// this manager whose blocks are leased at the moment.
    pub fn register(&self, layout: PhysicalLayout) -> Result<LayoutHandle, TransferError> {
        // Where it is refused, its memory is given back outside the lock: that may be the code of
        // others.
        let kept = layout.clone();
        let registered = lock(&self.ledger).register(layout);
        drop(kept);
        registered
    }

    /// Gives a layout back.
    ///
    /// # Errors
    /// A handle that is not registered; blocks that are leased.
    pub fn unregister(&self, handle: LayoutHandle) -> Result<PhysicalLayout, TransferError> {
        lock(&self.ledger).unregister(handle)
    }

    /// The layout behind a handle.
    ///
    /// # Errors
    /// A handle that is not registered.
    pub fn layout(&self, handle: LayoutHandle) -> Result<PhysicalLayout, TransferError> {
        lock(&self.ledger).layout(handle).cloned()
    }

    /// Leases blocks, all or none.
    ///
    /// # Errors
    /// A handle that is not registered; a block out of range, or held by somebody else.
    pub fn lease(
        &self,
        handle: LayoutHandle,
        block_ids: &[usize],
        mode: LeaseMode,
    ) -> Result<BlockLease, TransferError> {
        let blocks: Vec<u64> = block_ids.iter().map(|&id| id as u64).collect();
        BlockLease::take(&self.ledger, handle, &blocks, mode)
    }

    /// Copies source block `i` of the list to destination block `i`.
    ///
    /// # Errors
    /// Everything that can be known beforehand, and then no byte is written: handles, remote
    /// layouts, lists of different lengths, ids out of range or written twice, shapes that differ,
    /// ranges, blocks in use, a read-only destination. What fails later comes with the completion.
    pub fn execute_transfer(
        &self,
        source: LayoutHandle,
        source_block_ids: &[usize],
        destination: LayoutHandle,
        destination_block_ids: &[usize],
        options: TransferOptions,
    ) -> Result<TransferCompletion, TransferError> {
        let (from, to) = (self.layout(source)?, self.layout(destination)?);
        let selection = select(
            source_block_ids,
            destination_block_ids,
            (&from, &to),
            options.tokens,
        )?;
        let options = TransferOptions {
            tokens: None,
            ..options
        };
        self.execute_selection(source, destination, selection, options)
    }

    /// Copies an arbitrary selection: block pairs with token offsets, so that pages of different
    /// sizes can exchange. Layer and head ranges of `options` take precedence over those of the
    /// selection; tokens are in the pairs of the selection alone.
    ///
    /// # Errors
    /// As for [`TransferManager::execute_transfer`]; a token range in `options`.
    pub fn execute_selection(
        &self,
        source: LayoutHandle,
        destination: LayoutHandle,
        mut selection: Selection,
        options: TransferOptions,
    ) -> Result<TransferCompletion, TransferError> {
        if options.tokens.is_some() {
            return Err(TransferError::TokensOfSelection);
        }
        let (from, to) = (self.layout(source)?, self.layout(destination)?);
        selection.layers = options.layers.or(selection.layers);
        selection.heads = options.heads.or(selection.heads);
        match (from.logical_fingerprint(), to.logical_fingerprint()) {
            (Some(a), Some(b)) if a != b => {
                return Err(TransferError::LogicalDiffers { from: a, to: b });
            }
            _ => {}
        }
        let side = |handle, layout| Side { handle, layout };
        let transfer = LeasedTransfer::prepare(
            &self.ledger,
            &side(source, &from),
            &side(destination, &to),
            selection,
            options.layer_by_layer,
        )?;
        let shared = Shared::new(transfer.layers());
        let job = Job::new(transfer, options.verify, Arc::clone(&shared));
        let completion = TransferCompletion::new(shared);
        if job.is_memory() && job.bytes() <= INLINE_BYTES {
            job.run();
            return Ok(completion);
        }
        let mut worker = self.worker.lock().unwrap_or_else(PoisonError::into_inner);
        if worker.is_none() {
            *worker = Some(Worker::start()?);
        }
        if let Some(worker) = worker.as_ref() {
            worker.run(Box::new(move || job.run()));
        }
        Ok(completion)
    }
}

/// The pairs of two block lists: whole blocks, or the given tokens of each.
fn select(
    source: &[usize],
    destination: &[usize],
    (from, to): (&PhysicalLayout, &PhysicalLayout),
    tokens: Option<RangePair>,
) -> Result<Selection, TransferError> {
    let ids = |ids: &[usize]| ids.iter().map(|&id| id as u64).collect::<Vec<u64>>();
    let (a, b) = (from.shape().page_size(), to.shape().page_size());
    if tokens.is_none() && a != b {
        return Err(TransferError::PageSizesDiffer {
            source_page_size: a,
            destination_page_size: b,
        });
    }
    let tokens = tokens.unwrap_or(RangePair::same(0, a));
    let mut selection = Selection::blocks(&ids(source), &ids(destination), a)?;
    for pair in &mut selection.pairs {
        pair.source_token = tokens.source;
        pair.destination_token = tokens.destination;
        pair.tokens = tokens.count;
    }
    Ok(selection)
}
