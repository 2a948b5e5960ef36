//! Execution of plans: the lanes and their parts. All unsafe code of this crate is here and in
//! `lease`.
//!
//! | file | what it is |
//! | --- | --- |
//! | `lane` | the lane trait, and the choice of the lane between two kinds of memory |
//! | `lane_queue` | the queue and the threads of a lane |
//! | `flight` | a transfer in progress, from its start to its end |
//! | `memory` | the lane between memories |
//! | `file` | the lane from and to files, through staging memory |
//! | `device` | the lane from and to memory of devices, by their copy engines and kernels |
//! | `bound` | binds a layout to its regions and checks every bound |
//! | `nest` | chooses the kernel of a nest and the loops around it |
//! | `pipeline` | the steps of a kernel, with prefetches of the next ones |
//! | `kernel` | runs, transposes and gathers, for each level of vector instructions |
//! | `place` | nests between regions and buffers |
//! | `access` | slices of bytes that the caller may access |
//! | `space` | identifies the address space of a region |
//!
//! Lanes only execute plans. Their execution is sound because the plan was made for these two
//! layouts, its blocks are leased, and source and destination are disjoint. `TransferCargo` requires these
//! guarantees, and `lease` provides them. Code here does not know leases, handles or managers.

pub(crate) mod access;
mod bound;
mod device;
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
pub use device::DeviceRoute;
#[cfg(test)]
#[cfg(not(loom))]
pub(crate) use device::LeftOutWait;
pub(crate) use device::{DeviceWait, LayerMarks};
pub use file::{FileBatch, FileIo, FileRead, FileWay, FileWrite};
pub use flight::TransferReport;
pub(crate) use flight::{TransferCargo, TransferFlight, TransferResult, carry};
#[cfg(test)]
pub(crate) use lane::{Lane, all as all_lanes};
pub(crate) use lane::{LaneSides, LaneThreads, Lanes, QueuedLane, TransferHints, one_thread_lane};
pub(crate) use memory::usual_copy_threads;
pub(crate) use space::AddressSpace;
