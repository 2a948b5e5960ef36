//! The part of ZMTP 3.0 that the sockets need, over TCP, with the NULL mechanism (RFC 23).
//!
//! ```text
//! greeting:  ff 00×8 7f | 3 0 | "NULL" padded to 20 | as-server 0 | 0×31
//! frame:     flags (1 more, 2 long, 4 command) | length, 1 or 8 bytes | body
//! READY:     5 "READY" | name length, name, value length (4 bytes), value | …
//! ```
//!
//! A subscription is a message of one frame: 1 and the beginning of a topic; 0 ends it.

mod connection;
mod endpoint;

pub(crate) use connection::{Connection, SocketType};
pub(crate) use endpoint::Endpoint;
