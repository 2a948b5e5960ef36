//! A file that is no saved cache, or that cannot become one.

use kvtile_layout::identity::Difference;
use thiserror::Error;

/// A file that is no saved cache, or that cannot become one.
#[derive(Clone, Debug, Error)]
#[non_exhaustive]
pub enum SavedError {
    /// The file is not a saved cache.
    #[error("not a saved cache: {problem}")]
    NotASavedCache {
        /// The problem.
        problem: String,
    },
    /// The header exceeds its limit; notes, planes and regions make it long.
    #[error(
        "the header of the saved cache would have {bytes} bytes, most of them notes, and {bytes_max} are allowed; \
         give shorter notes, or save fewer blocks to a file"
    )]
    HeaderTooLong {
        /// Bytes of the header.
        bytes: u64,
        /// The limit.
        bytes_max: u64,
    },
    /// More tokens than the blocks to be saved can hold.
    #[error("{tokens} tokens do not fit {blocks} blocks of {page_size} tokens")]
    TooManyTokens {
        /// Tokens that the caller specified.
        tokens: u64,
        /// Number of blocks.
        blocks: u64,
        /// Tokens a block.
        page_size: u64,
    },
    /// The contents of a saved cache are not what the writer wrote.
    #[error("the saved cache is damaged: {problem}")]
    Damaged {
        /// The problem.
        problem: String,
    },
    /// The bytes of a saved block do not match their checksum. The block is a miss and is never
    /// served.
    #[error(
        "saved block {block} fails its checksum: stored {stored:016x}, computed {computed:016x}"
    )]
    ChecksumMismatch {
        /// The block.
        block: u64,
        /// The checksum in the file.
        stored: u64,
        /// The checksum of the bytes.
        computed: u64,
    },
    /// The saved cache belongs to another model, or to another shard.
    #[error("the saved cache is for another model: {0}")]
    IdentityDiffers(Difference),
}
