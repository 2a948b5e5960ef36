//! What blocks of a tier are.

use kvtile_layout::identity::{LayoutIdentity, LogicalIdentity};

use super::Pieces;

/// The order of stored blocks, unless another one is set: layers outermost, so that the first layers of a block
/// can be read, verified and copied while the others are being read.
pub const STORAGE_WORD: &str = "BLHKNC";

/// What must be equal before a block of a tier may be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoreIdentity {
    /// What the values of a block mean.
    pub logical: LogicalIdentity,
    /// How one block lies ([`LayoutIdentity::of_block`]).
    pub block_layout: LayoutIdentity,
    /// Bytes of one block, and how it is cut.
    pub pieces: Pieces,
}

impl StoreIdentity {
    /// Bytes of one block.
    #[must_use]
    pub fn block_bytes(&self) -> u64 {
        self.pieces.block_bytes()
    }
}
