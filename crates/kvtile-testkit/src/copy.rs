//! The naive copy, which copies unit by unit.

use kvtile_layout::{Axis, BlockPair, CopyPlan, Location, Plane, RangePair, Selection, Shape};

use crate::{
    error::TestkitError,
    image::{Image, check_regions, unit_bytes, unit_bytes_mut},
    reference::{ReferenceLayout, indices, to_usize},
};

/// A copy of tokens from one block to another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NaivePair {
    /// Source block.
    pub src_block: u64,
    /// First token of the source block.
    pub src_token: u64,
    /// Destination block.
    pub dst_block: u64,
    /// First token of the destination block.
    pub dst_token: u64,
    /// Number of tokens.
    pub tokens: u64,
}

impl NaivePair {
    /// Copies the first `tokens` tokens of `src_block` to the start of `dst_block`.
    #[must_use]
    pub fn whole(src_block: u64, dst_block: u64, tokens: u64) -> NaivePair {
        NaivePair {
            src_block,
            src_token: 0,
            dst_block,
            dst_token: 0,
            tokens,
        }
    }
}

/// A range of layers or heads, with its start on each side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NaiveRange {
    /// First layer or head of the source.
    pub src_start: u64,
    /// First layer or head of the destination.
    pub dst_start: u64,
    /// Number of layers or heads.
    pub count: u64,
}

impl NaiveRange {
    /// The first `count` layers or heads of both sides.
    #[must_use]
    pub fn first(count: u64) -> NaiveRange {
        NaiveRange {
            src_start: 0,
            dst_start: 0,
            count,
        }
    }

    fn pairs(self) -> impl Iterator<Item = (u64, u64)> {
        (0..self.count).map(move |i| (self.src_start + i, self.dst_start + i))
    }
}

/// The selection of a copy. A plane without heads requires a copy of all heads of both sides. A
/// plane with one entry per page requires each pair to be a whole page on both sides.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NaiveSelection {
    /// Blocks and tokens.
    pub pairs: Vec<NaivePair>,
    /// Layers.
    pub layers: NaiveRange,
    /// KV heads.
    pub heads: NaiveRange,
}

impl NaiveSelection {
    /// All layers and heads of whole blocks `(source, destination)`, for sides of one shape.
    #[must_use]
    pub fn blocks(shape: &Shape, pairs: &[(u64, u64)]) -> NaiveSelection {
        NaiveSelection {
            pairs: pairs
                .iter()
                .map(|&(src, dst)| NaivePair::whole(src, dst, shape.page_size()))
                .collect(),
            layers: NaiveRange::first(shape.num_layers()),
            heads: NaiveRange::first(shape.num_heads()),
        }
    }

    /// The naive form of `selection` for sides of these shapes. A range that it omits covers the
    /// entries that both sides have, from entry 0 on.
    #[must_use]
    pub fn of(selection: &Selection, src: &Shape, dst: &Shape) -> NaiveSelection {
        let range = |given: Option<RangePair>, src: u64, dst: u64| match given {
            Some(range) => NaiveRange {
                src_start: range.source,
                dst_start: range.destination,
                count: range.count,
            },
            None => NaiveRange::first(src.min(dst)),
        };
        let pairs = selection.pairs.iter().map(|pair| NaivePair {
            src_block: pair.source_block,
            src_token: pair.source_token,
            dst_block: pair.destination_block,
            dst_token: pair.destination_token,
            tokens: pair.tokens,
        });
        NaiveSelection {
            pairs: pairs.collect(),
            layers: range(selection.layers, src.num_layers(), dst.num_layers()),
            heads: range(selection.heads, src.num_heads(), dst.num_heads()),
        }
    }

    /// The same selection for the planner, with both ranges given.
    #[must_use]
    pub fn selection(&self) -> Selection {
        let range = |range: NaiveRange| RangePair {
            source: range.src_start,
            destination: range.dst_start,
            count: range.count,
        };
        let pairs = self.pairs.iter().map(|pair| BlockPair {
            source_block: pair.src_block,
            source_token: pair.src_token,
            destination_block: pair.dst_block,
            destination_token: pair.dst_token,
            tokens: pair.tokens,
        });
        Selection {
            pairs: pairs.collect(),
            ..Selection::default()
        }
        .with_layers(range(self.layers))
        .with_heads(range(self.heads))
    }

    /// Every block, to the block with the same id.
    #[must_use]
    pub fn everything(shape: &Shape) -> NaiveSelection {
        let pairs: Vec<(u64, u64)> = (0..shape.num_blocks()).map(|b| (b, b)).collect();
        NaiveSelection::blocks(shape, &pairs)
    }
}

/// Copies the selected units from one image to the other, byte by byte, and returns the number of
/// bytes. Planes are matched by name; both sides must have the same planes.
///
/// # Errors
/// Images or positions that do not fit the layouts; planes that differ in unit, in being per token,
/// or in an extent other than H; a partial page or a subset of the heads for a plane that has one
/// entry for all. The destination may be partly written then.
pub fn naive_copy(
    src: &ReferenceLayout,
    src_image: &Image,
    dst: &ReferenceLayout,
    dst_image: &mut Image,
    selection: &NaiveSelection,
) -> Result<u64, TestkitError> {
    check_regions(src, src_image)?;
    check_regions(dst, dst_image)?;
    check_planes(src.shape(), dst.shape())?;
    let mut copied = 0;
    for plane in dst.shape().planes() {
        for (from, to) in unit_pairs(src.shape(), dst.shape(), plane, selection)? {
            let name = plane.name().as_str();
            let (from, to) = (src.place(name, &from)?, dst.place(name, &to)?);
            let bytes = plane.unit().bytes();
            let from = unit_bytes(src_image, from.region, from.offset, bytes)?;
            let to = unit_bytes_mut(dst_image, to.region, to.offset, bytes)?;
            for (to, from) in to.iter_mut().zip(from) {
                *to = *from;
            }
            copied += bytes;
        }
    }
    Ok(copied)
}

/// Copies every run of `plan` from one image to the other, in its order, and returns the number of
/// bytes: what an executor does, without its optimisations.
///
/// # Errors
/// A run outside an image.
pub fn execute(plan: &CopyPlan, src: &Image, dst: &mut Image) -> Result<u64, TestkitError> {
    let mut result = Ok(0);
    plan.for_each_run(|from, to, bytes| {
        if let Ok(copied) = &mut result {
            match run(src, from, dst, to, bytes) {
                Ok(()) => *copied += bytes,
                Err(error) => result = Err(error),
            }
        }
    });
    result
}

fn run(
    src: &Image,
    from: Location,
    dst: &mut Image,
    to: Location,
    bytes: u64,
) -> Result<(), TestkitError> {
    let from = unit_bytes(src, to_usize(from.region)?, from.offset, bytes)?;
    let to = unit_bytes_mut(dst, to_usize(to.region)?, to.offset, bytes)?;
    to.copy_from_slice(from);
    Ok(())
}

type AxisIndices = Vec<(Axis, u64)>;

/// Every source position of `plane`, paired with its destination.
fn unit_pairs(
    src: &Shape,
    dst: &Shape,
    plane: &Plane,
    selection: &NaiveSelection,
) -> Result<Vec<(AxisIndices, AxisIndices)>, TestkitError> {
    let heads = if plane.has(Axis::H) {
        selection.heads
    } else if selection.heads.count == src.num_heads() && selection.heads.count == dst.num_heads() {
        NaiveRange::first(1)
    } else {
        return Err(TestkitError::PartOfHeads {
            plane: plane.name().to_string(),
        });
    };
    let mut result = Vec::new();
    for pair in &selection.pairs {
        let cut = || TestkitError::PartialPage {
            plane: plane.name().to_string(),
        };
        // First entry on each side, and their number.
        let (src_entry, dst_entry, entries) = match plane.per().tokens() {
            Some(every) => {
                let all = [pair.src_token, pair.dst_token, pair.tokens];
                if all.iter().any(|tokens| tokens % every != 0) {
                    return Err(cut());
                }
                let [src, dst, count] = all.map(|tokens| tokens / every);
                (src, dst, count)
            }
            None if pair.tokens == src.page_size() && pair.tokens == dst.page_size() => (0, 0, 1),
            None => return Err(cut()),
        };
        for inner in inner_positions(dst, plane) {
            for (src_layer, dst_layer) in selection.layers.pairs() {
                for (src_head, dst_head) in heads.pairs() {
                    for entry in 0..entries {
                        let position = |block, layer, entry, head| {
                            let outer = [(Axis::B, block), (Axis::L, layer), (Axis::N, entry)];
                            let head = [(Axis::H, head)];
                            outer.into_iter().chain(head).chain(inner.clone()).collect()
                        };
                        result.push((
                            position(pair.src_block, src_layer, src_entry + entry, src_head),
                            position(pair.dst_block, dst_layer, dst_entry + entry, dst_head),
                        ));
                    }
                }
            }
        }
    }
    Ok(result)
}

/// Every position of a plane along the axes other than B, L, N and H.
fn inner_positions(shape: &Shape, plane: &Plane) -> Vec<AxisIndices> {
    let outer = |axis: Axis| matches!(axis, Axis::B | Axis::L | Axis::N | Axis::H);
    indices(shape, plane)
        .filter(|index| index.iter().all(|&(axis, i)| !outer(axis) || i == 0))
        .map(|index| index.into_iter().filter(|&(a, _)| !outer(a)).collect())
        .collect()
}

fn check_planes(src: &Shape, dst: &Shape) -> Result<(), TestkitError> {
    if src.planes().len() != dst.planes().len() {
        return Err(TestkitError::PlanesDiffer {
            plane: "of one side".to_owned(),
            axis: None,
        });
    }
    for plane in dst.planes() {
        let differs = |axis| TestkitError::PlanesDiffer {
            plane: plane.name().to_string(),
            axis,
        };
        let mut others = src.planes().iter();
        let other = others
            .find(|p| p.name() == plane.name())
            .ok_or_else(|| differs(None))?;
        if other.unit() != plane.unit()
            || other.per() != plane.per()
            || other.has(Axis::H) != plane.has(Axis::H)
        {
            return Err(differs(None));
        }
        for &(axis, extent) in plane.extents().iter().chain(other.extents()) {
            let same = other.extent_of(axis) == extent && plane.extent_of(axis) == extent;
            if axis != Axis::H && !same {
                return Err(differs(Some(axis)));
            }
        }
    }
    Ok(())
}
