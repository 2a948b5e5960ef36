//! Layout details: what a descriptor says about the order, beside its config.

use serde::{Deserialize, Serialize};

use super::{
    BlockDim, BlockDimension, BlockFormat, ConfigError, InnerShape, KvBlockLayout, LayoutConfig,
    LayoutKind, LayoutSpec,
};
use crate::{
    error::LayoutError,
    shape::Shape,
    strided::{PlaneDigits, StridedLayout},
    word::Word,
};

/// Details of a fully contiguous layout.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FullyContiguousDetails {
    /// How blocks are encoded.
    #[serde(default)]
    pub block_format: BlockFormat,
    /// The order inside a block, where the writer stated it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kv_block_layout: Option<KvBlockLayout>,
}

/// Details of a layer-separate layout.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LayerSeparateDetails {
    /// Where the block axis stands.
    pub block_dim: BlockDimension,
    /// The order inside a block, where the writer stated it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kv_block_layout: Option<KvBlockLayout>,
}

/// Details of a layout given by a word: `{"Word": {"word": "BHLKNC"}}`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WordDetails {
    /// The word.
    pub word: Word,
    /// The planes and extents, where the config cannot say them. It agrees with the config in
    /// blocks, layers, tokens and bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shape: Option<Shape>,
}

/// Details of a layout given outright.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DigitsDetails {
    /// Where each plane lies.
    pub planes: Vec<PlaneDigits>,
    /// Bytes of each region.
    pub region_bytes: Vec<u64>,
    /// The planes and extents, where the config cannot say them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shape: Option<Shape>,
}

/// What a descriptor says about the order, externally tagged:
///
/// ```json
/// {"FullyContiguous": {"block_format": "Operational"}}
/// {"LayerSeparate": {"block_dim": "BlockIsFirstDim"}}
/// {"Word": {"word": "BHLKNC"}}
/// {"Digits": {"planes": [...], "region_bytes": [...]}}
/// ```
///
/// The first two are read by every system of the tradition. Fields that are not known are refused
/// here, because they could change what the bytes mean.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum LayoutTypeDetails {
    /// One region: `[num_blocks, num_layers, outer_dim, page_size, inner_dim]`.
    FullyContiguous(FullyContiguousDetails),
    /// One region a layer.
    LayerSeparate(LayerSeparateDetails),
    /// An order in the layout language.
    Word(WordDetails),
    /// An order given outright.
    Digits(DigitsDetails),
}

/// Details and a config, brought together and checked.
struct Reading {
    spec: LayoutSpec,
    inner: InnerShape,
    shape: Shape,
}

impl LayoutTypeDetails {
    /// The details that describe a layout of `spec` over `shape`. The shape is written out only
    /// where `config` does not say it.
    ///
    /// # Errors
    /// A shape that differs from `config` in blocks, layers, tokens or bytes; a kind of the
    /// tradition over a shape that is not the one of `config`.
    pub fn describing(
        spec: &LayoutSpec,
        shape: &Shape,
        config: &LayoutConfig,
    ) -> Result<LayoutTypeDetails, LayoutError> {
        check_shape(config, shape)?;
        let own_shape = || (spec.shape(config).ok().as_ref() != Some(shape)).then(|| shape.clone());
        let kv_block_layout = KvBlockLayout::operational(config.inner_shape());
        Ok(match spec {
            LayoutSpec::FullyContiguous if own_shape().is_none() => {
                LayoutTypeDetails::FullyContiguous(FullyContiguousDetails {
                    block_format: BlockFormat::Operational,
                    kv_block_layout,
                })
            }
            LayoutSpec::LayerSeparate(block_dim) if own_shape().is_none() => {
                LayoutTypeDetails::LayerSeparate(LayerSeparateDetails {
                    block_dim: *block_dim,
                    kv_block_layout,
                })
            }
            LayoutSpec::Digits {
                planes,
                region_bytes,
            } => LayoutTypeDetails::Digits(DigitsDetails {
                planes: planes.clone(),
                region_bytes: region_bytes.clone(),
                shape: own_shape(),
            }),
            LayoutSpec::FullyContiguous | LayoutSpec::LayerSeparate(_) | LayoutSpec::Word(_) => {
                let word = spec.word(config.inner_shape());
                LayoutTypeDetails::Word(WordDetails {
                    word: word.ok_or_else(|| ConfigError::NeedsHeads {
                        order: spec.to_string(),
                    })?,
                    shape: own_shape(),
                })
            }
        })
    }

    /// The family as the details state it.
    #[must_use]
    pub fn kind(&self) -> LayoutKind {
        match self {
            LayoutTypeDetails::FullyContiguous(_) => LayoutKind::FullyContiguous,
            LayoutTypeDetails::LayerSeparate(d) => LayoutKind::LayerSeparate(d.block_dim),
            LayoutTypeDetails::Word(_) | LayoutTypeDetails::Digits(_) => LayoutKind::Strided,
        }
    }

    /// The order that details and `config` state together. An order that the family's own word
    /// does not have, such as the universal ones, comes back as a word.
    ///
    /// # Errors
    /// A `kv_block_layout` that contradicts the `inner_shape` of the config, that one region a
    /// layer cannot hold, or that places heads where `num_heads` is missing; a shape that
    /// contradicts the config.
    pub fn spec(&self, config: &LayoutConfig) -> Result<LayoutSpec, LayoutError> {
        self.read(config).map(|reading| reading.spec)
    }

    /// The inner shape that details and `config` state together.
    ///
    /// # Errors
    /// As for [`LayoutTypeDetails::spec`].
    pub fn inner_shape(&self, config: &LayoutConfig) -> Result<InnerShape, LayoutError> {
        self.read(config).map(|reading| reading.inner)
    }

    /// The shape that details and `config` state together.
    ///
    /// # Errors
    /// As for [`LayoutTypeDetails::spec`].
    pub fn shape(&self, config: &LayoutConfig) -> Result<Shape, LayoutError> {
        self.read(config).map(|reading| reading.shape)
    }

    /// The layout that details and `config` state together.
    ///
    /// # Errors
    /// As for [`LayoutTypeDetails::spec`] and [`LayoutSpec::resolve`].
    pub fn resolve(&self, config: &LayoutConfig) -> Result<StridedLayout, LayoutError> {
        let Reading { spec, inner, shape } = self.read(config)?;
        spec.resolve(&shape, inner, config.alignment() as u64)
    }

    fn read(&self, config: &LayoutConfig) -> Result<Reading, LayoutError> {
        match self {
            LayoutTypeDetails::FullyContiguous(details) => {
                let spec = LayoutSpec::FullyContiguous;
                stated_order(spec, details.kv_block_layout, config)
            }
            LayoutTypeDetails::LayerSeparate(details) => {
                let spec = LayoutSpec::LayerSeparate(details.block_dim);
                stated_order(spec, details.kv_block_layout, config)
            }
            LayoutTypeDetails::Word(details) => {
                let spec = LayoutSpec::Word(details.word.clone());
                own_order(spec, details.shape.as_ref(), config)
            }
            LayoutTypeDetails::Digits(details) => {
                let spec = LayoutSpec::Digits {
                    planes: details.planes.clone(),
                    region_bytes: details.region_bytes.clone(),
                };
                own_order(spec, details.shape.as_ref(), config)
            }
        }
    }
}

/// A word or digits, over the shape of the details or else of the config.
fn own_order(
    spec: LayoutSpec,
    shape: Option<&Shape>,
    config: &LayoutConfig,
) -> Result<Reading, LayoutError> {
    let shape = match shape {
        Some(shape) => {
            check_shape(config, shape)?;
            shape.clone()
        }
        None => spec.shape(config)?,
    };
    Ok(Reading {
        spec,
        inner: config.inner_shape(),
        shape,
    })
}

/// A kind of the tradition with the order that its details state, if they state one.
fn stated_order(
    spec: LayoutSpec,
    stated: Option<KvBlockLayout>,
    config: &LayoutConfig,
) -> Result<Reading, LayoutError> {
    let Some((stated, order)) = stated.and_then(|s| s.order().map(|order| (s, order))) else {
        return Ok(Reading {
            spec,
            inner: config.inner_shape(),
            shape: config.shape()?,
        });
    };
    let inner = stated.inner_shape();
    let said = config.inner_shape();
    if said != InnerShape::Unknown && inner != Some(said) {
        return Err(ConfigError::InnerShapeContradicts {
            inner_shape: said,
            kv_block_layout: stated,
        }
        .into());
    }
    if inner != Some(InnerShape::NHD) && config.num_heads().is_none() {
        return Err(ConfigError::NeedsHeads {
            order: stated.to_string(),
        }
        .into());
    }
    let shape = config.element_shape()?;
    if let Some(inner) = inner {
        return Ok(Reading { spec, inner, shape });
    }
    let letters = order.letters();
    let text = match (&spec, order.dims()) {
        (LayoutSpec::LayerSeparate(BlockDimension::BlockIsFirstDim), [BlockDim::Layer, ..]) => {
            letters.replacen('L', "L|B", 1)
        }
        (LayoutSpec::LayerSeparate(block_dim), _) => {
            return Err(ConfigError::LayerSeparateOrder {
                block_dim: *block_dim,
                kv_block_layout: stated,
            }
            .into());
        }
        _ => format!("B{letters}"),
    };
    Ok(Reading {
        spec: LayoutSpec::Word(Word::parse(&text)?),
        inner: InnerShape::Unknown,
        shape,
    })
}

/// Config and shape agree in everything that both say.
fn check_shape(config: &LayoutConfig, shape: &Shape) -> Result<(), LayoutError> {
    let counts = [
        ("num_blocks", config.num_blocks(), shape.num_blocks()),
        ("num_layers", config.num_layers(), shape.num_layers()),
        ("page_size", config.page_size(), shape.page_size()),
        (
            "bytes per block",
            config.bytes_per_block(),
            shape.block_bytes()?,
        ),
    ];
    let heads = config.num_heads().map(|heads| {
        let held = shape.num_heads();
        ("num_heads", heads, held)
    });
    for (what, said, shape) in counts.into_iter().chain(heads) {
        let config = said as u64;
        if config != shape {
            return Err(ConfigError::ShapeDisagrees {
                what,
                config,
                shape,
            }
            .into());
        }
    }
    Ok(())
}
