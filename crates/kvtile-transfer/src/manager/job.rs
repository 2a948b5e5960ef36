//! One transfer, from its start to its end.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    time::Instant,
};

use kvtile_layout::CopyPlan;

use super::completion::{Shared, TransferReport};
use crate::{error::TransferError, execute::LeasedTransfer};

/// A transfer that was checked, planned and leased.
pub(super) struct Job {
    pub(super) transfer: LeasedTransfer,
    pub(super) verify: bool,
}

impl Job {
    pub(super) fn bytes(&self) -> u64 {
        self.transfer.plans().iter().map(CopyPlan::bytes).sum()
    }

    /// Moves the bytes, gives the leases back, and then tells the completion.
    pub(super) fn run(mut self, shared: &Shared) {
        let outcome = catch_unwind(AssertUnwindSafe(|| self.execute(shared)));
        drop(self);
        shared.finish(outcome.unwrap_or(Err(TransferError::Panicked)));
    }

    fn execute(&mut self, shared: &Shared) -> Result<TransferReport, TransferError> {
        let start = Instant::now();
        let by_layer = self.transfer.plans().len() == self.transfer.layers();
        // What is still to be verified is not done.
        let early = by_layer && !self.verify;
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
