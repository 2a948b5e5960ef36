//! The shared tier over its stores: the conformance suite of tiers, and the guarantees above every
//! store.

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    reason = "tests"
)]

mod caches;
mod compressed;
mod conformance;
mod faults;
mod flow;
mod groups;
#[path = "../../../kvtile-tiers/tests/parts/model.rs"]
mod model;
mod parts;
mod processes;
mod stores;
mod survey;
