//! Layout specs: a kind of the tradition, a word or digits, as settings.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use super::{BlockDimension, ConfigError, InnerShape, LayoutConfig, LayoutKind};
use crate::{
    axis::Axis,
    error::LayoutError,
    shape::Shape,
    strided::{PlaneDigits, StridedLayout},
    word::{ParseError, Word, WordItem},
};

/// The order of a layout as a serialisable setting. [`resolve`](LayoutSpec::resolve) checks it.
///
/// From text: `FullyContiguous`, `LayerSeparate(BlockIsFirstDim)`,
/// `LayerSeparate(BlockIsSecondDim)`, or any word.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum LayoutSpec {
    /// `BLKNHC`, or `BLKHNC` where the inner shape is HND.
    FullyContiguous,
    /// `L|BKNHC`, `L|KBNHC`, or the same with `HNC`.
    LayerSeparate(BlockDimension),
    /// An order in the layout language.
    Word(Word),
    /// An order given by explicit digits.
    Digits {
        /// The place of each plane.
        planes: Vec<PlaneDigits>,
        /// Bytes of each region.
        region_bytes: Vec<u64>,
    },
}

impl LayoutSpec {
    /// The family of layouts.
    #[must_use]
    pub fn kind(&self) -> LayoutKind {
        match self {
            LayoutSpec::FullyContiguous => LayoutKind::FullyContiguous,
            LayoutSpec::LayerSeparate(block_dim) => LayoutKind::LayerSeparate(*block_dim),
            LayoutSpec::Word(_) | LayoutSpec::Digits { .. } => LayoutKind::Strided,
        }
    }

    /// The word; `None` for digits.
    ///
    /// For the kinds of the tradition an unknown inner shape has the word of NHD, which is right
    /// for opaque pages and for shapes in which the order of tokens and heads cannot matter;
    /// [`resolve`](LayoutSpec::resolve) refuses all others.
    #[must_use]
    pub fn word(&self, inner: InnerShape) -> Option<Word> {
        match self {
            LayoutSpec::FullyContiguous => Word::parse(fully_contiguous(inner)).ok(),
            LayoutSpec::LayerSeparate(dim) => Word::parse(layer_separate(*dim, inner)).ok(),
            LayoutSpec::Word(word) => Some(word.clone()),
            LayoutSpec::Digits { .. } => None,
        }
    }

    /// The layout of this spec for `shape`. `inner` decides the order of tokens and heads for the
    /// kinds of the tradition; words and digits ignore it. `alignment` is in bytes.
    ///
    /// # Errors
    /// A kind of the tradition with an unknown inner shape over a plane with several tokens and
    /// several heads; the errors of [`StridedLayout::resolve`] and [`StridedLayout::from_digits`].
    pub fn resolve(
        &self,
        shape: &Shape,
        inner: InnerShape,
        alignment: u64,
    ) -> Result<StridedLayout, LayoutError> {
        match self {
            LayoutSpec::Digits {
                planes,
                region_bytes,
            } => StridedLayout::from_digits(shape, planes, region_bytes, alignment),
            LayoutSpec::Word(word) => StridedLayout::resolve(word, shape, alignment),
            LayoutSpec::FullyContiguous => {
                let word = stated(fully_contiguous(inner), shape, inner)?;
                StridedLayout::resolve(&word, shape, alignment)
            }
            LayoutSpec::LayerSeparate(dim) => {
                let word = stated(layer_separate(*dim, inner), shape, inner)?;
                StridedLayout::resolve(&word, shape, alignment)
            }
        }
    }

    /// The shape that `config` gives a layout of this order.
    ///
    /// For the kinds of the tradition it is [`LayoutConfig::shape`]. A word or digits that name
    /// tokens, heads or content state the inner order themselves: these become axes even where the
    /// config's inner shape is unknown. An order that names none of them has opaque pages.
    ///
    /// # Errors
    /// An order that places heads, over a config without `num_heads`.
    pub fn shape(&self, config: &LayoutConfig) -> Result<Shape, LayoutError> {
        let names = |axes: &[Axis]| match self {
            LayoutSpec::Word(word) => mentions(word, axes),
            LayoutSpec::Digits { planes, .. } => planes
                .iter()
                .any(|plane| plane.digits.iter().any(|d| axes.contains(&d.axis))),
            LayoutSpec::FullyContiguous | LayoutSpec::LayerSeparate(_) => false,
        };
        if self.kind() == LayoutKind::Strided && names(&[Axis::H]) && config.num_heads().is_none() {
            return Err(ConfigError::NeedsHeads {
                order: self.to_string(),
            }
            .into());
        }
        if names(&[Axis::N, Axis::H, Axis::C]) {
            return config.element_shape();
        }
        config.shape()
    }
}

pub(super) fn fully_contiguous(inner: InnerShape) -> &'static str {
    match inner {
        InnerShape::NHD | InnerShape::Unknown => "BLKNHC",
        InnerShape::HND => "BLKHNC",
    }
}

pub(super) fn layer_separate(block_dim: BlockDimension, inner: InnerShape) -> &'static str {
    match (block_dim, inner) {
        (BlockDimension::BlockIsFirstDim, InnerShape::HND) => "L|BKHNC",
        (BlockDimension::BlockIsFirstDim, _) => "L|BKNHC",
        (BlockDimension::BlockIsSecondDim, InnerShape::HND) => "L|KBHNC",
        (BlockDimension::BlockIsSecondDim, _) => "L|KBNHC",
    }
}

fn mentions(word: &Word, axes: &[Axis]) -> bool {
    word.items().iter().any(|item| match item {
        WordItem::Axis(item) => axes.contains(&item.axis),
        WordItem::Sum(parts) => parts.iter().any(|part| mentions(part, axes)),
        WordItem::Plane(_) | WordItem::Bar => false,
    })
}

/// The word of a kind of the tradition. It is refused where it would be a guess: with an unknown
/// inner shape, no plane may have both several tokens and several heads.
pub(super) fn stated(text: &str, shape: &Shape, inner: InnerShape) -> Result<Word, LayoutError> {
    for plane in shape.planes() {
        let tokens = shape.extent(plane, Axis::N);
        let heads = shape.extent(plane, Axis::H);
        if inner == InnerShape::Unknown && tokens > 1 && heads > 1 {
            return Err(ConfigError::InnerOrderUnknown {
                plane: plane.name().clone(),
                tokens,
                heads,
            }
            .into());
        }
    }
    Ok(Word::parse(text)?)
}

impl fmt::Display for LayoutSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            LayoutSpec::FullyContiguous => f.write_str("FullyContiguous"),
            LayoutSpec::LayerSeparate(block_dim) => write!(f, "LayerSeparate({block_dim:?})"),
            LayoutSpec::Word(word) => write!(f, "{word}"),
            LayoutSpec::Digits { planes, .. } => {
                let names: Vec<&str> = planes.iter().map(|p| p.plane.as_str()).collect();
                write!(f, "digits of {}", names.join(", "))
            }
        }
    }
}

impl From<Word> for LayoutSpec {
    fn from(word: Word) -> LayoutSpec {
        LayoutSpec::Word(word)
    }
}

/// A text in the layout language.
impl TryFrom<&str> for LayoutSpec {
    type Error = LayoutError;

    fn try_from(text: &str) -> Result<LayoutSpec, LayoutError> {
        Ok(LayoutSpec::Word(Word::parse(text)?))
    }
}

impl From<BlockDimension> for LayoutSpec {
    fn from(block_dim: BlockDimension) -> LayoutSpec {
        LayoutSpec::LayerSeparate(block_dim)
    }
}

impl FromStr for LayoutSpec {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<LayoutSpec, ParseError> {
        match text {
            "FullyContiguous" => Ok(LayoutSpec::FullyContiguous),
            "LayerSeparate(BlockIsFirstDim)" => Ok(BlockDimension::BlockIsFirstDim.into()),
            "LayerSeparate(BlockIsSecondDim)" => Ok(BlockDimension::BlockIsSecondDim.into()),
            word => Word::parse(word).map(LayoutSpec::Word),
        }
    }
}
