//! Why a daemon does not start, or is not reached.

use std::{io, sync::Arc};

use thiserror::Error;

/// Why a daemon does not start, or is not reached.
#[derive(Clone, Debug, Error)]
#[non_exhaustive]
pub enum DaemonError {
    /// A setting out of range.
    #[error("{setting} {value} is not between {least} and {most}")]
    OutOfRange {
        /// The setting.
        setting: &'static str,
        /// Its value.
        value: u64,
        /// The least value.
        least: u64,
        /// The largest value.
        most: u64,
    },
    /// A tenant has two quotas.
    #[error("tenant {tenant} has two quotas; give one")]
    TwoQuotas {
        /// The tenant.
        tenant: u32,
    },
    /// Another daemon serves the socket.
    #[error("another daemon serves {socket}; stop it, or choose another socket")]
    InUse {
        /// The socket.
        socket: String,
    },
    /// A file that is no socket has the name of the socket. It is unchanged.
    #[error("{socket} exists and is not a socket; choose another path")]
    NotASocket {
        /// The path.
        socket: String,
    },
    /// The system refused an operation on the socket.
    #[error("cannot {operation} {socket}: {source}")]
    Socket {
        /// The operation.
        operation: &'static str,
        /// The socket.
        socket: String,
        /// The system's error.
        source: Arc<io::Error>,
    },
    /// The system refused to start a thread.
    #[error("cannot start a thread for the daemon: {source}")]
    Thread {
        /// The system's error.
        source: Arc<io::Error>,
    },
    /// The daemon sent something else than its status.
    #[error("the daemon at {socket} sent no status: {what}")]
    NoStatus {
        /// The socket.
        socket: String,
        /// What it sent.
        what: String,
    },
}

impl DaemonError {
    pub(crate) fn thread(error: io::Error) -> DaemonError {
        DaemonError::Thread {
            source: Arc::new(error),
        }
    }

    /// An error of an operation on a socket.
    pub(crate) fn socket(
        operation: &'static str,
        socket: &std::path::Path,
    ) -> impl Fn(io::Error) -> DaemonError {
        let socket = socket.display().to_string();
        move |error| DaemonError::Socket {
            operation,
            socket: socket.clone(),
            source: Arc::new(error),
        }
    }
}
