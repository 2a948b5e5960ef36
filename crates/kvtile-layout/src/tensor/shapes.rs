//! Sizes of imported tensors: checks whether, and in how many ways, they fit a shape.

use super::{
    DimRole, TensorError, TensorView,
    place::TensorPlacement,
    search::readings,
    strides::check_tensor,
    view::{joined, reading},
};
use crate::{
    error::LayoutError,
    shape::{BYTES_MAX, Plane, Shape},
    strided::{PlaneDigits, StridedLayout},
};

/// The common shape of a set of tensors.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorShape {
    /// Entries of each dimension.
    pub sizes: Vec<usize>,
    /// The role of each dimension.
    pub roles: Vec<DimRole>,
}

/// Checks that all tensors have one shape, with one reading of it that fits `shape`, and returns
/// both.
/// Given roles are checked. Without roles, the sizes must fit `shape` in exactly one way. Two
/// readings that fit are an error that names both, even if one of them is the usual one.
///
/// # Errors
/// No tensors; tensors of different sizes, elements or roles; strides that are zero, negative or
/// overlapping; sizes that do not fit `shape`, or fit it in two ways.
pub fn validate_tensor_shapes(
    tensors: &[TensorView],
    shape: &Shape,
) -> Result<TensorShape, LayoutError> {
    let Some(first) = tensors.first() else {
        return Err(TensorError::NoTensors.into());
    };
    for (tensor, view) in tensors.iter().enumerate() {
        check_tensor(tensor, view)?;
        let same = view.shape == first.shape
            && view.element_bytes == first.element_bytes
            && view.roles == first.roles;
        if !same {
            return Err(TensorError::ShapesDiffer {
                tensor,
                first: 0,
                found: describe(view),
                expected: describe(first),
            }
            .into());
        }
    }
    let mut common = None;
    for (tensor, view) in tensors.iter().enumerate() {
        let roles = roles_of(tensor, view, shape)?;
        let expected = common.get_or_insert_with(|| roles.clone());
        if *expected != roles {
            return Err(TensorError::ShapesDiffer {
                tensor,
                first: 0,
                found: reading(&roles),
                expected: reading(expected),
            }
            .into());
        }
    }
    Ok(TensorShape {
        sizes: first.shape.clone(),
        roles: common.unwrap_or_default(),
    })
}

fn describe(view: &TensorView) -> String {
    let roles = view.roles.as_ref().map_or(String::new(), |r| reading(r));
    format!("{:?} x {} bytes {roles}", view.shape, view.element_bytes)
}

/// The roles of a tensor: the given ones, checked, or the only ones that fit.
pub(super) fn roles_of(
    tensor: usize,
    view: &TensorView,
    shape: &Shape,
) -> Result<Vec<DimRole>, LayoutError> {
    if let Some(roles) = &view.roles {
        fit(tensor, view, roles, shape)?;
        return Ok(roles.clone());
    }
    let mut found = readings(tensor, view, shape).into_iter();
    match (found.next(), found.next()) {
        (Some(roles), None) => Ok(roles),
        (Some(first), Some(second)) => Err(TensorError::TwoReadings {
            sizes: view.shape.clone(),
            first: reading(&first),
            second: reading(&second),
        }
        .into()),
        (None, _) => Err(TensorError::NoReading {
            sizes: view.shape.clone(),
            expected: extents(shape, view.layer.is_none()),
        }
        .into()),
    }
}

/// The extents of the shape, for errors: `B:100 N:16 k[H:8 C:128] v[H:8 C:128]`.
fn extents(shape: &Shape, with_layers: bool) -> String {
    let mut text = format!("B:{} ", shape.num_blocks());
    if with_layers {
        text.push_str(&format!("L:{} ", shape.num_layers()));
    }
    text.push_str(&format!("N:{}", shape.page_size()));
    for plane in shape.planes() {
        let own: Vec<String> = plane
            .extents()
            .iter()
            .map(|(axis, extent)| format!("{axis}:{extent}"))
            .collect();
        text.push_str(&format!(" {}[{}]", plane.name(), own.join(" ")));
    }
    text
}

/// Checks that the tensor with these roles holds its planes, each axis once, without overlap.
pub(super) fn fit(
    tensor: usize,
    view: &TensorView,
    roles: &[DimRole],
    shape: &Shape,
) -> Result<(), LayoutError> {
    let placement = TensorPlacement {
        tensor,
        view,
        roles,
        shape,
    };
    let layers = match (placement.has_layers(), view.layer) {
        (true, None) => shape.num_layers(),
        (false, Some(layer)) if layer < shape.num_layers() => 1,
        (false, None) if shape.num_layers() == 1 => 1,
        _ => {
            return Err(TensorError::WhichLayer {
                tensor,
                num_layers: shape.num_layers(),
            }
            .into());
        }
    };
    let held: Vec<Plane> = placement.planes()?.into_iter().cloned().collect();
    let held = Shape::new(shape.num_blocks(), layers, shape.page_size(), held)?;
    let digits: Vec<PlaneDigits> = placement
        .digits()?
        .into_iter()
        .map(|digits| PlaneDigits {
            region: 0,
            ..digits
        })
        .collect();
    StridedLayout::from_digits(&held, &digits, &[BYTES_MAX], 1)?;
    Ok(())
}

impl TensorShape {
    /// The reading as text: `[B, (k,v), N, H, C]`.
    #[must_use]
    pub fn describe(&self) -> String {
        let planes = self.roles.iter().filter_map(DimRole::named_planes).next();
        let planes = planes.map_or(String::new(), |planes| {
            format!(", planes {}", joined(planes))
        });
        format!("{} of sizes {:?}{planes}", reading(&self.roles), self.sizes)
    }
}
