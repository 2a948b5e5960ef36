//! Blocks that do not depend on how many ranks wrote them.
#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    reason = "tests"
)]

mod common;
mod conformance;
mod gated;
mod misses;
mod model;
mod old;
mod random;
mod ranks;
