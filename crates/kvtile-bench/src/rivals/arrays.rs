//! `ndarray`: assigns a view of each plane with the axes of both sides to the other.

use std::{
    hint::black_box,
    time::{Duration, Instant},
};

use bytemuck::Pod;
use kvtile::layout::{Axis, Digit, Plane, PlanePiece, Shape};
use ndarray::{ArrayView, ArrayViewMut, IxDyn, ShapeBuilder};

use crate::{
    arena::Arenas,
    contender::{BlockOrders, CellSides, Contender, CopyMethod},
    error::BenchError,
    walk::axis_step,
};

/// Assigns view to view.
pub(crate) struct ArrayAssign {
    unit_bytes: usize,
    planes: Vec<PlaneViews>,
}

/// The views of one plane of one layer, or of all layers where both sides have them in one region.
struct PlaneViews {
    extents: Vec<usize>,
    /// Layers with separate views.
    layers: usize,
    source: BlockView,
    destination: BlockView,
}

/// One side of a plane, in elements.
struct BlockView {
    strides: Vec<usize>,
    /// The start of a block, in each layer with a separate view.
    starts: Vec<Vec<usize>>,
}

impl ArrayAssign {
    /// `None` where views cannot express the copy: units that are no element, planes whose elements
    /// differ, an axis other than the layers that crosses regions, a part of the heads.
    pub(crate) fn new(sides: &CellSides) -> Option<ArrayAssign> {
        let (source, destination) = (&sides.source.0, &sides.destination.0);
        let shape = source.shape();
        let unit_bytes = usize::try_from(shape.planes().first()?.unit().bytes()).ok()?;
        let alike = |plane: &Plane| plane.unit().bytes() == unit_bytes as u64;
        if sides.heads.is_some()
            || !matches!(unit_bytes, 1 | 2 | 4 | 8)
            || !shape.planes().iter().all(alike)
        {
            return None;
        }
        let starts = (sides.source.1.starts(), sides.destination.1.starts());
        let pieces = source.planes().zip(destination.planes());
        let planes = pieces.map(|((plane, from), (_, to))| {
            let side = |piece, regions| ArraySide {
                piece,
                regions,
                unit_bytes,
            };
            let sides = (side(from, &starts.0), side(to, &starts.1));
            PlaneViews::new(shape, plane, (&sides.0, &sides.1))
        });
        Some(ArrayAssign {
            unit_bytes,
            planes: planes.collect::<Option<Vec<_>>>()?,
        })
    }

    fn copy<T: Pod>(&self, orders: &BlockOrders, source: &[u8], destination: &mut [u8]) {
        let whole = |bytes: usize| ..bytes - bytes % size_of::<T>();
        let source = source.get(whole(source.len())).unwrap_or_default();
        let destination = destination.get_mut(whole(destination.len()));
        // Memory starts at a page; here it is cut to whole elements.
        let source = bytemuck::try_cast_slice::<u8, T>(source).unwrap_or_default();
        let destination = destination.unwrap_or_default();
        let destination = bytemuck::try_cast_slice_mut::<u8, T>(destination).unwrap_or_default();
        for (from, to) in orders.pairs() {
            for plane in &self.planes {
                for layer in 0..plane.layers {
                    // The comparison after the copy finds pieces that fail here.
                    let _ = plane.copy((from, to), layer, source, destination);
                }
            }
        }
        black_box(destination);
    }

    fn copy_units(&self, orders: &BlockOrders, source: &[u8], destination: &mut [u8]) {
        match self.unit_bytes {
            1 => self.copy::<u8>(orders, source, destination),
            2 => self.copy::<u16>(orders, source, destination),
            4 => self.copy::<u32>(orders, source, destination),
            _ => self.copy::<u64>(orders, source, destination),
        }
    }
}

/// One side of a plane during the construction of its views.
struct ArraySide<'a> {
    piece: &'a PlanePiece,
    /// The starts of the regions.
    regions: &'a [usize],
    unit_bytes: usize,
}

impl ArraySide<'_> {
    /// The step of a digit, in elements; `None` where it leads to another region.
    fn stride(&self, axis: Axis, low: u64) -> Option<usize> {
        let step = axis_step(self.piece.digits(), axis, low);
        let bytes = step.is_local().then_some(step.bytes)?;
        elements(usize::try_from(bytes).ok()?, self.unit_bytes)
    }

    /// Whether all layers lie in one region.
    fn joins_layers(&self) -> bool {
        let digits = self.piece.digits().iter();
        let mut layers = digits.filter(|digit| digit.axis == Axis::L);
        layers.all(|digit| digit.step.is_local())
    }

    /// The start of a block in a layer.
    fn start(&self, block: u64, layer: u64) -> Option<usize> {
        let digits = self.piece.digits();
        let (b, l) = (
            axis_step(digits, Axis::B, block),
            axis_step(digits, Axis::L, layer),
        );
        let region = usize::try_from(self.piece.region() + b.regions + l.regions).ok()?;
        let bytes = usize::try_from(self.piece.offset() + b.bytes + l.bytes).ok()?;
        elements(self.regions.get(region)? + bytes, self.unit_bytes)
    }

    fn view(&self, digits: &[(Axis, u64, u64)], blocks: u64, layers: u64) -> Option<BlockView> {
        let strides = digits.iter().map(|&(axis, low, _)| self.stride(axis, low));
        let starts = (0..blocks).map(|block| {
            let starts = (0..layers).map(|layer| self.start(block, layer));
            starts.collect::<Option<Vec<usize>>>()
        });
        Some(BlockView {
            strides: strides.collect::<Option<_>>()?,
            starts: starts.collect::<Option<_>>()?,
        })
    }
}

impl PlaneViews {
    fn new(
        shape: &Shape,
        plane: &Plane,
        (from, to): (&ArraySide<'_>, &ArraySide<'_>),
    ) -> Option<PlaneViews> {
        let joined = from.joins_layers() && to.joins_layers();
        let declared = plane.extents().iter().map(|(axis, _)| *axis);
        let axes = joined.then_some(Axis::L).into_iter().chain([Axis::N]);
        let mut digits = Vec::new();
        for axis in axes.chain(declared) {
            let (a, b) = (from.piece.digits(), to.piece.digits());
            let cuts = cut(a, b, axis, shape.extent(plane, axis))?;
            digits.extend(cuts.into_iter().map(|(low, extent)| (axis, low, extent)));
        }
        let extents = digits
            .iter()
            .map(|(_, _, extent)| usize::try_from(*extent).ok());
        let layers = if joined { 1 } else { shape.num_layers() };
        Some(PlaneViews {
            extents: extents.collect::<Option<_>>()?,
            layers: usize::try_from(layers).ok()?,
            source: from.view(&digits, shape.num_blocks(), layers)?,
            destination: to.view(&digits, shape.num_blocks(), layers)?,
        })
    }

    fn copy<T: Pod>(
        &self,
        (from, to): (usize, usize),
        layer: usize,
        source: &[T],
        destination: &mut [T],
    ) -> Option<()> {
        let start = |view: &BlockView, block: usize| view.starts.get(block)?.get(layer).copied();
        let from = source.get(start(&self.source, from)?..)?;
        let to = destination.get_mut(start(&self.destination, to)?..)?;
        let shape = |view: &BlockView| IxDyn(&self.extents).strides(IxDyn(&view.strides));
        let from = ArrayView::from_shape(shape(&self.source), from).ok()?;
        let mut to = ArrayViewMut::from_shape(shape(&self.destination), to).ok()?;
        to.assign(&from);
        Some(())
    }
}

/// A number of bytes as a number of elements; `None` where it is not whole.
fn elements(bytes: usize, unit_bytes: usize) -> Option<usize> {
    bytes
        .is_multiple_of(unit_bytes)
        .then_some(bytes / unit_bytes)
}

/// Cuts an axis into digits that have one stride on both sides, slowest first; `None` where the
/// moduli do not divide each other.
fn cut(from: &[Digit], to: &[Digit], axis: Axis, extent: u64) -> Option<Vec<(u64, u64)>> {
    let digits = from.iter().chain(to).filter(|digit| digit.axis == axis);
    let mut lows: Vec<u64> = digits.map(|digit| digit.low).chain([1]).collect();
    lows.sort_unstable();
    lows.dedup();
    let highs = lows.iter().copied().skip(1).chain([extent]);
    let mut cuts = Vec::new();
    for (low, high) in lows.iter().copied().zip(highs) {
        if !high.is_multiple_of(low) {
            return None;
        }
        cuts.push((low, high / low));
    }
    cuts.retain(|(_, extent)| *extent > 1);
    cuts.reverse();
    Some(cuts)
}

impl Contender for ArrayAssign {
    fn method(&self) -> CopyMethod {
        CopyMethod::Ndarray
    }

    fn run(
        &mut self,
        arenas: &mut Arenas,
        orders: &BlockOrders,
        repeats: u32,
        warm: bool,
    ) -> Result<Duration, BenchError> {
        let (source, destination) = arenas.slices()?;
        if warm {
            self.copy_units(orders, source, destination);
        }
        let start = Instant::now();
        for _ in 0..repeats {
            self.copy_units(orders, source, destination);
        }
        Ok(start.elapsed())
    }
}
