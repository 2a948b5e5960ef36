//! The caller's rows: memory that jobs read and fill.

use std::{
    any::Any,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use kvtile_blocks::GroupId;
use kvtile_transfer::{LayoutHandle, TransferManager};
use parking_lot::Mutex;

use super::count::JobCount;
use crate::error::{RequestError, TierError};

/// Memory of the caller that is registered with a block store: one block a row.
///
/// Dropping the last clone releases the memory as soon as no job uses it.
#[derive(Clone, Debug)]
pub struct StoreRows {
    pub(super) parts: Arc<RowsParts>,
}

/// The guard of rows that the caller registered.
pub type RowsGuard = Arc<dyn Any + Send + Sync>;

/// The owner of a layout's registration.
pub(super) enum RowsOwner {
    /// The store registered it.
    Store,
    /// The caller registered it. Its guard is held until the rows are released.
    Caller(Mutex<Option<RowsGuard>>),
}

impl std::fmt::Debug for RowsOwner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            RowsOwner::Store => "Store",
            RowsOwner::Caller(_) => "Caller",
        })
    }
}

#[derive(Debug)]
pub(super) struct RowsParts {
    manager: Arc<TransferManager>,
    owner: RowsOwner,
    /// The number of the store.
    pub(super) store: u64,
    pub(super) handle: LayoutHandle,
    pub(super) group: GroupId,
    pub(super) rows: u64,
    /// Whether a row has the order of a stored block, so that the disk reads straight into it.
    pub(super) is_direct: bool,
    pub(super) jobs: Arc<JobCount>,
    is_released: AtomicBool,
}

impl RowsParts {
    pub(super) fn new(
        (manager, handle): (Arc<TransferManager>, LayoutHandle),
        owner: RowsOwner,
        store: u64,
        (group, rows, is_direct): (GroupId, u64, bool),
    ) -> RowsParts {
        RowsParts {
            manager,
            owner,
            store,
            handle,
            group,
            rows,
            is_direct,
            jobs: Arc::default(),
            is_released: AtomicBool::new(false),
        }
    }

    /// Refuses rows that were released.
    pub(super) fn check(&self) -> Result<(), TierError> {
        match self.is_released.load(Ordering::SeqCst) {
            true => Err(TierError::Request(RequestError::RowsReleased)),
            false => Ok(()),
        }
    }

    /// Drops the caller's memory, or returns its guard. The first call does it.
    fn unregister(&self) -> Result<Option<RowsGuard>, TierError> {
        let is_first = !self.is_released.swap(true, Ordering::SeqCst);
        self.jobs.wait();
        match &self.owner {
            RowsOwner::Store if is_first => self.manager.unregister(self.handle).map(drop)?,
            RowsOwner::Store => {}
            RowsOwner::Caller(guard) => return Ok(guard.lock().take()),
        }
        Ok(None)
    }
}

impl Drop for RowsParts {
    fn drop(&mut self) {
        // Each job holds these parts, so none is left.
        if let Err(error) = self.unregister() {
            log::warn!("rows of a block store are still in use: {error}");
        }
    }
}

impl StoreRows {
    /// Number of rows.
    #[must_use]
    pub fn rows(&self) -> u64 {
        self.parts.rows
    }

    /// The group of their blocks.
    #[must_use]
    pub fn group(&self) -> GroupId {
        self.parts.group
    }

    /// Whether a row has the order of a stored block, so that loads go straight into it. Otherwise
    /// they go through staging memory, which permutes the bytes.
    #[must_use]
    pub fn is_direct(&self) -> bool {
        self.parts.is_direct
    }

    /// Waits until no job uses the rows, and drops the caller's memory. If the caller registered the
    /// layout, it returns the guard instead. Clones refuse further jobs.
    ///
    /// # Errors
    /// The memory is in use by another transfer.
    pub fn release(self) -> Result<Option<RowsGuard>, TierError> {
        self.parts.unregister()
    }
}
