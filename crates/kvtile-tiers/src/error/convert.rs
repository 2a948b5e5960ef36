//! A conversion of a folder that is refused.

use kvtile_layout::identity::Difference;
use thiserror::Error;

/// A conversion of a folder that is refused.
#[derive(Clone, Debug, Error)]
#[non_exhaustive]
pub enum ConvertError {
    /// A folder that already holds a disk tier, where a new or an empty one is needed. It is
    /// unchanged.
    #[error("{folder} is a disk tier already; give a new or an empty folder")]
    AlreadyAStore {
        /// The folder.
        folder: String,
    },
    /// The target of a conversion is its source, or lies inside it. Nothing was written.
    #[error(
        "{target} is {source_folder} or lies in it, and a conversion only reads that; give another folder"
    )]
    TargetInSource {
        /// The target folder.
        target: String,
        /// The source folder.
        source_folder: String,
    },
    /// The order of the stored blocks matches none of the words that kvtile tries.
    #[error(
        "the blocks of {folder} lie in none of the {tried} orders that kvtile tries; give the word \
         that the cache stored them with (`--stored-layout`)"
    )]
    StoredOrderUnknown {
        /// The folder.
        folder: String,
        /// Number of words tried.
        tried: usize,
    },
    /// The order of the stored blocks differs from the given word.
    #[error(
        "the blocks of {folder} do not lie as {word} says: {difference}; give the word that the \
         cache stored them with"
    )]
    StoredOrderDiffers {
        /// The folder.
        folder: String,
        /// The word.
        word: String,
        /// The first part that differs: `ours` is of the word, `theirs` of the folder.
        difference: Box<Difference>,
    },
    /// A disk capacity too small for all blocks of a conversion. Nothing was written.
    #[error(
        "{capacity_bytes} bytes of disk are too few for {blocks} blocks; give at least {needed_bytes}"
    )]
    BlocksDoNotFit {
        /// The capacity given.
        capacity_bytes: u64,
        /// Number of blocks.
        blocks: u64,
        /// The smallest sufficient capacity.
        needed_bytes: u64,
    },
}
