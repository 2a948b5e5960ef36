//! What can go wrong with keys, sequences, pools and events.

use thiserror::Error;

/// Why a request to a pool, a sequence or a subscriber was refused. Every message names the values
/// and what to do.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum BlocksError {}
