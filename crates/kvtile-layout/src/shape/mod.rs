//! Shapes: the number of blocks, layers, tokens, heads and units, independent of their order.
//!
//! A shape describes the contents of a layout and their part of the whole model. The
//! [`Word`](crate::Word) gives the order.

mod layer_set;
mod plane;
mod shard;

pub use layer_set::{LAYER_RUNS_MAX, LayerSet};
pub use plane::{Plane, PlaneName, PlanePer};
use serde::{Deserialize, Serialize};
pub use shard::{AxisRange, Shard};

use crate::{
    axis::Axis,
    error::{LayoutError, ShapeError},
    unit::Unit,
};

/// Most planes a shape may have.
pub const PLANES_MAX: usize = 64;

/// Most bytes a layout may span: what a signed offset can express.
pub const BYTES_MAX: u64 = i64::MAX.unsigned_abs();

/// The contents of a layout: blocks, layers, tokens per block, planes, and the shard of the model.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "UncheckedShape")]
pub struct Shape {
    num_blocks: u64,
    num_layers: u64,
    page_size: u64,
    planes: Vec<Plane>,
    shard: Shard,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct UncheckedShape {
    num_blocks: u64,
    num_layers: u64,
    page_size: u64,
    planes: Vec<Plane>,
    #[serde(default)]
    shard: Option<Shard>,
}

impl TryFrom<UncheckedShape> for Shape {
    type Error = LayoutError;

    fn try_from(shape: UncheckedShape) -> Result<Self, LayoutError> {
        let UncheckedShape {
            num_blocks,
            num_layers,
            page_size,
            planes,
            shard,
        } = shape;
        let shape = Shape::new(num_blocks, num_layers, page_size, planes)?;
        match shard {
            Some(shard) => shape.with_shard(shard),
            None => Ok(shape),
        }
    }
}

impl Shape {
    /// A shape that is a whole model: all layers, all heads, replica 0.
    ///
    /// # Errors
    /// A count of zero; no planes or more than [`PLANES_MAX`]; two planes of one name; a plane
    /// that declares B, L, K or N; planes whose numbers of heads differ; a page size that is not a
    /// multiple of the tokens of a plane's entry; a size that does not fit [`BYTES_MAX`].
    pub fn new(
        num_blocks: u64,
        num_layers: u64,
        page_size: u64,
        planes: Vec<Plane>,
    ) -> Result<Shape, LayoutError> {
        for (what, count) in [
            ("num_blocks", num_blocks),
            ("num_layers", num_layers),
            ("page_size", page_size),
        ] {
            if count == 0 {
                return Err(LayoutError::Shape(ShapeError::ZeroExtent {
                    what: what.into(),
                }));
            }
        }
        check_planes(&planes)?;
        check_page(&planes, page_size)?;
        let mut shape = Shape {
            num_blocks,
            num_layers,
            page_size,
            planes,
            shard: Shard::default(),
        };
        shape.shard = Shard::whole(num_layers, shape.num_heads());
        shape.total_bytes()?;
        Ok(shape)
    }

    /// Keys and values of equal size: planes `k` and `v`, `num_heads` heads of `head_size` units. `unit` is a
    /// [`Unit`] or the name of a data type, such as `"bf16"`.
    ///
    /// ```
    /// use kvtile_layout::Shape;
    ///
    /// // 8 blocks of 16 tokens, 4 layers, 2 KV heads of 64 bf16 values.
    /// let shape = Shape::key_value(8, 4, 16, 2, 64, "bf16")?;
    /// assert_eq!(shape.block_bytes()?, 4 * 2 * 16 * 2 * 64 * 2);
    /// # Ok::<(), kvtile_layout::LayoutError>(())
    /// ```
    ///
    /// # Errors
    /// As for [`Shape::new`]; a name that is no data type ([`ShapeError::UnknownDtype`]).
    pub fn key_value(
        num_blocks: u64,
        num_layers: u64,
        page_size: u64,
        num_heads: u64,
        head_size: u64,
        unit: impl TryInto<Unit, Error: Into<LayoutError>>,
    ) -> Result<Shape, LayoutError> {
        let unit: Unit = unit.try_into().map_err(Into::into)?;
        let plane = |name| -> Result<Plane, LayoutError> {
            Ok(Plane::new(name, unit.clone())?
                .extent(Axis::H, num_heads)
                .extent(Axis::C, head_size))
        };
        let planes = vec![plane("k")?, plane("v")?];
        Shape::new(num_blocks, num_layers, page_size, planes)
    }

    /// The same shape as a part of a larger model.
    ///
    /// # Errors
    /// Ranges whose lengths are not this shape's layers and heads, or that lie outside the model.
    pub fn with_shard(mut self, shard: Shard) -> Result<Shape, LayoutError> {
        shard.check(self.num_layers, self.num_heads())?;
        self.shard = shard;
        Ok(self)
    }

    /// The shape of the same blocks in another part of the model.
    ///
    /// # Errors
    /// Ranges that are empty, that lie outside the model, or that have another number of heads where
    /// no plane has heads; a size that does not fit [`BYTES_MAX`].
    pub fn of_shard(&self, shard: Shard) -> Result<Shape, LayoutError> {
        let heads = shard.heads.count;
        let planes = self.planes.iter().map(|plane| plane.with_heads(heads));
        Shape::new(
            self.num_blocks,
            shard.layers.count,
            self.page_size,
            planes.collect(),
        )?
        .with_shard(shard)
    }

    /// The same shape with another number of blocks.
    ///
    /// # Errors
    /// Zero blocks, or a size that does not fit.
    pub fn with_num_blocks(&self, num_blocks: u64) -> Result<Shape, LayoutError> {
        Shape::new(
            num_blocks,
            self.num_layers,
            self.page_size,
            self.planes.clone(),
        )?
        .with_shard(self.shard)
    }

    /// Number of blocks.
    #[must_use]
    pub fn num_blocks(&self) -> u64 {
        self.num_blocks
    }

    /// Number of layers held here.
    #[must_use]
    pub fn num_layers(&self) -> u64 {
        self.num_layers
    }

    /// Tokens per block.
    #[must_use]
    pub fn page_size(&self) -> u64 {
        self.page_size
    }

    /// KV heads held here; 1 where no plane declares heads.
    #[must_use]
    pub fn num_heads(&self) -> u64 {
        self.planes
            .iter()
            .find(|plane| plane.has(Axis::H))
            .map_or(1, |plane| plane.extent_of(Axis::H))
    }

    /// The planes, in the order in which K enumerates them.
    #[must_use]
    pub fn planes(&self) -> &[Plane] {
        &self.planes
    }

    /// The part of the whole model that this shape is.
    #[must_use]
    pub fn shard(&self) -> Shard {
        self.shard
    }

    /// Extent of `axis` in `plane`: 1 for an axis that the plane does not have.
    #[must_use]
    pub fn extent(&self, plane: &Plane, axis: Axis) -> u64 {
        match axis {
            Axis::B => self.num_blocks,
            Axis::L => self.num_layers,
            Axis::N => plane.entries(self.page_size),
            Axis::K => 1,
            other => plane.extent_of(other),
        }
    }

    /// Payload bytes of one block: all layers and planes, without padding.
    ///
    /// # Errors
    /// A size that does not fit [`BYTES_MAX`].
    pub fn block_bytes(&self) -> Result<u64, LayoutError> {
        let mut sum = 0u64;
        for plane in &self.planes {
            let mut bytes = plane.unit().bytes();
            let entries = self.extent(plane, Axis::N);
            let extents = plane.extents().iter().map(|(_, extent)| *extent);
            for extent in extents.chain([self.num_layers, entries]) {
                bytes = checked(bytes.checked_mul(extent), "bytes of a block")?;
            }
            sum = checked(sum.checked_add(bytes), "bytes of a block")?;
        }
        Ok(sum)
    }

    /// Payload bytes of all blocks, without padding.
    ///
    /// # Errors
    /// A size that does not fit [`BYTES_MAX`].
    pub fn total_bytes(&self) -> Result<u64, LayoutError> {
        checked(
            self.block_bytes()?.checked_mul(self.num_blocks),
            "bytes of all blocks",
        )
    }

    /// Whether `axis` is standard or declared by a plane.
    #[must_use]
    pub fn knows(&self, axis: Axis) -> bool {
        axis.is_standard() || self.planes.iter().any(|plane| plane.has(axis))
    }
}

fn check_planes(planes: &[Plane]) -> Result<(), LayoutError> {
    if planes.is_empty() || planes.len() > PLANES_MAX {
        return Err(LayoutError::Shape(ShapeError::PlaneCount {
            count: planes.len(),
        }));
    }
    let mut heads: Option<(&Plane, u64)> = None;
    for (i, plane) in planes.iter().enumerate() {
        plane.check()?;
        if planes.iter().take(i).any(|p| p.name() == plane.name()) {
            return Err(LayoutError::Shape(ShapeError::DuplicatePlane {
                plane: plane.name().clone(),
            }));
        }
        if plane.has(Axis::H) {
            let count = plane.extent_of(Axis::H);
            match heads {
                Some((first, first_count)) if first_count != count => {
                    return Err(LayoutError::Shape(ShapeError::HeadsDiffer {
                        first: first.name().clone(),
                        first_count,
                        second: plane.name().clone(),
                        second_count: count,
                    }));
                }
                _ => heads = Some((plane, count)),
            }
        }
    }
    Ok(())
}

/// Checks that a page has a whole number of entries of each plane.
fn check_page(planes: &[Plane], page_size: u64) -> Result<(), LayoutError> {
    let is_cut = |tokens: u64| !page_size.is_multiple_of(tokens);
    let cut = |plane: &&Plane| plane.per().tokens().is_some_and(is_cut);
    match planes.iter().find(cut) {
        None => Ok(()),
        Some(plane) => Err(LayoutError::Shape(ShapeError::PageNotMultiple {
            plane: plane.name().clone(),
            per: plane.per(),
            page_size,
        })),
    }
}

/// A checked size, or the error that names it.
pub(crate) fn checked(size: Option<u64>, what: &'static str) -> Result<u64, LayoutError> {
    size.filter(|&bytes| bytes <= BYTES_MAX)
        .ok_or(LayoutError::Shape(ShapeError::TooLarge { what }))
}
