//! The errors of the crate.

use std::io;

/// Why events could not be sent, received or read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WireError {
    /// Bytes that are no batch of events.
    #[error("byte {at} of the batch: {problem}")]
    Batch {
        /// Where.
        at: usize,
        /// The problem.
        problem: &'static str,
    },
    /// An event whose field has a wrong type, or is missing.
    #[error("field {field:?} of {kind}: {problem}")]
    Field {
        /// The kind of event.
        kind: String,
        /// The field.
        field: String,
        /// The problem.
        problem: &'static str,
    },
    /// An address of another form.
    #[error("{endpoint:?} is no endpoint; give tcp://HOST:PORT, to bind also tcp://*:PORT")]
    Endpoint {
        /// The address.
        endpoint: String,
    },
    /// A socket failed.
    #[error("cannot {operation} {endpoint}")]
    Socket {
        /// The operation.
        operation: &'static str,
        /// The address.
        endpoint: String,
        /// The system's error.
        source: io::Error,
    },
    /// The other side does not speak ZMTP 3, or is no socket of the expected type.
    #[error("the peer is no {expected} socket of ZeroMQ: {problem}")]
    Peer {
        /// The expected type.
        expected: &'static str,
        /// The problem.
        problem: String,
    },
    /// A line that is none of a recording.
    #[error("line {line} is none of a recording of events: {problem}")]
    Line {
        /// The line, from 1.
        line: usize,
        /// The problem.
        problem: String,
    },
}
