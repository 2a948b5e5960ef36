//! One transfer, from its start to its end.

use std::{
    ops::Deref,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    time::Instant,
};

use super::completion::{End, TransferReport};
use crate::{completion::Completer, error::TransferError, execute::LeasedTransfer};

/// What a transfer needs of its manager: borrowed while it runs at once, shared while it waits its
/// turn.
pub(crate) enum Held<'a, T> {
    Borrowed(&'a T),
    Shared(Arc<T>),
}

impl<T> Deref for Held<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        match self {
            Held::Borrowed(value) => value,
            Held::Shared(value) => value,
        }
    }
}

/// Moves the bytes and gives the leases back. `layer_done` is called for every layer that is at its
/// destination before the end.
pub(super) fn run(
    mut transfer: LeasedTransfer<'_>,
    verify: bool,
    layer_done: impl FnMut(),
) -> Result<TransferReport, TransferError> {
    let outcome = catch_unwind(AssertUnwindSafe(|| {
        execute(&mut transfer, verify, layer_done)
    }));
    drop(transfer);
    outcome.unwrap_or(Err(TransferError::Panicked))
}

fn execute(
    transfer: &mut LeasedTransfer<'_>,
    verify: bool,
    mut layer_done: impl FnMut(),
) -> Result<TransferReport, TransferError> {
    let start = Instant::now();
    // What is still to be verified is not done.
    let early = transfer.is_by_layer() && !verify;
    transfer.run(|| {
        if early {
            layer_done();
        }
    })?;
    if verify {
        transfer.compare()?;
    }
    Ok(TransferReport {
        bytes: transfer.bytes(),
        runs: transfer.runs(),
        elapsed: start.elapsed(),
        verified: verify,
    })
}

/// A leased transfer that waits its turn. However it goes, its completion learns of it.
pub(super) struct Job {
    transfer: LeasedTransfer<'static>,
    verify: bool,
    ending: Ending,
}

/// Tells the completion that the transfer panicked, unless it was told something else before.
struct Ending(Completer<End>);

impl Drop for Ending {
    fn drop(&mut self) {
        self.0.finish(Err(TransferError::Panicked));
    }
}

impl Job {
    pub(super) fn new(
        transfer: LeasedTransfer<'static>,
        verify: bool,
        completer: Completer<End>,
    ) -> Job {
        Job {
            transfer,
            verify,
            ending: Ending(completer),
        }
    }

    /// Moves the bytes, gives the leases back, and then tells the completion.
    pub(super) fn run(self) {
        let ending = self.ending;
        let mut layer = 0;
        let outcome = run(self.transfer, self.verify, || {
            ending.0.layer_came(layer, 1);
            layer += 1;
        });
        ending.0.finish(outcome);
    }
}
