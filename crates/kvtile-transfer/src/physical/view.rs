//! The traditional view of a layout that is bound here: a config, the details of a descriptor, and
//! the trait [`Layout`] over both.
//!
//! Nothing that moves bytes needs the view. It is worked out when it is first asked for, and a
//! layout that no config describes has none: the error says which constraint of a config fails.

use std::sync::{Arc, OnceLock};

use kvtile_layout::{
    StridedLayout,
    tradition::{LayoutConfig, LayoutSpec, LayoutTypeDetails},
};

use super::{Bound, FullyContiguousLayout, LayerSeparateLayout, Layout, WordLayout};
use crate::{error::TransferError, execute::BoundLayout};

/// What the tradition says of a layout.
#[derive(Debug)]
pub(super) struct Traditional {
    pub(super) config: LayoutConfig,
    pub(super) details: LayoutTypeDetails,
}

/// What the tradition says of `layout`, whose order is `spec`; with `config` where it was made from one.
pub(super) fn traditional(
    spec: &LayoutSpec,
    config: Option<&LayoutConfig>,
    layout: &StridedLayout,
) -> Result<Traditional, TransferError> {
    let described = || {
        let (shape, alignment) = (layout.shape(), layout.alignment());
        let config = match config {
            Some(config) => config.clone(),
            None => LayoutConfig::from_shape(shape, alignment)?,
        };
        let details = LayoutTypeDetails::describing(spec, shape, &config)?;
        Ok(Traditional { config, details })
    };
    described().map_err(|constraint| TransferError::NoLayoutConfig {
        constraint: Box::new(constraint),
    })
}

/// What the view is made from, and the view once it was asked for.
#[derive(Debug)]
pub(super) struct TraditionalView {
    spec: LayoutSpec,
    /// The config that the layout was built with; `None` where a shape was given.
    config: Option<LayoutConfig>,
    view: OnceLock<Result<Arc<dyn Layout>, TransferError>>,
}

impl TraditionalView {
    /// The view of a layout in the order of `spec`. Nothing is worked out yet.
    pub(super) fn new(spec: LayoutSpec, config: Option<LayoutConfig>) -> TraditionalView {
        TraditionalView {
            spec,
            config,
            view: OnceLock::new(),
        }
    }

    /// The view over `bound`, which is the same layout in every call.
    pub(super) fn get(&self, bound: &Arc<BoundLayout>) -> Result<&Arc<dyn Layout>, TransferError> {
        let view = self.view.get_or_init(|| self.describe(bound));
        view.as_ref().map_err(TransferError::clone)
    }

    fn describe(&self, bound: &Arc<BoundLayout>) -> Result<Arc<dyn Layout>, TransferError> {
        let Traditional { config, details } =
            traditional(&self.spec, self.config.as_ref(), bound.layout())?;
        let bound = Bound {
            config,
            details,
            layout: Arc::clone(bound),
        };
        Ok(match &self.spec {
            LayoutSpec::FullyContiguous => Arc::new(FullyContiguousLayout(bound)),
            LayoutSpec::LayerSeparate(dim) => Arc::new(LayerSeparateLayout(bound, *dim)),
            _ => Arc::new(WordLayout(bound)),
        })
    }
}
