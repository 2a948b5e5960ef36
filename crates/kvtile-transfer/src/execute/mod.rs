//! Executing plans: the only place in this crate that touches bytes, and its only unsafe code.
//!
//! | file | what it moves |
//! | --- | --- |
//! | `bound` | nothing: binds a layout to its regions and checks every bound |
//! | `executor` | nothing: decides on stores, kernels and threads |
//! | `program` | nothing: what copies a class of pairs, made once and kept with its nests |
//! | `copy` | memory to memory: programs bound to pairs, cells, chunks, threads |
//! | `nest` | nothing: which kernel a nest runs, and the loops around it |
//! | `pipeline` | the steps of a kernel, with what comes next asked for in advance |
//! | `kernel` | runs, transposes and gathers, for each level of vector instructions |
//! | `pool` | nothing: the threads that share a copy |
//! | `place` | nests between regions and buffers |
//! | `file` | memory to file, file to memory, file to file, through staging |
//! | `access` | nothing: makes slices of bytes that the caller may touch |
//! | `lease` | nothing: the guard of leased blocks, and safe access to their bytes |
//! | `transfer` | a selection, with the leases that make it sound |
//! | `scratch` | single blocks to and from canonical order |
//! | `space` | nothing: says which bytes a region is |
//!
//! Executors only execute plans. What makes them sound (the plan was made for these two layouts,
//! its blocks are leased, source and destination are apart) is gathered in `transfer` and
//! `scratch`; outside this folder there is nothing unsafe to call.

mod access;
mod bound;
mod copy;
mod executor;
mod file;
mod kernel;
mod lease;
mod nest;
mod pipeline;
mod place;
mod pool;
mod program;
mod scratch;
mod space;
#[cfg(test)]
mod tests;
mod transfer;

use kvtile_layout::CopyPlan;

pub(crate) use bound::{Backing, BoundLayout};
pub(crate) use executor::{Executor, Hints};
pub use file::{FileBatch, FileIo, FileRead, FileWay, FileWrite};
pub(crate) use lease::stored_spans;
pub use lease::{BlockLease, LeaseMode};
pub(crate) use scratch::Scratch;
pub(crate) use space::Space;
pub(crate) use transfer::{LeasedTransfer, Planned, Route};

use crate::error::TransferError;

/// Moves the bytes of `plan`.
///
/// # Safety
/// `plan` was made from the layouts that `source` and `destination` bind. For the whole call nobody
/// else writes the source units or reads or writes the destination units of the plan, and no source
/// byte is a destination byte.
unsafe fn execute(
    plan: &CopyPlan,
    (source, destination): (&BoundLayout, &BoundLayout),
    executor: &Executor,
    hints: Hints,
) -> Result<(), TransferError> {
    match (source.backing(), destination.backing()) {
        (Backing::Memory(_), Backing::Memory(_)) => {
            let sides = (source, destination);
            let manner = executor.manner(plan, sides, hints);
            let share = executor.share(plan);
            // SAFETY: passed on to the caller.
            unsafe { copy::copy_plan(plan, sides, manner, share) }
        }
        _ => {
            // SAFETY: passed on to the caller.
            unsafe { file::copy_plan(plan, source, destination) }
        }
    }
}
