//! Blocks that do not depend on how many ranks wrote them.
#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests")]

mod common;
mod conformance;
mod misses;
mod random;
mod ranks;
