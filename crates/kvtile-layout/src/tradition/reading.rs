//! Reads details and config together. Where both state the same property they must agree, or the
//! descriptor is refused.

use super::{
    BlockDim, BlockDimension, ConfigError, InnerShape, KvBlockLayout, LayoutConfig, LayoutSpec,
    LayoutTypeDetails,
};
use crate::{axis::Axis, error::LayoutError, shape::Shape, word::Word};

/// The checked combination of details and a config.
pub(super) struct DetailsReading {
    pub(super) spec: LayoutSpec,
    pub(super) inner: InnerShape,
    pub(super) shape: Shape,
}

pub(super) fn read(
    details: &LayoutTypeDetails,
    config: &LayoutConfig,
) -> Result<DetailsReading, LayoutError> {
    match details {
        LayoutTypeDetails::FullyContiguous(details) => {
            let spec = LayoutSpec::FullyContiguous;
            let shape = details.shape.as_ref();
            stated_order(spec, details.kv_block_layout, shape, config)
        }
        LayoutTypeDetails::LayerSeparate(details) => {
            let spec = LayoutSpec::LayerSeparate(details.block_dim);
            let shape = details.shape.as_ref();
            stated_order(spec, details.kv_block_layout, shape, config)
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

/// A word or digits, over the shape of the details, or of the config if they have none.
fn own_order(
    spec: LayoutSpec,
    shape: Option<&Shape>,
    config: &LayoutConfig,
) -> Result<DetailsReading, LayoutError> {
    let shape = match shape {
        Some(shape) => {
            check_shape(config, shape)?;
            shape.clone()
        }
        None => spec.shape(config)?,
    };
    Ok(DetailsReading {
        spec,
        inner: config.inner_shape(),
        shape,
    })
}

/// A kind of the tradition with the order that its details state, if any.
fn stated_order(
    spec: LayoutSpec,
    stated: Option<KvBlockLayout>,
    shape: Option<&Shape>,
    config: &LayoutConfig,
) -> Result<DetailsReading, LayoutError> {
    if let Some(shape) = shape {
        check_shape(config, shape)?;
        check_planes(config, shape)?;
    }
    let Some((stated, order)) = stated.and_then(|s| s.order().map(|order| (s, order))) else {
        return Ok(DetailsReading {
            spec,
            inner: config.inner_shape(),
            shape: shape.map_or_else(|| config.shape(), |shape| Ok(shape.clone()))?,
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
    let heads_named = match shape {
        Some(shape) => shape.planes().iter().all(|plane| plane.has(Axis::H)),
        None => config.num_heads().is_some(),
    };
    if inner != Some(InnerShape::NHD) && !heads_named {
        return Err(ConfigError::NeedsHeads {
            order: stated.to_string(),
        }
        .into());
    }
    let shape = shape.map_or_else(|| config.element_shape(), |shape| Ok(shape.clone()))?;
    if let Some(inner) = inner {
        return Ok(DetailsReading { spec, inner, shape });
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
    Ok(DetailsReading {
        spec: LayoutSpec::Word(Word::parse(&text)?),
        inner: InnerShape::Unknown,
        shape,
    })
}

/// Checks that config and shape agree in every property that both state.
pub(super) fn check_shape(config: &LayoutConfig, shape: &Shape) -> Result<(), LayoutError> {
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
    let named = shape.planes().iter().any(|plane| plane.has(Axis::H));
    let heads = config
        .num_heads()
        .filter(|_| named)
        .map(|heads| ("num_heads", heads, shape.num_heads()));
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

/// Checks that the planes are those of the tradition: `outer_dim` planes of the config's page size
/// in bytes, so that systems which only know the config can find them.
pub(super) fn check_planes(config: &LayoutConfig, shape: &Shape) -> Result<(), LayoutError> {
    let planes = shape.planes().len() as u64;
    if config.outer_dim() as u64 != planes {
        return Err(ConfigError::ShapeDisagrees {
            what: "outer_dim",
            config: config.outer_dim() as u64,
            shape: planes,
        }
        .into());
    }
    for plane in shape.planes() {
        let extents = plane.extents().iter().map(|(_, extent)| *extent);
        // A block of the shape is a multiple of this product, so the product fits.
        let bytes = extents
            .chain([shape.extent(plane, Axis::N)])
            .fold(plane.unit().bytes(), u64::saturating_mul);
        if bytes != config.page_bytes() as u64 {
            return Err(ConfigError::ShapeDisagrees {
                what: "bytes per page",
                config: config.page_bytes() as u64,
                shape: bytes,
            }
            .into());
        }
    }
    Ok(())
}
