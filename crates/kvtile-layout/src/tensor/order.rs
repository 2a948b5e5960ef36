//! Whether a word and a tensor say the same order. A word speaks of memory, from the slowest axis to
//! the fastest; a tensor shows its dimensions in an order of its own, and has sizes that may fit the
//! word in another order. This module does not know where bytes lie.

use super::{TensorError, TensorView};
use crate::{
    error::LayoutError,
    strided::{Piece, StridedLayout},
    word::Word,
};

/// Refuses a tensor whose dimensions are not in the order of memory: the word could be read along the
/// dimensions as shown, or along memory. Sizes do not decide. Dimensions of size 1 say nothing.
///
/// The strides were checked: they are positive and differ where sizes are above 1.
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
    // Dimensions of size 1 stay where they are.
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

/// Refuses tensors whose sizes are those of the word in another order. Sizes that are no such
/// permutation say nothing, and neither do those that one of several planes has in this order.
pub(super) fn check_sizes(
    view: &TensorView,
    word: &Word,
    dense: &StridedLayout,
) -> Result<(), LayoutError> {
    let mut regions: Vec<u64> = dense.pieces().iter().map(Piece::region).collect();
    regions.sort_unstable();
    regions.dedup();
    let refused = regions
        .iter()
        .find_map(|&region| other_order(view, region, dense));
    let Some(axes) = refused else {
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

/// The word's axes inside `region`, where the sizes are theirs in another order.
fn other_order(
    view: &TensorView,
    region: u64,
    dense: &StridedLayout,
) -> Option<Vec<(String, u64)>> {
    let element = view.element_bytes as u64;
    let mut refused = None;
    for (plane, piece) in dense.planes().filter(|(_, piece)| piece.region() == region) {
        let axes = axes_of(piece, dense)?;
        // Where elements are smaller than units, the fastest ones in bytes.
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

/// The axes of one plane inside a region with their extents, slowest first, without those of extent 1;
/// the order of the planes among them. `None` where the planes of a region lie at uneven distances.
fn axes_of(piece: &Piece, dense: &StridedLayout) -> Option<Vec<(String, u64)>> {
    let local = piece.digits().iter().filter(|digit| digit.step.is_local());
    let mut axes: Vec<(u64, String, u64)> = local
        .map(|digit| (digit.step.bytes, digit.axis.to_string(), digit.extent))
        .collect();
    let beside = dense
        .pieces()
        .iter()
        .filter(|p| p.region() == piece.region());
    let mut offsets: Vec<u64> = beside.map(Piece::offset).collect();
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

/// Extents above 1, slowest first, the fastest one times `bytes`.
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
