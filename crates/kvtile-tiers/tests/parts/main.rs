//! Blocks that do not depend on how many ranks wrote them.
#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    reason = "tests"
)]

mod common;
mod conformance;
mod misses;
mod model;
mod random;
mod ranks;
