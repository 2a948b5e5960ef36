//! The description of a layout in a descriptor, without its memory: traditional or general.

use std::sync::{Arc, OnceLock};

use kvtile_layout::{
    Plane, PlaneDigits, PlanePiece, Shape, StridedLayout, Word,
    tradition::{LayoutConfig, LayoutSpec, LayoutTypeDetails},
};
use kvtile_memory::MemoryDescriptor;
use serde::{Deserialize, Serialize};

use super::view::{TraditionalForm, traditional};
use crate::error::TransferError;

/// The description of a layout in a descriptor, without its memory.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum DescribedLayout {
    /// The form of the block-manager tradition: version 1.
    Traditional {
        /// Counts and sizes.
        config: LayoutConfig,
        /// The order.
        details: LayoutTypeDetails,
    },
    /// Any layout: version 2.
    General {
        /// Counts, planes, units, and the shard of the model.
        shape: Shape,
        /// Alignment of block strides and of region starts, in bytes.
        alignment: u64,
        /// The positions of the units.
        order: DescribedOrder,
    },
}

/// An order in the general form.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
#[non_exhaustive]
pub enum DescribedOrder {
    /// A word of the layout language.
    Word(Word),
    /// Explicit digits.
    Digits {
        /// The digits of each plane.
        planes: Vec<PlaneDigits>,
        /// Bytes of each region.
        region_bytes: Vec<u64>,
    },
}

impl DescribedOrder {
    /// The order of `layout`.
    fn of(layout: &StridedLayout) -> DescribedOrder {
        let digits = |(plane, piece): (&Plane, &PlanePiece)| PlaneDigits {
            plane: plane.name().as_str().to_owned(),
            region: piece.region(),
            offset: piece.offset(),
            digits: piece.digits().to_vec(),
        };
        match layout.word() {
            Some(word) => DescribedOrder::Word(word.clone()),
            None => DescribedOrder::Digits {
                planes: layout.planes().map(digits).collect(),
                region_bytes: layout.region_bytes().to_vec(),
            },
        }
    }

    /// The same order as an input of the builder.
    pub(crate) fn spec(&self) -> LayoutSpec {
        match self.clone() {
            DescribedOrder::Word(word) => LayoutSpec::Word(word),
            DescribedOrder::Digits {
                planes,
                region_bytes,
            } => LayoutSpec::Digits {
                planes,
                region_bytes,
            },
        }
    }
}

impl DescribedLayout {
    /// Describes any layout in the general form.
    pub(crate) fn general(layout: &StridedLayout) -> DescribedLayout {
        DescribedLayout::General {
            shape: layout.shape().clone(),
            alignment: layout.alignment(),
            order: DescribedOrder::of(layout),
        }
    }

    /// Resolves the layout.
    pub(crate) fn resolve(&self) -> Result<StridedLayout, TransferError> {
        let layout = match self {
            DescribedLayout::Traditional { config, details } => details.resolve(config)?,
            DescribedLayout::General {
                shape,
                alignment,
                order,
            } => match order {
                DescribedOrder::Word(word) => StridedLayout::resolve(word, shape, *alignment)?,
                DescribedOrder::Digits {
                    planes,
                    region_bytes,
                } => StridedLayout::from_digits(shape, planes, region_bytes, *alignment)?,
            },
        };
        Ok(layout)
    }
}

/// A layout of another process, as its descriptor describes it.
#[derive(Debug)]
pub(crate) struct RemoteDescription {
    pub(super) described: DescribedLayout,
    pub(super) strided: Arc<StridedLayout>,
    pub(super) memory: Vec<MemoryDescriptor>,
    /// The traditional view of a layout in the general form, computed on first use.
    view: OnceLock<Result<TraditionalForm, TransferError>>,
}

impl RemoteDescription {
    /// `strided` is the resolved layout of `described`, and `memory` has its regions.
    pub(crate) fn new(
        described: DescribedLayout,
        strided: Arc<StridedLayout>,
        memory: Vec<MemoryDescriptor>,
    ) -> RemoteDescription {
        RemoteDescription {
            described,
            strided,
            memory,
            view: OnceLock::new(),
        }
    }

    /// The config and the details.
    pub(super) fn traditional(&self) -> Result<(&LayoutConfig, &LayoutTypeDetails), TransferError> {
        match &self.described {
            DescribedLayout::Traditional { config, details } => Ok((config, details)),
            DescribedLayout::General { order, .. } => {
                let view = self
                    .view
                    .get_or_init(|| traditional(&order.spec(), None, &self.strided));
                let view = view.as_ref().map_err(TransferError::clone)?;
                Ok((&view.config, &view.details))
            }
        }
    }
}
