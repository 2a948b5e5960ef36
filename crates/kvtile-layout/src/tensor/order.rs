//! Checks that a word and a tensor have the same order. A word describes memory, from the slowest
//! axis to the fastest. A tensor has dimensions in an order of its own, and sizes that may fit the
//! word in another order. This module knows no byte positions.

use super::{TensorError, TensorView};
use crate::{
    error::LayoutError,
    strided::{PlanePiece, StridedLayout},
    word::Word,
};

/// Refuses a tensor whose dimensions are not in memory order: the word could apply to the
/// dimensions as listed or to memory, and sizes do not decide. Dimensions of size 1 are ignored.
///
/// The caller has checked the strides: they are positive and differ where sizes are above 1.
pub(super) fn check_dimensions(
    tensor: usize,
    view: &TensorView,
    word: &Word,
) -> Result<(), LayoutError> {
    let dims = view.strides.iter().zip(&view.shape).enumerate();
    let shown: Vec<(isize, usize)> = dims
        .filter(|(_, (_, size))| **size > 1)
        .map(|(dim, (stride, _))| (*stride, dim))
        .collect();
    let mut memory = shown.clone();
    memory.sort_unstable_by(|a, b| b.cmp(a));
    if memory == shown {
        return Ok(());
    }
    // Dimensions of size 1 keep their positions.
    let mut slowest = memory.into_iter().map(|(_, dim)| dim);
    let order: Vec<usize> = (0..view.shape.len())
        .map(|dim| match view.shape.get(dim) {
            Some(size) if *size > 1 => slowest.next().unwrap_or(dim),
            _ => dim,
        })
        .collect();
    Err(TensorError::TwoOrders {
        tensor,
        word: word.to_string().into(),
        shown: view.shape.clone().into(),
        order: order.into(),
    }
    .into())
}

/// Refuses tensors whose sizes are a permutation of the word's in another order. Sizes that are no
/// such permutation are accepted, and so are sizes that match one of several planes in this order.
pub(super) fn check_sizes(
    tensors: &[TensorView],
    word: &Word,
    dense: &StridedLayout,
) -> Result<(), LayoutError> {
    let mut regions: Vec<u64> = dense.pieces().iter().map(PlanePiece::region).collect();
    regions.sort_unstable();
    regions.dedup();
    let refused = regions.iter().find_map(|&region| {
        let view = tensors.get(usize::try_from(region).ok()?)?;
        Some((view, other_order(view, region, dense)?))
    });
    let Some((view, axes)) = refused else {
        // Every region has one reading.
        return Ok(());
    };
    let of_word = axes.iter().map(|(axis, n)| format!("{axis} {n}"));
    Err(TensorError::SizesInOtherOrder {
        word: word.to_string().into(),
        sizes: view.shape.clone().into(),
        of_word: of_word.collect::<Vec<_>>().join(", ").into(),
    }
    .into())
}

/// The word's axes inside `region`, where the sizes are a permutation of theirs in another order.
fn other_order(
    view: &TensorView,
    region: u64,
    dense: &StridedLayout,
) -> Option<Vec<(String, u64)>> {
    let element = view.element_bytes as u64;
    let mut refused = None;
    for (plane, piece) in dense.planes().filter(|(_, piece)| piece.region() == region) {
        let axes = axes_of(piece, dense)?;
        // Where elements are smaller than units, the fastest extent counts bytes.
        let (unit, element) = match plane.unit().bytes() {
            unit if unit == element => (1, 1),
            unit => (unit, element),
        };
        let said = folded(axes.iter().map(|(_, n)| *n), unit);
        let given = folded(view.shape.iter().map(|&n| n as u64), element);
        if given == said {
            return None;
        }
        if sorted(&given) == sorted(&said) {
            refused.get_or_insert(axes);
        }
    }
    refused
}

/// The axes of one plane inside a region with their extents, slowest first, without those of extent
/// 1, and including the order of the planes. `None` where the planes of a region lie at uneven
/// distances.
fn axes_of(piece: &PlanePiece, dense: &StridedLayout) -> Option<Vec<(String, u64)>> {
    let local = piece.digits().iter().filter(|digit| digit.step.is_local());
    let mut axes: Vec<(u64, String, u64)> = local
        .map(|digit| (digit.step.bytes, digit.axis.to_string(), digit.extent))
        .collect();
    let beside = dense
        .pieces()
        .iter()
        .filter(|p| p.region() == piece.region());
    let mut offsets: Vec<u64> = beside.map(PlanePiece::offset).collect();
    offsets.sort_unstable();
    let mut steps = offsets.windows(2).map(|pair| match pair {
        [from, to] => to - from,
        _ => 0,
    });
    if let Some(step) = steps.next() {
        if steps.any(|other| other != step) {
            return None;
        }
        axes.push((step, "K".to_owned(), offsets.len() as u64));
    }
    axes.sort_by_key(|(step, _, _)| std::cmp::Reverse(*step));
    let axes = axes.into_iter().map(|(_, axis, extent)| (axis, extent));
    Some(axes.filter(|(_, extent)| *extent > 1).collect())
}

/// Extents above 1, slowest first, with the fastest one multiplied by `bytes`.
fn folded(extents: impl Iterator<Item = u64>, bytes: u64) -> Vec<u64> {
    let mut extents: Vec<u64> = extents.filter(|extent| *extent > 1).collect();
    if let Some(fastest) = extents.last_mut() {
        *fastest = fastest.saturating_mul(bytes);
    }
    extents
}

fn sorted(sizes: &[u64]) -> Vec<u64> {
    let mut sizes = sizes.to_vec();
    sizes.sort_unstable();
    sizes
}
