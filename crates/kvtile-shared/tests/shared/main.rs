//! The shared tier over its stores: the conformance suite of tiers, and the guarantees above every
//! store.

#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests")]

mod caches;
mod compressed;
mod conformance;
mod faults;
mod flow;
mod groups;
mod processes;
mod stores;
mod survey;
