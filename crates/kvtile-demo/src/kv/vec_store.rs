//! A KV store in one plain vector: the reference for other stores.

use super::{KvOrder, KvShape, KvView};
use crate::DemoError;

/// Blocks of keys and values in a `Vec`, layer after layer.
///
/// New blocks are filled with NaN, so that reading a slot that was never written shows in the
/// results.
#[derive(Clone, Debug)]
pub struct VecKv {
    shape: KvShape,
    order: KvOrder,
    values: Vec<f32>,
}

impl VecKv {
    /// A store of `shape` in `order`.
    pub fn new(shape: KvShape, order: KvOrder) -> Self {
        let values = vec![f32::NAN; shape.layers * shape.num_blocks * shape.part_values()];
        Self {
            shape,
            order,
            values,
        }
    }

    fn range(&self, layer: usize, block: usize) -> Result<std::ops::Range<usize>, DemoError> {
        for (what, index, count) in [
            ("layer", layer, self.shape.layers),
            ("block", block, self.shape.num_blocks),
        ] {
            if index >= count {
                return Err(DemoError::KvIndex { what, index, count });
            }
        }
        let size = self.shape.part_values();
        let start = (layer * self.shape.num_blocks + block) * size;
        Ok(start..start + size)
    }
}

impl KvView for VecKv {
    fn shape(&self) -> KvShape {
        self.shape
    }

    fn order(&self) -> KvOrder {
        self.order
    }

    fn part(&self, layer: usize, block: usize) -> Result<&[f32], DemoError> {
        let range = self.range(layer, block)?;
        Ok(self.values.get(range).unwrap_or_default())
    }

    fn part_mut(&mut self, layer: usize, block: usize) -> Result<&mut [f32], DemoError> {
        let range = self.range(layer, block)?;
        Ok(self.values.get_mut(range).unwrap_or_default())
    }
}
