//! What can go wrong with keys, sequences, pools and events.

use crate::events::Lagged;
use thiserror::Error;

/// Why a request to a pool, a sequence or a subscriber was refused. Every message names the values
/// and what to do.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum BlocksError {
    /// There is no memory for an event log of this length.
    #[error(
        "no memory for a log of {capacity} events; a few thousand are enough for a reader that \
         polls often"
    )]
    EventLogTooLarge {
        /// The events that it should remember.
        capacity: usize,
    },
    /// A subscriber of events was too slow.
    #[error(transparent)]
    Lagged(#[from] Lagged),
}
