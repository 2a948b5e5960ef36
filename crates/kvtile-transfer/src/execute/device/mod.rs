//! Memory of devices as source or destination: copies that devices execute after the call returns.
//!
//! ```text
//! plan ──runs──► batches ──► queue of a direction ──► mark of each layer
//!                                                        │ waits: an engine's stream, the reaper
//!                                                        ▼
//!                                    reaper ──► layer arrived, leases dropped, completion ended
//! ```
//!
//! | file | what it does |
//! | --- | --- |
//! | `lane` | implements the lane; enqueues flights on its threads |
//! | `sides` | the kinds of memory at both ends: direction, queue, and whether staging is needed |
//! | `engine` | one for each device: a queue and a reaper for each direction, and staging memory |
//! | `route` | chooses between copy engine, kernels and both, by estimated times |
//! | `copies` | the runs of a plan as batches of copies |
//! | `kernels` | the runs of a plan by kernels of the device |
//! | `staged` | kernels that pack or unpack on the device, and few large copies |
//! | `bounce` | files, and memory that is not pinned, through staging memory |
//! | `staging` | bounded pinned memory in slots, reused when their marks are passed |
//! | `reach` | the addresses by which devices reach memory of this process |
//! | `reaper` | waits for marks in order, and lands flights |
//! | `marks` | the marks of a flight's layers, for those who wait for them on a device |
//! | `waits` | every wait for work of a device, by name |
//!
//! Devices copy only from and to pinned memory, so no call copies pageable memory behind the caller's back. A flight
//! keeps its leases until the mark behind its last copy is passed; after an error, until its queue is idle. The
//! code has not been run on hardware.

mod bounce;
mod copies;
mod engine;
mod kernels;
mod lane;
mod marks;
mod reach;
mod reaper;
mod route;
mod sides;
mod staged;
mod staging;
mod waits;

pub(crate) use engine::DeviceEngine;
pub(super) use lane::DeviceLane;
pub(crate) use marks::LayerMarks;
pub(crate) use reach::ReachedMemory;
pub use route::DeviceRoute;
pub(crate) use waits::DeviceWait;
#[cfg(test)]
#[cfg(not(loom))]
pub(crate) use waits::left_out::LeftOutWait;
