//! Conversion between configs and shapes.

use super::{ConfigError, InnerShape, LayoutConfig, builder::ALIGNMENT_MAX};
use crate::{
    axis::Axis,
    error::{LayoutError, ShapeError},
    shape::{Plane, Shape},
    unit::Unit,
};

impl LayoutConfig {
    /// The shape that this config describes: planes `k` and `v`, or one plane `kv`.
    ///
    /// With NHD or HND the planes have heads and elements of codec `raw16` or the like (one head
    /// of `inner_dim` elements where `num_heads` is not set); with an unknown inner shape they are
    /// [opaque pages](LayoutConfig::opaque_shape).
    ///
    /// # Errors
    /// Pages above 1 GiB where the inner shape is unknown; `build` refuses all other errors.
    pub fn shape(&self) -> Result<Shape, LayoutError> {
        match self.inner_shape() {
            InnerShape::Unknown => self.opaque_shape(),
            InnerShape::NHD | InnerShape::HND => self.element_shape(),
        }
    }

    /// The shape with tokens, heads and elements as axes, regardless of `inner_shape`: for orders
    /// that a word or digits state.
    ///
    /// # Errors
    /// None beyond those that `build` refuses.
    pub fn element_shape(&self) -> Result<Shape, LayoutError> {
        let heads = self.num_heads().unwrap_or(1);
        let head_size = self.head_size().unwrap_or(self.inner_dim());
        let unit = Unit::raw(self.dtype_width_bytes() as u64)?;
        self.shape_of(|name| {
            Ok(Plane::new(name, unit.clone())?
                .extent(Axis::H, heads as u64)
                .extent(Axis::C, head_size as u64))
        })
    }

    /// The shape with the page of each plane as one opaque unit of codec `unknown16` or similar. A
    /// copy moves the unit whole into an equal one and never permutes it.
    ///
    /// # Errors
    /// Pages above 1 GiB.
    pub fn opaque_shape(&self) -> Result<Shape, LayoutError> {
        let codec = format!("unknown{}", self.dtype_width_bytes() * 8);
        let unit = Unit::opaque(&codec, self.page_bytes() as u64)?;
        self.shape_of(|name| Ok(Plane::new(name, unit.clone())?.per_page()))
    }

    fn shape_of(
        &self,
        plane: impl Fn(&str) -> Result<Plane, LayoutError>,
    ) -> Result<Shape, LayoutError> {
        let names: &[&str] = match self.outer_dim() {
            2 => &["k", "v"],
            _ => &["kv"],
        };
        Shape::new(
            self.num_blocks() as u64,
            self.num_layers() as u64,
            self.page_size() as u64,
            names
                .iter()
                .map(|name| plane(name))
                .collect::<Result<_, _>>()?,
        )
    }

    /// The closest config of `shape`, with an unknown inner shape: two planes of equal elements
    /// become `outer_dim` 2, all others one plane of bytes. Its counts and its bytes per block
    /// always equal those of the shape.
    ///
    /// # Errors
    /// A shape whose blocks have no whole number of bytes per token and layer, or that does not
    /// fit.
    pub fn from_shape(shape: &Shape, alignment: u64) -> Result<LayoutConfig, LayoutError> {
        let layer_bytes = shape.block_bytes()? / shape.num_layers();
        let page_size = shape.page_size();
        let (outer_dim, width) = match shape.planes() {
            [k, v] if same_but_name(k, v) => (2, element_width(k)),
            [one] => (1, element_width(one)),
            _ => (1, 1),
        };
        let inner_dim = layer_bytes / outer_dim / width / page_size;
        if inner_dim * page_size * width * outer_dim != layer_bytes {
            return Err(ConfigError::NoInnerDim {
                bytes: layer_bytes,
                page_size,
            }
            .into());
        }
        let heads = shape.num_heads();
        let named = shape.planes().iter().all(|plane| plane.has(Axis::H));
        let heads = (named && inner_dim.is_multiple_of(heads)).then_some(heads);
        LayoutConfig::builder()
            .num_blocks(narrow(shape.num_blocks())?)
            .num_layers(narrow(shape.num_layers())?)
            .outer_dim(narrow(outer_dim)?)
            .page_size(narrow(page_size)?)
            .inner_dim(narrow(inner_dim)?)
            .alignment(usize::try_from(alignment).unwrap_or(ALIGNMENT_MAX + 1))
            .dtype_width_bytes(narrow(width)?)
            .num_heads(heads.map(narrow).transpose()?)
            .build()
    }
}

fn same_but_name(a: &Plane, b: &Plane) -> bool {
    a.unit() == b.unit() && a.per() == b.per() && a.extents() == b.extents()
}

/// Bytes of an element of `plane`; 1 where its unit has a size other than 1, 2, 4 or 8.
fn element_width(plane: &Plane) -> u64 {
    match plane.unit().bytes() {
        bytes @ (1 | 2 | 4 | 8) if plane.is_per_token() => bytes,
        _ => 1,
    }
}

fn narrow(value: u64) -> Result<usize, LayoutError> {
    usize::try_from(value).map_err(|_| {
        LayoutError::Shape(ShapeError::TooLarge {
            what: "a count of the shape",
        })
    })
}
