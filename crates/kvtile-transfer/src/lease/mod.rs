//! Leases: which layers of which blocks are held for reading or writing, and what may be executed because of it.
//!
//! ```text
//! manager   options, completions, the public surface
//!    │
//! lease     ledger ─► BlockLease, LeasedTransfer           the proofs that an execution is sound
//!    │
//! execute   plans, lanes, bytes                            knows no lease and no handle
//! ```
//!
//! | file | what it is |
//! | --- | --- |
//! | `ledger` | registered layouts, and which lease holds which layers of their blocks |
//! | `layers` | all layers of a block, or some |
//! | `extent`, `spans` | the bytes of blocks, to compare layouts over one memory |
//! | `pairs` | the block pairs of a transfer |
//! | `block` | leased blocks, and safe access to their bytes |
//! | `transfer` | a selection with its plans, the leases that make it sound, and its lane |
//! | `routes` | what transfers between two layouts share |
//! | `scratch` | single blocks to and from canonical order |
//!
//! The unsafe code here is what leases prove: that nothing else touches the bytes that a slice or a plan
//! reaches. Moving bytes is the business of `execute`.

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
pub(crate) use ledger::Ledger;
pub(crate) use pairs::{Ids, Pairs};
pub(crate) use routes::RouteKey;
pub(crate) use scratch::Scratch;
pub(crate) use transfer::{Planned, Route};

use crate::sync::{Mutex, MutexGuard};

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

pub(crate) fn lock(ledger: &Mutex<Ledger>) -> MutexGuard<'_, Ledger> {
    // The ledger changes only after its checks have passed, and changes do not panic.
    ledger.lock()
}

/// The ledger of a lease: borrowed while a transfer runs at once, shared while it is in flight.
pub(crate) enum Held<'a> {
    Borrowed(&'a Mutex<Ledger>),
    Shared(SharedLedger),
}

impl Deref for Held<'_> {
    type Target = Mutex<Ledger>;

    fn deref(&self) -> &Mutex<Ledger> {
        match self {
            Held::Borrowed(ledger) => ledger,
            Held::Shared(ledger) => ledger,
        }
    }
}
