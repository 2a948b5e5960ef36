//! The scenarios of the tests of the cache over groups, over a cache that is connected to a daemon: the same
//! files, with another keeper.
//!
//! Not here, because they are about the process that has the tiers:
//!
//! | module of `kvtile-tiers/tests/groups` | what it tests |
//! | --- | --- |
//! | `crash` | kills the process of the cache; `clients` here kills clients and daemons, `stopped` stops clients |
//! | `trace` | pools of several sizes |

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "tests"
)]

mod clients;
mod hostile;
mod keeper;
mod stopped;

#[path = "../../../kvtile-tiers/tests/groups/common.rs"]
mod common;
#[path = "../../../kvtile-tiers/tests/groups/draft.rs"]
mod draft;
#[path = "../../../kvtile-tiers/tests/groups/flow.rs"]
mod flow;
#[path = "../../../kvtile-tiers/tests/groups/refusals.rs"]
mod refusals;
#[path = "../../../kvtile-tiers/tests/groups/restart.rs"]
mod restart;
#[path = "../../../kvtile-tiers/tests/groups/simulation.rs"]
mod simulation;
#[path = "../../../kvtile-tiers/tests/groups/whole.rs"]
mod whole;
