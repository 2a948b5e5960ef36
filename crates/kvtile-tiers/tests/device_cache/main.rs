//! The scenarios of the cache's own tests, over an engine in memory of a device under the stand-in driver: the same files,
//! with another keeper. Not run on hardware.

#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests")]

mod keeper;

#[path = "../cache/bounds.rs"]
mod bounds;
#[path = "../cache/closing.rs"]
mod closing;
#[path = "../cache/common.rs"]
mod common;
#[path = "../cache/crash.rs"]
mod crash;
#[path = "../cache/flow.rs"]
mod flow;
#[path = "../cache/simulation.rs"]
mod simulation;
