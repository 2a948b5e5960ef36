//! Builds a layout from the tensors of an engine.

use super::{
    TensorError, TensorView, place::TensorPlacement, shapes::roles_of, strides::check_tensor,
};
use crate::{
    axis::Axis,
    error::LayoutError,
    shape::{Plane, Shape},
    strided::{AddressStep, Digit, PlaneDigits, StridedLayout},
};

/// Builds the layout of `tensors` for `shape`, over regions of the given sizes in bytes.
///
/// One tensor holds all layers (a dimension is L), or each tensor holds one layer at an even step:
/// in regions with the numbers of the layers, or in one region at even distances. Planes lie in one
/// tensor or in several. [`validate_tensor_shapes`](super::validate_tensor_shapes) describes how
/// missing roles are found.
///
/// # Errors
/// As for `validate_tensor_shapes`; planes or layers that are missing, doubled or unevenly spaced;
/// tensors outside their regions; tensors that may share bytes.
pub fn layout_from_tensors(
    tensors: &[TensorView],
    shape: &Shape,
    region_bytes: &[u64],
    alignment: u64,
) -> Result<StridedLayout, LayoutError> {
    if tensors.is_empty() {
        return Err(TensorError::NoTensors.into());
    }
    let mut placed = Vec::new();
    for (tensor, view) in tensors.iter().enumerate() {
        check_tensor(tensor, view)?;
        let roles = roles_of(tensor, view, shape)?;
        let placement = TensorPlacement {
            tensor,
            view,
            roles: &roles,
            shape,
        };
        let all_layers = placement.has_layers() || shape.num_layers() == 1;
        let layer = (!all_layers).then_some(view.layer).flatten();
        placed.extend(placement.digits()?.into_iter().map(|d| (layer, d)));
    }
    let planes = shape
        .planes()
        .iter()
        .map(|plane| join_layers(plane, shape.num_layers(), &placed))
        .collect::<Result<Vec<_>, _>>()?;
    let layout = StridedLayout::from_digits(shape, &planes, region_bytes, alignment)?;
    if !layout.is_injective() {
        return Err(TensorError::TensorsOverlap {
            layout: layout.describe(),
        }
        .into());
    }
    Ok(layout)
}

/// The digits of one plane over all layers. A placed tensor without a layer contains all layers.
fn join_layers(
    plane: &Plane,
    num_layers: u64,
    placed: &[(Option<u64>, PlaneDigits)],
) -> Result<PlaneDigits, LayoutError> {
    let mut mine: Vec<&(Option<u64>, PlaneDigits)> = placed
        .iter()
        .filter(|(_, digits)| digits.plane == plane.name().as_str())
        .collect();
    if let [(None, digits)] = mine.as_slice() {
        return Ok(digits.clone());
    }
    for layer in 0..num_layers {
        let count = mine
            .iter()
            .filter(|(l, _)| l.is_none_or(|l| l == layer))
            .count();
        if count != 1 {
            return Err(TensorError::LayerCount {
                plane: plane.name().clone(),
                layer,
                count,
            }
            .into());
        }
    }
    mine.sort_by_key(|(layer, _)| *layer);
    let uneven = |layer: u64| TensorError::UnevenLayers {
        plane: plane.name().clone(),
        layer,
    };
    let [(_, first), (_, second), ..] = mine.as_slice() else {
        return Err(uneven(0).into());
    };
    let step = distance(first, second).ok_or_else(|| uneven(1))?;
    for (layer, pair) in (1u64..).zip(mine.windows(2)) {
        let [(_, before), (_, after)] = pair else {
            continue;
        };
        if before.digits != after.digits || distance(before, after) != Some(step) {
            return Err(uneven(layer).into());
        }
    }
    let mut joined = first.clone();
    joined.digits.push(Digit {
        axis: Axis::L,
        low: 1,
        extent: num_layers,
        step,
    });
    Ok(joined)
}

fn distance(from: &PlaneDigits, to: &PlaneDigits) -> Option<AddressStep> {
    Some(AddressStep {
        regions: to.region.checked_sub(from.region)?,
        bytes: to.offset.checked_sub(from.offset)?,
    })
}
