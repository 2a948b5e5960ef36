//! The server over real caches: its pages, and clients that misbehave.

mod caches;
mod client;
mod documents;
mod hostile;
mod pages;
mod parser;
