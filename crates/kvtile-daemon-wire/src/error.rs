//! Why bytes are no frame.

use std::io;
use thiserror::Error;

/// Why bytes are not a frame of this version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum FrameError {
    /// The payload ends inside a field.
    #[error("the payload ends at byte {have}, and {need} bytes are needed")]
    Short {
        /// Bytes of the payload.
        have: usize,
        /// Bytes that its fields need.
        need: usize,
    },
    /// Bytes after the last field.
    #[error("{extra} bytes follow the last field of the frame")]
    Extra {
        /// How many.
        extra: usize,
    },
    /// A length above its limit.
    #[error("{what}: {value} are more than {most}")]
    TooMany {
        /// What is counted.
        what: &'static str,
        /// How many the peer claims.
        value: u64,
        /// The limit.
        most: u64,
    },
    /// A kind of frame that this version does not have.
    #[error(
        "frame kind {kind} is not one of protocol version {}",
        crate::WIRE_VERSION
    )]
    UnknownKind {
        /// The kind.
        kind: u16,
    },
    /// A byte with a value that its field does not have.
    #[error("{what} has no value {value}")]
    UnknownValue {
        /// The field.
        what: &'static str,
        /// The value.
        value: u64,
    },
    /// A text that is not UTF-8.
    #[error("a text in the frame is not UTF-8")]
    NotText,
}

/// Why no frame was read.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ReadFrameError {
    /// The peer closed the socket between two frames.
    #[error("the peer closed the socket")]
    Closed,
    /// The socket failed, or ended inside a frame.
    #[error("cannot read a frame: {0}")]
    Io(#[from] io::Error),
    /// The bytes are no frame.
    #[error(transparent)]
    Wire(#[from] FrameError),
}
