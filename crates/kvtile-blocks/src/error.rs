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
    /// No policy has this name.
    #[error("there is no eviction policy {name:?}; there are gittins, lru, arc and s3-fifo")]
    UnknownPolicy {
        /// The name.
        name: String,
    },
    /// A subscriber of events was too slow.
    #[error(transparent)]
    Lagged(#[from] Lagged),
    /// A page that has no tokens, or too many.
    #[error(
        "a page of {page_size} tokens; it may have 1 to {}",
        crate::key::PAGE_SIZE_MAX
    )]
    PageSizeOutOfRange {
        /// The page size that was asked for.
        page_size: usize,
    },
    /// Only full blocks have keys.
    #[error("{tokens} tokens are not one page of {page_size}; only full blocks have keys")]
    NotOnePage {
        /// The tokens that were given.
        tokens: usize,
        /// Tokens per block.
        page_size: usize,
    },
    /// The hashes of routers have a seed and no salt.
    #[error("keys of the router profile have no salt; set its seed, or take the profile blake3")]
    RouterTakesNoSalt,
    /// The hashes of routers have no place for extra keys.
    #[error(
        "keys of the router profile cannot contain the block's {count} extra keys, and without them \
         it would match other content; take the profile blake3 or xxh3"
    )]
    RouterTakesNoExtraKeys {
        /// How many were given.
        count: usize,
    },
    /// Content was announced for tokens whose keys are made already.
    #[error(
        "content was marked from token {start} on, but the keys of the first {keyed} tokens are made \
         already; mark it before its tokens are appended"
    )]
    MarkedTooLate {
        /// The first token of the content.
        start: usize,
        /// Tokens in full blocks.
        keyed: usize,
    },
}
