//! The errors of the crate.

use std::io;

use kvtile_events_wire::WireError;

/// Why events cannot be published.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PublishError {
    /// A socket cannot be opened.
    #[error(transparent)]
    Wire(#[from] WireError),
    /// The thread cannot be started.
    #[error("the thread that publishes events cannot be started")]
    Thread(#[source] io::Error),
    /// Token ids that are not those of full blocks.
    #[error(
        "{tokens} token ids for {keys} keys; a block has {page_size} tokens, so give {} or, with the incomplete \
         last block, fewer than {}",
        (*keys as u64).saturating_mul(*page_size),
        (*keys as u64 + 1).saturating_mul(*page_size)
    )]
    Tokens {
        /// The token ids.
        tokens: usize,
        /// The keys.
        keys: usize,
        /// Tokens of a block.
        page_size: u64,
    },
}
