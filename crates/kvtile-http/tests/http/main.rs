//! The server over real caches: its pages, and clients that misbehave.

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "tests"
)]

mod caches;
mod client;
mod documents;
mod hostile;
mod pages;
mod parser;
