//! Imported tensors: sizes, strides and the role of each dimension.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{axis::Axis, error::LayoutError, shape::PlaneName};

/// The order of tokens and heads in imported tensors.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum TensorFormat {
    /// Tokens outside heads. It includes one token or one head, since both orders are the same
    /// bytes then.
    NHD,
    /// Heads outside tokens.
    HND,
    /// Neither: heads or tokens have no dimension, lie inside the content, or are cut into tiles.
    Unknown,
}

/// One tensor as an engine describes it. Fields are unchecked until use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorView {
    /// Entries of each dimension.
    pub shape: Vec<usize>,
    /// Elements between neighbouring entries of each dimension.
    pub strides: Vec<isize>,
    /// Bytes of an element.
    pub element_bytes: usize,
    /// Region that holds the tensor.
    pub region: u64,
    /// Offset of the first element in that region, in bytes.
    pub byte_offset: u64,
    /// The role of each dimension. Without roles, the shape must fit the sizes in exactly one way.
    pub roles: Option<Vec<DimRole>>,
    /// The layer of the tensor; `None` where a dimension is L or there is only one layer.
    pub layer: Option<u64>,
    /// The plane of the tensor; `None` where a dimension names it or there is only one plane.
    pub plane: Option<PlaneName>,
}

impl TensorView {
    /// A tensor at the start of region 0 without roles, layer or plane.
    #[must_use]
    pub fn new(shape: &[usize], strides: &[isize], element_bytes: usize) -> TensorView {
        TensorView {
            shape: shape.to_vec(),
            strides: strides.to_vec(),
            element_bytes,
            region: 0,
            byte_offset: 0,
            roles: None,
            layer: None,
            plane: None,
        }
    }

    /// Moves the tensor to another region and offset.
    #[must_use]
    pub fn at(mut self, region: u64, byte_offset: u64) -> TensorView {
        self.region = region;
        self.byte_offset = byte_offset;
        self
    }

    /// Sets the roles, one per dimension.
    #[must_use]
    pub fn with_roles(mut self, roles: impl IntoIterator<Item = DimRole>) -> TensorView {
        self.roles = Some(roles.into_iter().collect());
        self
    }

    /// Sets the layer of the tensor.
    #[must_use]
    pub fn with_layer(mut self, layer: u64) -> TensorView {
        self.layer = Some(layer);
        self
    }

    /// Sets the plane of the tensor.
    #[must_use]
    pub fn with_plane(mut self, plane: PlaneName) -> TensorView {
        self.plane = Some(plane);
        self
    }
}

/// The role of one dimension of a tensor.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum DimRole {
    /// A whole axis other than K ([`DimRole::Planes`] gives the order of the planes). The fastest
    /// dimension may also count bytes or units, as a byte tensor of quantised records does.
    Axis(Axis),
    /// Digits of one or several axes in one dimension, slowest first.
    Digits(Vec<DimDigit>),
    /// One entry for each of these planes, in this order.
    Planes(Vec<PlaneName>),
    /// These planes one after the other along `axis`, in this order: K then V in `2 * head_size`,
    /// or a latent, scales and a rope part in one row of bytes.
    Packed {
        /// The axis.
        axis: Axis,
        /// The planes.
        planes: Vec<PlaneName>,
    },
    /// A dimension of size 1 without meaning.
    Single,
}

/// One digit of an axis in a dimension: `(index / low) % extent`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct DimDigit {
    /// The axis.
    pub axis: Axis,
    /// The modulus below the digit.
    pub low: u64,
    /// How many values it takes.
    pub extent: u64,
}

impl DimRole {
    /// Whole axes in one dimension with their extents, slowest first: `H` and `C` of a fused inner
    /// dimension.
    #[must_use]
    pub fn fused(axes: &[(Axis, u64)]) -> DimRole {
        let whole = |&(axis, extent): &(Axis, u64)| DimDigit {
            axis,
            low: 1,
            extent,
        };
        DimRole::Digits(axes.iter().map(whole).collect())
    }

    /// The block dimension where an engine cuts each block of `page_size` tokens into kernel blocks
    /// of `kernel_tokens` tokens. [`DimRole::kernel_tokens`] is the dimension of the tokens inside.
    #[must_use]
    pub fn kernel_blocks(num_blocks: u64, page_size: u64, kernel_tokens: u64) -> DimRole {
        DimRole::Digits(vec![
            DimDigit {
                axis: Axis::B,
                low: 1,
                extent: num_blocks,
            },
            DimDigit {
                axis: Axis::N,
                low: kernel_tokens,
                extent: page_size.checked_div(kernel_tokens).unwrap_or(0),
            },
        ])
    }

    /// The tokens of a kernel block.
    #[must_use]
    pub fn kernel_tokens(kernel_tokens: u64) -> DimRole {
        DimRole::fused(&[(Axis::N, kernel_tokens)])
    }

    /// One entry for each of the planes called `names`.
    ///
    /// # Errors
    /// A bad plane name.
    pub fn planes(names: &[&str]) -> Result<DimRole, LayoutError> {
        Ok(DimRole::Planes(plane_names(names)?))
    }

    /// The planes called `names` one after the other along `axis`.
    ///
    /// # Errors
    /// A bad plane name.
    pub fn packed(axis: Axis, names: &[&str]) -> Result<DimRole, LayoutError> {
        Ok(DimRole::Packed {
            axis,
            planes: plane_names(names)?,
        })
    }

    /// The planes that the role names.
    pub(super) fn named_planes(&self) -> Option<&[PlaneName]> {
        match self {
            DimRole::Planes(planes) | DimRole::Packed { planes, .. } => Some(planes),
            DimRole::Axis(_) | DimRole::Digits(_) | DimRole::Single => None,
        }
    }

    /// Whether the role has a digit of `axis`.
    pub(super) fn mentions(&self, axis: Axis) -> bool {
        match self {
            DimRole::Axis(a) | DimRole::Packed { axis: a, .. } => *a == axis,
            DimRole::Digits(digits) => digits.iter().any(|d| d.axis == axis),
            DimRole::Planes(_) | DimRole::Single => false,
        }
    }
}

fn plane_names(names: &[&str]) -> Result<Vec<PlaneName>, LayoutError> {
    names.iter().map(|name| PlaneName::new(name)).collect()
}

impl fmt::Display for DimRole {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DimRole::Axis(axis) => write!(f, "{axis}"),
            DimRole::Digits(digits) => digits.iter().try_for_each(|d| match d.low {
                1 => write!(f, "{}:{}", d.axis, d.extent),
                low => write!(f, "{}/{low}:{}", d.axis, d.extent),
            }),
            DimRole::Planes(planes) => write!(f, "({})", joined(planes)),
            DimRole::Packed { axis, planes } => write!(f, "({}){axis}", joined(planes)),
            DimRole::Single => f.write_str("1"),
        }
    }
}

/// Names with commas between them.
pub(super) fn joined(planes: &[PlaneName]) -> String {
    let names: Vec<&str> = planes.iter().map(PlaneName::as_str).collect();
    names.join(",")
}

/// Roles as text: `[B, (k,v), N, H, C]`.
pub(super) fn reading(roles: &[DimRole]) -> String {
    let roles: Vec<String> = roles.iter().map(DimRole::to_string).collect();
    format!("[{}]", roles.join(", "))
}
