//! The scenarios of the cache's own tests, over a cache that is connected to a daemon: the same files,
//! with another keeper.
//!
//! Not here, because they are about the process that has the tiers:
//!
//! | module of `kvtile-tiers/tests/cache` | what it tests |
//! | --- | --- |
//! | `crash` | kills the process of the cache; `deaths` of `tests/daemon` kills clients and daemons |
//! | `inside` | settings at opening, the clock of the caller, memory of the process |
//! | `layered`, `layers` | reads by layers, and the parts that a load is cut into |
//! | `leaving` | loads while an eviction of another thread of the process goes on |
//! | `panics` | panics on threads by their names |

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "tests"
)]

mod keeper;

#[path = "../../../kvtile-tiers/tests/cache/bad_tier.rs"]
mod bad_tier;
#[path = "../../../kvtile-tiers/tests/cache/bounds.rs"]
mod bounds;
#[path = "../../../kvtile-tiers/tests/cache/chains.rs"]
mod chains;
#[path = "../../../kvtile-tiers/tests/cache/closing.rs"]
mod closing;
#[path = "../../../kvtile-tiers/tests/cache/common.rs"]
mod common;
#[path = "../../../kvtile-tiers/tests/cache/departures.rs"]
mod departures;
#[path = "../../../kvtile-tiers/tests/cache/durable.rs"]
mod durable;
#[path = "../../../kvtile-tiers/tests/cache/flow.rs"]
mod flow;
#[path = "../../../kvtile-tiers/tests/cache/flushes.rs"]
mod flushes;
#[path = "../../../kvtile-tiers/tests/cache/hooked.rs"]
mod hooked;
#[path = "../../../kvtile-tiers/tests/cache/large.rs"]
mod large;
#[path = "../../../kvtile-tiers/tests/cache/refusals.rs"]
mod refusals;
#[path = "../../../kvtile-tiers/tests/cache/seek.rs"]
mod seek;
#[path = "../../../kvtile-tiers/tests/cache/shapes.rs"]
mod shapes;
#[path = "../../../kvtile-tiers/tests/cache/simulation.rs"]
mod simulation;
#[path = "../../../kvtile-tiers/tests/cache/slow.rs"]
mod slow;
#[path = "../../../kvtile-tiers/tests/cache/spare.rs"]
mod spare;
#[path = "../../../kvtile-tiers/tests/cache/threads.rs"]
mod threads;
