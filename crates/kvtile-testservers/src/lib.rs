//! Real servers for tests, on free ports of the loopback interface.
//!
//! | module | contents |
//! | --- | --- |
//! | [`process`] | a server's process: start, stop, continue, kill, restart |
//! | [`kinds`] | SeaweedFS, moto, Redis and Valkey: their commands, settings and first answers |
//! | [`mount`] | a file system of SeaweedFS, mounted by FUSE |
//! | [`proxy`] | a TCP proxy that delays bytes, or loses those of one direction |
//! | [`port`] | free ports |
//!
//! Every server ends with the value that started it, and with the process that started it, however
//! that ends.

#![forbid(unsafe_code)]

pub mod kinds;
pub mod mount;
pub mod port;
pub mod process;
pub mod proxy;
