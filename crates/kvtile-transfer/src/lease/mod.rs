//! Leases: which layers of which blocks are held for reading or writing. They make an execution
//! sound.
//!
//! ```text
//! manager   options, completions, the public surface
//!    │
//! lease     ledger ─► BlockLease, LeasedTransfer           proves that an execution is sound
//!    │
//! execute   plans, lanes, bytes                            independent of leases and handles
//! ```
//!
//! | file | what it is |
//! | --- | --- |
//! | `ledger` | registered layouts, and which lease holds which layers of their blocks |
//! | `layers` | the layers of a block that a lease holds |
//! | `extent`, `spans` | the byte ranges of blocks, to compare layouts over the same memory |
//! | `pairs` | the block pairs of a transfer |
//! | `block` | block leases, and safe access to the bytes of leased blocks |
//! | `transfer` | the plans of a transfer with its leases and its lane |
//! | `routes` | a cache of what transfers between two layouts share |
//! | `scratch` | copies of single blocks in canonical order |
//!
//! The unsafe code here relies on leases: nothing else touches the bytes of a slice or a plan.
//! `execute` moves the bytes.

mod block;
mod extent;
mod layers;
mod ledger;
mod pairs;
mod routes;
mod scratch;
mod spans;
mod transfer;

use std::{fmt, ops::Deref, sync::Arc};

pub use block::{BlockLease, LeaseMode};
pub(crate) use ledger::LeaseLedger;
pub(crate) use pairs::{SideBlockIds, TransferPairs};
pub(crate) use routes::RouteKey;
pub(crate) use scratch::BlockScratch;
pub(crate) use transfer::{PlannedTransfer, TransferRoute, TransferTerms};

use crate::sync::{Mutex, MutexGuard};

/// A layout that is registered with a manager. Handles are never reused: a stale handle is refused
/// and never refers to another layout.
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

pub(crate) type SharedLedger = Arc<Mutex<LeaseLedger>>;

pub(crate) fn lock(ledger: &Mutex<LeaseLedger>) -> MutexGuard<'_, LeaseLedger> {
    // The ledger changes only after its checks have passed, and the changes do not panic.
    ledger.lock()
}

/// The ledger of a lease: borrowed by a transfer that runs on the caller's thread, shared by one in
/// flight.
pub(crate) enum LedgerHandle<'a> {
    Borrowed(&'a Mutex<LeaseLedger>),
    Shared(SharedLedger),
}

impl Deref for LedgerHandle<'_> {
    type Target = Mutex<LeaseLedger>;

    fn deref(&self) -> &Mutex<LeaseLedger> {
        match self {
            LedgerHandle::Borrowed(ledger) => ledger,
            LedgerHandle::Shared(ledger) => ledger,
        }
    }
}
