//! `kv_block_layout`: the order inside a block in existing descriptors.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::{ConfigError, InnerShape};
use crate::{axis::Axis, error::LayoutError};

/// An axis of a block under its traditional name. The elements of a head are always innermost and
/// have no name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum BlockDim {
    /// Layer: axis L.
    Layer,
    /// K and V: axis K.
    Outer,
    /// Token slot: axis N.
    Page,
    /// KV head: axis H.
    Head,
}

impl BlockDim {
    /// The axis letter.
    #[must_use]
    pub fn axis(self) -> Axis {
        match self {
            BlockDim::Layer => Axis::L,
            BlockDim::Outer => Axis::K,
            BlockDim::Page => Axis::N,
            BlockDim::Head => Axis::H,
        }
    }
}

/// An order of all four block axes, slowest first, each once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "[BlockDim; 4]", into = "[BlockDim; 4]")]
pub struct BlockOrder([BlockDim; 4]);

impl BlockOrder {
    /// Checks and takes an order, slowest first.
    ///
    /// # Errors
    /// An axis that occurs twice.
    pub fn new(order: [BlockDim; 4]) -> Result<BlockOrder, LayoutError> {
        let repeats = order
            .iter()
            .enumerate()
            .any(|(i, dim)| order.iter().take(i).any(|earlier| earlier == dim));
        if repeats {
            return Err(ConfigError::RepeatedBlockDim {
                order: format!("{order:?}"),
            }
            .into());
        }
        Ok(BlockOrder(order))
    }

    /// The axes, slowest first.
    #[must_use]
    pub fn dims(self) -> [BlockDim; 4] {
        self.0
    }

    /// The axes as letters, slowest first, C last: `LKNHC` for the operational NHD order.
    #[must_use]
    pub fn letters(self) -> String {
        let axes = self.0.iter().map(|dim| dim.axis().letter());
        axes.chain([Axis::C.letter()]).collect()
    }
}

impl TryFrom<[BlockDim; 4]> for BlockOrder {
    type Error = LayoutError;

    fn try_from(order: [BlockDim; 4]) -> Result<BlockOrder, LayoutError> {
        BlockOrder::new(order)
    }
}

impl From<BlockOrder> for [BlockDim; 4] {
    fn from(order: BlockOrder) -> [BlockDim; 4] {
        order.0
    }
}

/// The order inside a block: the field `kv_block_layout` of existing descriptors.
///
/// It must agree with the `inner_shape` of the config, or the descriptor is refused. An order that
/// cannot be expressed is never replaced by `Unknown`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum KvBlockLayout {
    /// Heads, layers, K and V, tokens: the word `BHLKNC`.
    UniversalTP,
    /// Layers, heads, K and V, tokens: the word `BLHKNC`.
    UniversalPP,
    /// Layers, K and V, heads, tokens: the word `BLKHNC`.
    OperationalHND,
    /// Layers, K and V, tokens, heads: the word `BLKNHC`.
    OperationalNHD,
    /// Any other order, written as a list: `{"Custom": ["Head", "Page", "Layer", "Outer"]}`.
    Custom(BlockOrder),
    /// Not stated: the `inner_shape` of the config alone decides.
    #[default]
    Unknown,
}

impl KvBlockLayout {
    /// The order, slowest first; `None` where none is stated.
    #[must_use]
    pub fn order(self) -> Option<BlockOrder> {
        use BlockDim::{Head, Layer, Outer, Page};
        match self {
            KvBlockLayout::UniversalTP => Some(BlockOrder([Head, Layer, Outer, Page])),
            KvBlockLayout::UniversalPP => Some(BlockOrder([Layer, Head, Outer, Page])),
            KvBlockLayout::OperationalHND => Some(BlockOrder([Layer, Outer, Head, Page])),
            KvBlockLayout::OperationalNHD => Some(BlockOrder([Layer, Outer, Page, Head])),
            KvBlockLayout::Custom(order) => Some(order),
            KvBlockLayout::Unknown => None,
        }
    }

    /// The inner shape, where layer and plane are outside tokens and heads; `None` for any other
    /// order and where none is stated.
    #[must_use]
    pub fn inner_shape(self) -> Option<InnerShape> {
        use BlockDim::{Head, Layer, Outer, Page};
        match self.order()?.dims() {
            [Layer, Outer, Page, Head] => Some(InnerShape::NHD),
            [Layer, Outer, Head, Page] => Some(InnerShape::HND),
            _ => None,
        }
    }

    /// The operational order with this inner shape; `None` for [`InnerShape::Unknown`].
    #[must_use]
    pub fn operational(inner: InnerShape) -> Option<KvBlockLayout> {
        match inner {
            InnerShape::NHD => Some(KvBlockLayout::OperationalNHD),
            InnerShape::HND => Some(KvBlockLayout::OperationalHND),
            InnerShape::Unknown => None,
        }
    }
}

impl fmt::Display for KvBlockLayout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match self {
            KvBlockLayout::UniversalTP => "UniversalTP",
            KvBlockLayout::UniversalPP => "UniversalPP",
            KvBlockLayout::OperationalHND => "OperationalHND",
            KvBlockLayout::OperationalNHD => "OperationalNHD",
            KvBlockLayout::Custom(_) => "Custom",
            KvBlockLayout::Unknown => "Unknown",
        };
        match self.order() {
            Some(order) => write!(f, "{name} ({})", order.letters()),
            None => f.write_str(name),
        }
    }
}
