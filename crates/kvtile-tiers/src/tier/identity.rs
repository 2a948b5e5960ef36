//! The identity of a tier's blocks.

use kvtile_layout::identity::{Identity, LayoutIdentity};

use super::BlockPieces;

/// The default order of stored blocks: layers outermost, so that the first layers of a block can be
/// read, verified and copied while the later ones are being read.
pub const STORAGE_WORD: &str = "BLHKNC";

/// Everything that must be equal before a block of a tier may be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoreIdentity {
    /// The meaning of a block's values.
    pub logical: Identity,
    /// The layout of one block ([`LayoutIdentity::of_block`]).
    pub block_layout: LayoutIdentity,
    /// The size of one block, and its pieces.
    pub pieces: BlockPieces,
}

impl StoreIdentity {
    /// Bytes of one block.
    #[must_use]
    pub fn block_bytes(&self) -> u64 {
        self.pieces.block_bytes()
    }
}
