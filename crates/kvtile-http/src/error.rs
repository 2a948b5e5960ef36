//! Errors of the server.

use std::{io, net::SocketAddr, sync::Arc};

/// Why a server did not start.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HttpError {
    /// A text that is not an address.
    #[error(
        "{text:?} is not an address to serve HTTP on: {problem}; write 127.0.0.1:PORT for this machine \
         alone, 0.0.0.0:PORT for all, or PORT, with 0 for a free port"
    )]
    Address {
        /// The text.
        text: String,
        /// What is wrong with it.
        problem: String,
    },
    /// An address that the system does not let this process listen on.
    #[error("cannot serve HTTP on {address}: {source}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// The system's error.
        source: Arc<io::Error>,
    },
    /// A thread that did not start.
    #[error("cannot start the thread of the HTTP server: {source}")]
    Thread {
        /// The system's error.
        source: Arc<io::Error>,
    },
}
