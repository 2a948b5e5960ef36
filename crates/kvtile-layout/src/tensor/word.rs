//! A word over tensors: the word gives the interior order, the tensors give the strides.
//!
//! ```text
//! word ──resolve──► digits over dense bytes ──┐
//!                                              ├─► digits over the tensors' bytes
//! sizes and strides, slowest first: dense byte ┘
//! number ──► offset of that byte in the tensor
//! ```
//!
//! A word describes memory. Sizes count little here, because the shapes of engines do not always
//! match memory; strides and their gaps decide. `order` refuses a tensor that could be read in two
//! orders.

use super::{TensorError, TensorView, order, strides::check_tensor};
use crate::{
    broken::broken,
    error::{LayoutError, ShapeError},
    shape::{BYTES_MAX, Plane, Shape},
    strided::{AddressStep, Digit, PlaneDigits, PlanePiece, StridedLayout},
    word::Word,
};

/// The layout of `word` over tensors, where tensor `i` holds the word's region `i`. The elements of
/// a tensor, in the order of its dimensions, are the bytes of that region. Gaps of the strides stay
/// gaps. Roles, layers and planes of the tensors are ignored.
///
/// A word has memory order, so the dimensions must have it too, slowest first. A view in another
/// order must be permuted first, which moves no byte. Sizes may differ from those of the word's
/// axes: flat tensors and fused dimensions are fine.
///
/// # Errors
/// The errors of [`StridedLayout::resolve`]; a number of tensors that differs from the number of
/// regions; tensors of one plane that differ from each other, or have not the bytes of their region; strides that
/// are zero, negative or overlapping; dimensions in another order than their strides, and sizes
/// that are those of the word's axes in another order, because both allow two readings; a gap
/// inside what the word keeps contiguous; regions at uneven distances.
pub fn word_over_tensors(
    word: &Word,
    shape: &Shape,
    tensors: &[TensorView],
    region_bytes: &[u64],
    alignment: u64,
) -> Result<StridedLayout, LayoutError> {
    let dense = StridedLayout::resolve(word, shape, 1)?;
    let needed = dense.region_bytes().len();
    if tensors.len() != needed {
        return Err(TensorError::RegionTensors {
            given: tensors.len(),
            needed,
            word: word.to_string(),
        }
        .into());
    }
    for (tensor, (view, &bytes)) in tensors.iter().zip(dense.region_bytes()).enumerate() {
        check_tensor(tensor, view)?;
        check_bytes(tensor, view, bytes)?;
        order::check_dimensions(tensor, view, word)?;
    }
    let mut planes = Vec::new();
    for (plane, piece) in dense.planes() {
        let first = base_of(piece, tensors);
        for region in regions_of(piece) {
            check_alike((region, piece.region()), tensors)?;
        }
        planes.push(place(plane, piece, &TensorDims::of(first)?, tensors)?);
    }
    order::check_sizes(tensors, word, &dense)?;
    let layout = StridedLayout::from_digits(shape, &planes, region_bytes, alignment)?;
    if !layout.is_injective() {
        return Err(TensorError::TensorsOverlap {
            layout: layout.describe(),
        }
        .into());
    }
    Ok(layout)
}

/// The regions that a plane occupies.
fn regions_of(piece: &PlanePiece) -> Vec<u64> {
    let steps = piece.digits().iter().filter(|d| !d.step.is_local());
    steps.fold(vec![piece.region()], |regions, digit| {
        let along = |region| (0..digit.extent).map(move |i| region + i * digit.step.regions);
        regions.into_iter().flat_map(along).collect()
    })
}

/// The tensor of a plane's first region.
fn base_of<'a>(piece: &PlanePiece, tensors: &'a [TensorView]) -> &'a TensorView {
    match tensor_of(tensors, piece.region()) {
        Some(view) => view,
        None => broken(format_args!(
            "region {} of {} tensors",
            piece.region(),
            tensors.len()
        )),
    }
}

/// Refuses a tensor of a plane that differs from the plane's first one.
fn check_alike((tensor, first): (u64, u64), tensors: &[TensorView]) -> Result<(), LayoutError> {
    let (Some(view), Some(expected)) = (tensor_of(tensors, tensor), tensor_of(tensors, first))
    else {
        broken(format_args!(
            "regions {tensor} and {first} of {} tensors",
            tensors.len()
        ))
    };
    let numbers = |v: &TensorView| (v.shape.clone(), v.strides.clone(), v.element_bytes);
    if numbers(view) == numbers(expected) {
        return Ok(());
    }
    let text = |v: &TensorView| {
        let (sizes, strides, bytes) = (&v.shape, &v.strides, v.element_bytes);
        format!("{sizes:?} with strides {strides:?} of {bytes} bytes an element")
    };
    Err(TensorError::ShapesDiffer {
        tensor: usize::try_from(tensor).unwrap_or(usize::MAX),
        first: usize::try_from(first).unwrap_or(usize::MAX),
        found: text(view),
        expected: text(expected),
    }
    .into())
}

fn check_bytes(tensor: usize, view: &TensorView, expected: u64) -> Result<(), LayoutError> {
    let mut sizes = view.shape.iter();
    let bytes = sizes.try_fold(view.element_bytes as u64, |bytes, &size| {
        bytes.checked_mul(size as u64)
    });
    if bytes == Some(expected) {
        return Ok(());
    }
    Err(TensorError::RegionBytes {
        tensor,
        sizes: view.shape.clone(),
        bytes: bytes.unwrap_or(u64::MAX),
        expected,
    }
    .into())
}

/// One dimension: `size` entries, `dense` bytes apart without gaps and `stride` bytes with them.
#[derive(Clone, Copy, Debug)]
struct TensorDim {
    dense: u64,
    size: u64,
    stride: u64,
}

/// The dimensions of a tensor, fastest first, starting with the bytes of an element; dimensions
/// without a gap between them are merged.
#[derive(Debug)]
struct TensorDims(Vec<TensorDim>);

impl TensorDims {
    fn of(view: &TensorView) -> Result<TensorDims, LayoutError> {
        let element = view.element_bytes as u64;
        let sizes = view.shape.iter().map(|&size| size as u64);
        let strides = view
            .strides
            .iter()
            .map(|stride| stride.unsigned_abs() as u64);
        let mut given: Vec<(u64, u64)> = strides.zip(sizes).filter(|(_, size)| *size > 1).collect();
        given.sort_unstable();
        let mut dims = vec![TensorDim {
            dense: 1,
            size: element,
            stride: 1,
        }];
        let mut dense = element;
        for (stride, size) in given {
            let stride = stride.checked_mul(element).filter(|&s| s <= BYTES_MAX);
            let (Some(stride), Some(next)) = (stride, dense.checked_mul(size)) else {
                return Err(LayoutError::Shape(ShapeError::TooLarge {
                    what: "bytes of a tensor",
                }));
            };
            match dims.last_mut() {
                Some(last) if last.stride.checked_mul(last.size) == Some(stride) => {
                    last.size = last.size.saturating_mul(size);
                }
                _ => dims.push(TensorDim {
                    dense,
                    size,
                    stride,
                }),
            }
            dense = next;
        }
        Ok(TensorDims(dims))
    }

    /// The offset of dense byte `byte`.
    fn position(&self, byte: u64) -> u64 {
        self.0
            .iter()
            .map(|dim| (byte / dim.dense) % dim.size * dim.stride)
            .sum()
    }

    /// The dimension that a step of `step` bytes belongs to, and its number of entries in the step.
    fn entries(&self, step: u64) -> Option<(usize, u64)> {
        let dim = self.0.iter().rposition(|dim| dim.dense <= step)?;
        let dense = self.0.get(dim)?.dense;
        step.is_multiple_of(dense).then_some((dim, step / dense))
    }
}

/// The digits of one plane over the tensors.
fn place(
    plane: &Plane,
    piece: &PlanePiece,
    dims: &TensorDims,
    tensors: &[TensorView],
) -> Result<PlaneDigits, LayoutError> {
    let gap = |what: String| TensorError::TensorGap {
        plane: plane.name().clone(),
        what,
    };
    // The free entries of each dimension: no sum of digits may carry into the next one.
    let mut used: Vec<u64> = dims
        .0
        .iter()
        .map(|dim| (piece.offset() / dim.dense) % dim.size)
        .collect();
    let mut digits = Vec::new();
    let unit = [(1, plane.unit().bytes(), None)];
    let local = piece.digits().iter().filter(|d| d.step.is_local());
    let local = local.map(|d| (d.step.bytes, d.extent, Some(d)));
    for (step, extent, digit) in unit.into_iter().chain(local) {
        let name = digit.map_or_else(|| "a unit".to_owned(), |d| d.axis.to_string());
        for (low, extent, step) in cut(dims, step, extent).ok_or_else(|| gap(name.clone()))? {
            let Some((dim, entries)) = dims.entries(step) else {
                return Err(gap(name).into());
            };
            let (Some(used), Some(TensorDim { stride, .. })) = (used.get_mut(dim), dims.0.get(dim))
            else {
                broken(format_args!("dimension {dim} of {dims:?}"))
            };
            *used = used.saturating_add(entries.saturating_mul(extent - 1));
            if let Some(digit) = digit {
                digits.push(Digit {
                    low: digit.low * low,
                    extent,
                    step: AddressStep::bytes(entries.saturating_mul(*stride)),
                    ..*digit
                });
            } else if dim > 0 {
                // A unit must be contiguous.
                return Err(gap(name).into());
            }
        }
    }
    if used
        .iter()
        .zip(&dims.0)
        .any(|(&used, dim)| used >= dim.size)
    {
        return Err(gap("its parts side by side".to_owned()).into());
    }
    let base = base_of(piece, tensors);
    for digit in piece.digits().iter().filter(|d| !d.step.is_local()) {
        let step = even_step(plane, piece.region(), digit, tensors)?;
        digits.push(Digit { step, ..*digit });
    }
    Ok(PlaneDigits {
        plane: plane.name().to_string(),
        region: base.region,
        offset: base
            .byte_offset
            .saturating_add(dims.position(piece.offset())),
        digits,
    })
}

/// Cuts a digit where one dimension ends and the next begins: `(low, extent, step)`, fastest first.
/// `None` where a dimension ends inside one of its entries.
fn cut(dims: &TensorDims, step: u64, extent: u64) -> Option<Vec<(u64, u64, u64)>> {
    let end = step.checked_mul(extent)?;
    let inside = dims.0.iter().map(|dim| dim.dense);
    let inside = inside.filter(|&dense| dense > step && dense < end);
    let mut parts = Vec::new();
    let mut from = step;
    for to in inside.chain([end]) {
        if !to.is_multiple_of(from) {
            return None;
        }
        parts.push((from / step, to / from, from));
        from = to;
    }
    Some(parts)
}

fn tensor_of(tensors: &[TensorView], region: u64) -> Option<&TensorView> {
    tensors.get(usize::try_from(region).ok()?)
}

/// The step between the tensors that a digit over regions selects; an error where it is uneven.
fn even_step(
    plane: &Plane,
    region: u64,
    digit: &Digit,
    tensors: &[TensorView],
) -> Result<AddressStep, LayoutError> {
    let uneven = |layer| TensorError::UnevenLayers {
        plane: plane.name().clone(),
        layer,
    };
    let at = |index: u64| {
        let view = tensor_of(tensors, region + index * digit.step.regions)?;
        Some((view.region, view.byte_offset))
    };
    let distance = |index: u64| {
        let ((from_region, from), (to_region, to)) = (at(index - 1)?, at(index)?);
        Some(AddressStep {
            regions: to_region.checked_sub(from_region)?,
            bytes: to.checked_sub(from)?,
        })
    };
    let step = distance(1).ok_or_else(|| uneven(1))?;
    match (2..digit.extent).find(|&index| distance(index) != Some(step)) {
        Some(index) => Err(uneven(index).into()),
        None => Ok(step),
    }
}
