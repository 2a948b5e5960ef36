//! The traditional view of a local layout: a config, the details of a descriptor, and the trait
//! [`Layout`] over both.
//!
//! Code that moves bytes does not need the view. It is computed on first use. A layout that no
//! config describes has none; the error contains the violated constraint.

use std::sync::{Arc, OnceLock};

use kvtile_layout::{
    StridedLayout,
    tradition::{LayoutConfig, LayoutSpec, LayoutTypeDetails},
};

use super::{ConfiguredLayout, FullyContiguousLayout, LayerSeparateLayout, Layout, WordLayout};
use crate::{
    error::{DescriptorError, TransferError},
    execute::BoundLayout,
};

/// The traditional description of a layout.
#[derive(Debug)]
pub(super) struct TraditionalForm {
    pub(super) config: LayoutConfig,
    pub(super) details: LayoutTypeDetails,
}

/// Describes `layout`, whose order is `spec`. `config` is the config that it was built from, if
/// any.
pub(super) fn traditional(
    spec: &LayoutSpec,
    config: Option<&LayoutConfig>,
    layout: &StridedLayout,
) -> Result<TraditionalForm, TransferError> {
    let described = || {
        let (shape, alignment) = (layout.shape(), layout.alignment());
        let config = match config {
            Some(config) => config.clone(),
            None => LayoutConfig::from_shape(shape, alignment)?,
        };
        let details = LayoutTypeDetails::describing(spec, shape, &config)?;
        Ok(TraditionalForm { config, details })
    };
    described().map_err(|constraint| {
        TransferError::Descriptor(DescriptorError::NoLayoutConfig {
            constraint: Box::new(constraint),
        })
    })
}

/// The inputs of the view, and the view after its first use.
#[derive(Debug)]
pub(super) struct TraditionalView {
    spec: LayoutSpec,
    /// The config that the layout was built with; `None` where a shape was given.
    config: Option<LayoutConfig>,
    view: OnceLock<Result<Arc<dyn Layout>, TransferError>>,
}

impl TraditionalView {
    /// The view of a layout in the order of `spec`. It is not computed yet.
    pub(super) fn new(spec: LayoutSpec, config: Option<LayoutConfig>) -> TraditionalView {
        TraditionalView {
            spec,
            config,
            view: OnceLock::new(),
        }
    }

    /// The view over `bound`. Every call must pass the same layout.
    pub(super) fn get(&self, bound: &Arc<BoundLayout>) -> Result<&Arc<dyn Layout>, TransferError> {
        let view = self.view.get_or_init(|| self.describe(bound));
        view.as_ref().map_err(TransferError::clone)
    }

    fn describe(&self, bound: &Arc<BoundLayout>) -> Result<Arc<dyn Layout>, TransferError> {
        let TraditionalForm { config, details } =
            traditional(&self.spec, self.config.as_ref(), bound.layout())?;
        let bound = ConfiguredLayout {
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
