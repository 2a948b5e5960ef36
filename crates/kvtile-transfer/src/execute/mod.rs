//! Executing plans: lanes that move the bytes, and what they need. All unsafe code of this crate is here and
//! in `lease`.
//!
//! | file | what it moves |
//! | --- | --- |
//! | `lane` | nothing: what a lane is, and which one lies between two kinds of memory |
//! | `lane_queue` | flights: the queue and the threads of a lane |
//! | `flight` | nothing: what is moved, from its start to its landing |
//! | `memory` | the lane between memories |
//! | `file` | the lane from and to files, through staging |
//! | `bound` | nothing: binds a layout to its regions and checks every bound |
//! | `nest` | nothing: which kernel a nest runs, and the loops around it |
//! | `pipeline` | the steps of a kernel, with the next reads prefetched |
//! | `kernel` | runs, transposes and gathers, for each level of vector instructions |
//! | `place` | nests between regions and buffers |
//! | `access` | nothing: makes slices of bytes that the caller may touch |
//! | `space` | nothing: says which bytes a region is |
//!
//! Lanes only execute plans. What makes that sound (the plan was made for these two layouts, its blocks are
//! leased, source and destination are apart) is the promise of `Cargo`, which `lease` gives. Nothing here
//! knows leases, handles or managers.

pub(crate) mod access;
mod bound;
mod file;
mod flight;
#[cfg(test)]
#[cfg(not(loom))]
pub(crate) mod gated;
mod kernel;
mod lane;
mod lane_queue;
mod memory;
#[cfg(test)]
#[cfg(loom)]
pub(crate) mod modelled;
mod nest;
mod pipeline;
mod place;
mod space;
#[cfg(test)]
mod tests;

pub(crate) use bound::BoundLayout;
pub use file::{FileBatch, FileIo, FileRead, FileWay, FileWrite};
pub use flight::TransferReport;
pub(crate) use flight::{Cargo, End, Flight, carry};
pub(crate) use lane::{Hints, LaneThreads, Lanes, QueuedLane, Sides, one_thread_lane};
#[cfg(test)]
pub(crate) use lane::{Lane, all as all_lanes};
pub(crate) use memory::usual_copy_threads;
pub(crate) use space::Space;
