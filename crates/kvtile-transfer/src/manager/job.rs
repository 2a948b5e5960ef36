//! One transfer, from its start to its end.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    time::Instant,
};

use kvtile_layout::CopyPlan;

use super::completion::{Shared, TransferReport};
use crate::{error::TransferError, execute::LeasedTransfer};

/// A transfer that was checked, planned and leased. However it goes, its completion learns of it.
pub(super) struct Job {
    transfer: LeasedTransfer,
    verify: bool,
    ending: Ending,
}

/// Tells the completion that the transfer panicked, unless it was told something else before.
struct Ending(Arc<Shared>);

impl Drop for Ending {
    fn drop(&mut self) {
        self.0.finish(Err(TransferError::Panicked));
    }
}

impl Job {
    pub(super) fn new(transfer: LeasedTransfer, verify: bool, shared: Arc<Shared>) -> Job {
        Job {
            transfer,
            verify,
            ending: Ending(shared),
        }
    }

    pub(super) fn bytes(&self) -> u64 {
        self.transfer.plans().iter().map(CopyPlan::bytes).sum()
    }

    /// Whether both sides are in memory.
    pub(super) fn is_memory(&self) -> bool {
        self.transfer.is_memory()
    }

    /// Moves the bytes, gives the leases back, and then tells the completion.
    pub(super) fn run(mut self) {
        let outcome = catch_unwind(AssertUnwindSafe(|| self.execute()));
        let Job {
            transfer, ending, ..
        } = self;
        drop(transfer);
        ending
            .0
            .finish(outcome.unwrap_or(Err(TransferError::Panicked)));
    }

    fn execute(&mut self) -> Result<TransferReport, TransferError> {
        let start = Instant::now();
        let by_layer = self.transfer.plans().len() == self.transfer.layers();
        // What is still to be verified is not done.
        let early = by_layer && !self.verify;
        let shared = &self.ending.0;
        self.transfer.run(|| {
            if early {
                shared.layer_done();
            }
        })?;
        if self.verify {
            self.transfer.compare()?;
        }
        Ok(TransferReport {
            bytes: self.bytes(),
            runs: self.transfer.plans().iter().map(CopyPlan::runs).sum(),
            elapsed: start.elapsed(),
            verified: self.verify,
        })
    }
}
