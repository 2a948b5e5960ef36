//! Layout details: the order that a descriptor states besides its config.

use serde::{Deserialize, Serialize};

use super::{
    BlockDimension, BlockFormat, InnerShape, KvBlockLayout, LayoutConfig, LayoutKind, LayoutSpec,
    reading::{DetailsReading, check_planes, check_shape, read},
    spec::{fully_contiguous, layer_separate, stated},
};
use crate::{
    error::LayoutError,
    shape::Shape,
    strided::{PlaneDigits, StridedLayout},
    word::Word,
};

/// Details of a fully contiguous layout.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FullyContiguousDetails {
    /// How blocks are encoded.
    #[serde(default)]
    pub block_format: BlockFormat,
    /// The order inside a block, if stated.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kv_block_layout: Option<KvBlockLayout>,
    /// Codecs and shard, where the config cannot express them. Other systems skip it: its planes
    /// are `outer_dim` planes of the config's page size in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shape: Option<Shape>,
}

/// Details of a layer-separate layout.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LayerSeparateDetails {
    /// The position of the block axis.
    pub block_dim: BlockDimension,
    /// The order inside a block, if stated.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kv_block_layout: Option<KvBlockLayout>,
    /// Codecs and shard, where the config cannot express them. Other systems skip it: its planes
    /// are `outer_dim` planes of the config's page size in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shape: Option<Shape>,
}

/// Details of a layout given by a word: `{"Word": {"word": "BHLKNC"}}`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WordDetails {
    /// The word.
    pub word: Word,
    /// The planes and extents, where the config cannot express them. It agrees with the config in
    /// blocks, layers, tokens and bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shape: Option<Shape>,
}

/// Details of a layout given by explicit digits.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DigitsDetails {
    /// The place of each plane.
    pub planes: Vec<PlaneDigits>,
    /// Bytes of each region.
    pub region_bytes: Vec<u64>,
    /// The planes and extents, where the config cannot express them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shape: Option<Shape>,
}

/// The order that a descriptor states, externally tagged:
///
/// ```json
/// {"FullyContiguous": {"block_format": "Operational"}}
/// {"LayerSeparate": {"block_dim": "BlockIsFirstDim"}}
/// {"Word": {"word": "BHLKNC"}}
/// {"Digits": {"planes": [...], "region_bytes": [...]}}
/// ```
///
/// Every system of the tradition reads the first two. Unknown fields are refused here, because they
/// could change the meaning of the bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum LayoutTypeDetails {
    /// One region: `[num_blocks, num_layers, outer_dim, page_size, inner_dim]`.
    FullyContiguous(FullyContiguousDetails),
    /// One region per layer.
    LayerSeparate(LayerSeparateDetails),
    /// An order in the layout language.
    Word(WordDetails),
    /// An order given by explicit digits.
    Digits(DigitsDetails),
}

impl LayoutTypeDetails {
    /// The details that describe a layout of `spec` over `shape`. They contain the shape only where
    /// `config` does not imply it.
    ///
    /// # Errors
    /// A shape that differs from `config` in blocks, layers, tokens, heads or bytes; a kind of the
    /// tradition with an unknown inner shape over a shape for which the inner order matters.
    pub fn describing(
        spec: &LayoutSpec,
        shape: &Shape,
        config: &LayoutConfig,
    ) -> Result<LayoutTypeDetails, LayoutError> {
        check_shape(config, shape)?;
        let own_shape = || (spec.shape(config).ok().as_ref() != Some(shape)).then(|| shape.clone());
        let inner = config.inner_shape();
        let kv_block_layout = KvBlockLayout::operational(inner);
        let word = |word| {
            LayoutTypeDetails::Word(WordDetails {
                word,
                shape: own_shape(),
            })
        };
        let traditional = check_planes(config, shape).is_ok();
        Ok(match spec {
            LayoutSpec::FullyContiguous if traditional => {
                stated(fully_contiguous(inner), shape, inner)?;
                LayoutTypeDetails::FullyContiguous(FullyContiguousDetails {
                    block_format: BlockFormat::Operational,
                    kv_block_layout,
                    shape: own_shape(),
                })
            }
            LayoutSpec::LayerSeparate(block_dim) if traditional => {
                stated(layer_separate(*block_dim, inner), shape, inner)?;
                LayoutTypeDetails::LayerSeparate(LayerSeparateDetails {
                    block_dim: *block_dim,
                    kv_block_layout,
                    shape: own_shape(),
                })
            }
            LayoutSpec::FullyContiguous => word(stated(fully_contiguous(inner), shape, inner)?),
            LayoutSpec::LayerSeparate(dim) => {
                word(stated(layer_separate(*dim, inner), shape, inner)?)
            }
            LayoutSpec::Word(given) => word(given.clone()),
            LayoutSpec::Digits {
                planes,
                region_bytes,
            } => LayoutTypeDetails::Digits(DigitsDetails {
                planes: planes.clone(),
                region_bytes: region_bytes.clone(),
                shape: own_shape(),
            }),
        })
    }

    /// The family of layouts.
    #[must_use]
    pub fn kind(&self) -> LayoutKind {
        match self {
            LayoutTypeDetails::FullyContiguous(_) => LayoutKind::FullyContiguous,
            LayoutTypeDetails::LayerSeparate(d) => LayoutKind::LayerSeparate(d.block_dim),
            LayoutTypeDetails::Word(_) | LayoutTypeDetails::Digits(_) => LayoutKind::Strided,
        }
    }

    /// The order that details and `config` state together. An order that differs from the family's
    /// own word, such as the universal ones, is returned as a word.
    ///
    /// # Errors
    /// A `kv_block_layout` that contradicts the `inner_shape` of the config, that one region a
    /// layer cannot hold, or that places heads where `num_heads` is missing; a shape that
    /// contradicts the config.
    pub fn spec(&self, config: &LayoutConfig) -> Result<LayoutSpec, LayoutError> {
        read(self, config).map(|reading| reading.spec)
    }

    /// The inner shape that details and `config` state together.
    ///
    /// # Errors
    /// As for [`LayoutTypeDetails::spec`].
    pub fn inner_shape(&self, config: &LayoutConfig) -> Result<InnerShape, LayoutError> {
        read(self, config).map(|reading| reading.inner)
    }

    /// The shape that details and `config` state together.
    ///
    /// # Errors
    /// As for [`LayoutTypeDetails::spec`].
    pub fn shape(&self, config: &LayoutConfig) -> Result<Shape, LayoutError> {
        read(self, config).map(|reading| reading.shape)
    }

    /// The layout that details and `config` state together.
    ///
    /// # Errors
    /// As for [`LayoutTypeDetails::spec`] and [`LayoutSpec::resolve`].
    pub fn resolve(&self, config: &LayoutConfig) -> Result<StridedLayout, LayoutError> {
        let DetailsReading { spec, inner, shape } = read(self, config)?;
        spec.resolve(&shape, inner, config.alignment() as u64)
    }
}
