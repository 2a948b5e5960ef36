//! The program as a user runs it: one module for each command.
#![expect(clippy::unwrap_used, reason = "tests")]

mod bench;
mod cache;
mod cache_convert;
mod cache_shared;
mod doctor;
mod events;
mod groups;
mod inspect;
mod layout;
mod plan;
mod program;
mod replay;
mod replay_nodes;
mod shell;
mod terminal;
mod top;
mod words;
