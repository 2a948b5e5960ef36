//! The KV cache of the model: a view of blocks that the caller owns.
//!
//! The engine holds no keys and no values. It gets the contiguous part of one layer and one block
//! from a [`KvView`], and reads or writes it in the order that the view declares. This module does
//! not know where the bytes are.

mod order;
mod sequence;
mod vec_store;

pub use order::KvOrder;
pub use sequence::Sequence;
pub use vec_store::VecKv;

pub(crate) use sequence::SlotRun;

use crate::DemoError;

/// Extents of a KV store. All counts, none in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KvShape {
    /// Layers.
    pub layers: usize,
    /// Blocks; block ids are `0..num_blocks`.
    pub num_blocks: usize,
    /// Tokens per block.
    pub page_size: usize,
    /// KV heads.
    pub kv_heads: usize,
    /// Values of one head of one token.
    pub head_size: usize,
}

impl KvShape {
    /// Values of one layer of one block: keys and values of all its tokens.
    pub fn part_values(&self) -> usize {
        2 * self.page_size * self.token_values()
    }

    /// Values of the keys (or of the values) of one token in one layer.
    pub fn token_values(&self) -> usize {
        self.kv_heads * self.head_size
    }
}

/// Blocks of f32 keys and values, owned by the caller.
///
/// The part of a layer and a block is [`KvShape::part_values`] long, contiguous, and
/// in the order [`KvView::order`]. Different `(layer, block)` pairs never overlap.
/// An implementation whose layer is still in flight may wait inside `part`.
pub trait KvView: Send + Sync {
    /// The extents.
    fn shape(&self) -> KvShape;

    /// The order of the values inside a part.
    fn order(&self) -> KvOrder;

    /// The part of `layer` and `block`.
    ///
    /// # Errors
    /// [`DemoError::KvIndex`] outside the shape, [`DemoError::KvStore`] for a failure
    /// of the store.
    fn part(&self, layer: usize, block: usize) -> Result<&[f32], DemoError>;

    /// The part of `layer` and `block`, to write.
    ///
    /// # Errors
    /// As [`KvView::part`].
    fn part_mut(&mut self, layer: usize, block: usize) -> Result<&mut [f32], DemoError>;
}
