//! Redis and Valkey as stores of a shared tier.
//!
//! [`RedisUrl`] names a server, a database and a prefix. [`RedisStore`] is the open store, with a
//! bounded pool of connections.
//!
//! A value is one string. One connection carries one value at a time, because replies of large
//! values one after the other delay each other. Short commands (`EXISTS`, `PEXPIRE`) are pipelined.
//! The bytes of a value go from the socket into the caller's memory without a buffer between.
//!
//! The crate has its own client for the few commands that a store needs, in the protocol RESP2. A
//! general client returns a value as a whole, however long it is, and limits each read of a socket in
//! time, not a call: a server that sends one byte a second would hold a call for ever. Here a
//! [`Deadline`](kvtile_shared::store::Deadline) ends a call, and every length is checked before memory
//! is taken for it.
//!
//! ```no_run
//! use std::{sync::Arc, time::Duration};
//!
//! use kvtile_shared::store::{Deadline, SharedStore};
//! use kvtile_shared_redis::RedisStore;
//!
//! let url = "redis://cache.example:6379/0?prefix=kv".parse()?;
//! let store = RedisStore::open(&url, Deadline::within(Duration::from_secs(5)))?;
//! let store: Arc<dyn SharedStore> = Arc::new(store); // for SharedTier::opener
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

#![forbid(unsafe_code)]

mod connection;
mod facts;
mod failure;
mod pool;
mod reply;
mod socket;
mod store;
mod url;

pub use facts::{RedisFacts, RedisWarning};
pub use store::RedisStore;
pub use url::{RedisAddress, RedisUrl, RedisUrlError};
