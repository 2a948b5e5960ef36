//! Strides of imported tensors: their validity, and the order that they give.

use super::{DimRole, TensorError, TensorFormat, TensorView, view::DimDigit};
use crate::{
    axis::Axis,
    error::{LayoutError, ShapeError},
    unit::UNIT_BYTES_MAX,
};

/// Most dimensions of a tensor.
const DIMENSIONS_MAX: usize = 16;

/// The order of tokens and heads by roles and strides, which must be the same for all tensors.
/// Sizes and the order of the dimensions do not count: a transposed view has the order of its
/// strides.
///
/// Strides of dimensions of size 1 are ignored. With one token or one head both orders are the same
/// bytes, and the result is NHD. The result is Unknown where no dimension names tokens or heads,
/// where content lies outside them, and where tiles mix them.
///
/// # Errors
/// No tensors; a tensor without roles, or without one role and one stride for each size; sizes of
/// zero; strides that are zero, negative or below the span of the faster dimensions; tensors with
/// different orders.
pub fn validate_tensor_strides(tensors: &[TensorView]) -> Result<TensorFormat, LayoutError> {
    let mut common = None;
    for (tensor, view) in tensors.iter().enumerate() {
        check_tensor(tensor, view)?;
        let Some(roles) = &view.roles else {
            return Err(TensorError::RolesMissing { tensor }.into());
        };
        let found = format_of(view, roles);
        let expected = *common.get_or_insert(found);
        if found != expected {
            return Err(TensorError::FormatsDiffer {
                tensor,
                found,
                expected,
            }
            .into());
        }
    }
    common.ok_or_else(|| TensorError::NoTensors.into())
}

/// Checks that the dimensions match, sizes and elements are not zero, and strides are positive and
/// nest.
pub(super) fn check_tensor(tensor: usize, view: &TensorView) -> Result<(), LayoutError> {
    let sizes = view.shape.len();
    let roles = view.roles.as_ref().map_or(sizes, Vec::len);
    if sizes != view.strides.len() || sizes != roles || sizes > DIMENSIONS_MAX {
        return Err(TensorError::Dimensions {
            tensor,
            sizes,
            strides: view.strides.len(),
            roles,
            max: DIMENSIONS_MAX,
        }
        .into());
    }
    let bytes = view.element_bytes as u64;
    if bytes == 0 || bytes > UNIT_BYTES_MAX {
        return Err(TensorError::ElementBytes {
            tensor,
            bytes,
            max: UNIT_BYTES_MAX,
        }
        .into());
    }
    if let Some(dim) = view.shape.iter().position(|&size| size == 0) {
        return Err(LayoutError::Shape(ShapeError::ZeroExtent {
            what: format!("dimension {dim} of tensor {tensor}"),
        }));
    }
    let mut dims = Vec::new();
    for (dim, (&size, &stride)) in view.shape.iter().zip(&view.strides).enumerate() {
        match (size, u64::try_from(stride)) {
            (1, _) => {}
            (_, Ok(0)) => return Err(TensorError::ZeroStride { tensor, dim, size }.into()),
            (_, Ok(stride)) => dims.push((stride, size as u64, dim)),
            (_, Err(_)) => {
                return Err(TensorError::NegativeStride {
                    tensor,
                    dim,
                    stride,
                }
                .into());
            }
        }
    }
    dims.sort_unstable();
    let mut span = 1u64;
    for (stride, size, dim) in dims {
        if stride < span {
            return Err(TensorError::OverlappingStride {
                tensor,
                dim,
                stride,
                span,
            }
            .into());
        }
        span = span.saturating_add(stride.saturating_mul(size - 1));
    }
    Ok(())
}

fn format_of(view: &TensorView, roles: &[DimRole]) -> TensorFormat {
    let named = |axis| roles.iter().any(|role| role.mentions(axis));
    if !named(Axis::N) || !named(Axis::H) {
        return TensorFormat::Unknown;
    }
    let (mut tokens, mut heads, mut content) = (Vec::new(), Vec::new(), Vec::new());
    for (role, (&size, &stride)) in roles.iter().zip(view.shape.iter().zip(&view.strides)) {
        for (axis, stride) in axis_strides(role, size as u64, stride.unsigned_abs() as u64) {
            match axis {
                Axis::N => tokens.push(stride),
                Axis::H => heads.push(stride),
                Axis::B | Axis::L | Axis::K => {}
                _ => content.push(stride),
            }
        }
    }
    let outside = |outer: &[u64], inner: &[u64]| match (outer.iter().min(), inner.iter().max()) {
        (Some(outer), Some(inner)) => outer > inner,
        _ => true,
    };
    if !outside(&tokens, &content) || !outside(&heads, &content) {
        TensorFormat::Unknown
    } else if outside(&tokens, &heads) {
        TensorFormat::NHD
    } else if outside(&heads, &tokens) {
        TensorFormat::HND
    } else {
        TensorFormat::Unknown
    }
}

/// The strides, in elements, of the axes in a dimension, without those of extent 1.
fn axis_strides(role: &DimRole, size: u64, stride: u64) -> Vec<(Axis, u64)> {
    match role {
        _ if size == 1 => Vec::new(),
        DimRole::Axis(axis) | DimRole::Packed { axis, .. } => vec![(*axis, stride)],
        DimRole::Planes(_) | DimRole::Single => Vec::new(),
        DimRole::Digits(digits) => with_strides(digits, stride)
            .filter(|(digit, _)| digit.extent > 1)
            .map(|(digit, stride)| (digit.axis, stride))
            .collect(),
    }
}

/// The digits of one dimension, fastest first, with the stride of each; strides saturate.
pub(super) fn with_strides(
    digits: &[DimDigit],
    stride: u64,
) -> impl Iterator<Item = (&DimDigit, u64)> {
    digits.iter().rev().scan(stride, |next, digit| {
        let stride = *next;
        *next = stride.saturating_mul(digit.extent);
        Some((digit, stride))
    })
}
