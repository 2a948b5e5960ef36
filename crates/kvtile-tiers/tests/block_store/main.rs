//! Tests of the block store through its public API, over real memory and a real folder.

#![expect(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod chains;
mod closing;
mod common;
mod damage;
mod flow;
mod follows;
mod groups;
#[path = "../cache/hooked.rs"]
mod hooked;
mod refusals;
mod removal;
mod simulation;
mod slow;
mod threads;
