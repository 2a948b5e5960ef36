//! `ndarray`: a view of each plane with the axes of both sides, assigned to the other.

use std::{
    hint::black_box,
    time::{Duration, Instant},
};

use bytemuck::Pod;
use kvtile::layout::{Axis, Digit, Piece, Plane, StridedLayout};
use ndarray::{ArrayView, ArrayViewMut, IxDyn, ShapeBuilder};

use crate::{
    arena::Arenas,
    contender::{Contender, Method, Orders, Sides},
    error::BenchError,
    walk::axis_step,
};

/// Assigns view to view.
pub(crate) struct ArrayAssign {
    unit_bytes: usize,
    planes: Vec<PlaneViews>,
}

/// One plane of one layer, or of all layers where both sides have them in one region.
struct PlaneViews {
    extents: Vec<usize>,
    /// Layers that have views of their own.
    layers: usize,
    source: View,
    destination: View,
}

/// One side of a plane, in elements.
struct View {
    strides: Vec<usize>,
    /// Where a block starts, in each layer that has a view of its own.
    starts: Vec<Vec<usize>>,
}

impl ArrayAssign {
    /// `None` where views cannot say it: units that are no element, planes whose elements differ,
    /// an axis other than the layers that leads from region to region, a part of the heads.
    pub(crate) fn new(sides: &Sides) -> Option<ArrayAssign> {
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
            let sides = ((from, starts.0.as_slice()), (to, starts.1.as_slice()));
            PlaneViews::new(source, plane, sides, unit_bytes)
        });
        Some(ArrayAssign {
            unit_bytes,
            planes: planes.collect::<Option<Vec<_>>>()?,
        })
    }

    fn copy<T: Pod>(&self, orders: &Orders, source: &[u8], destination: &mut [u8]) {
        let source = bytemuck::cast_slice::<u8, T>(source);
        let destination = bytemuck::cast_slice_mut::<u8, T>(destination);
        for (from, to) in orders.pairs() {
            for plane in &self.planes {
                for layer in 0..plane.layers {
                    // What is left out here is found by the comparison that follows.
                    let _ = plane.copy((from, to), layer, source, destination);
                }
            }
        }
        black_box(destination);
    }

    fn copy_units(&self, orders: &Orders, source: &[u8], destination: &mut [u8]) {
        match self.unit_bytes {
            1 => self.copy::<u8>(orders, source, destination),
            2 => self.copy::<u16>(orders, source, destination),
            4 => self.copy::<u32>(orders, source, destination),
            _ => self.copy::<u64>(orders, source, destination),
        }
    }
}

impl PlaneViews {
    fn new(
        layout: &StridedLayout,
        plane: &Plane,
        (source, destination): ((&Piece, &[usize]), (&Piece, &[usize])),
        unit_bytes: usize,
    ) -> Option<PlaneViews> {
        let shape = layout.shape();
        let (from, to) = (source.0.digits(), destination.0.digits());
        let local = |digits: &[Digit]| {
            let mut layers = digits.iter().filter(|digit| digit.axis == Axis::L);
            layers.all(|digit| digit.step.is_local())
        };
        let joined = local(from) && local(to);
        let declared = plane.extents().iter().map(|(axis, _)| *axis);
        let axes = joined.then_some(Axis::L).into_iter().chain([Axis::N]);
        let (mut extents, mut strides) = (Vec::new(), (Vec::new(), Vec::new()));
        for axis in axes.chain(declared) {
            for (low, extent) in cut(from, to, axis, shape.extent(plane, axis))? {
                extents.push(usize::try_from(extent).ok()?);
                let stride = |digits| {
                    let step = axis_step(digits, axis, low);
                    let bytes = step.is_local().then_some(step.bytes)?;
                    elements(usize::try_from(bytes).ok()?, unit_bytes)
                };
                strides.0.push(stride(from)?);
                strides.1.push(stride(to)?);
            }
        }
        let layers = if joined { 1 } else { shape.num_layers() };
        let starts = |(piece, regions): (&Piece, &[usize])| {
            let start = |block, layer| {
                let (b, l) = (
                    axis_step(piece.digits(), Axis::B, block),
                    axis_step(piece.digits(), Axis::L, layer),
                );
                let region = usize::try_from(piece.region() + b.regions + l.regions).ok()?;
                let bytes = usize::try_from(piece.offset() + b.bytes + l.bytes).ok()?;
                elements(regions.get(region)? + bytes, unit_bytes)
            };
            let blocks = (0..shape.num_blocks())
                .map(|block| (0..layers).map(|layer| start(block, layer)).collect());
            blocks.collect::<Option<Vec<Vec<usize>>>>()
        };
        Some(PlaneViews {
            extents,
            layers: usize::try_from(layers).ok()?,
            source: View {
                strides: strides.0,
                starts: starts(source)?,
            },
            destination: View {
                strides: strides.1,
                starts: starts(destination)?,
            },
        })
    }

    fn copy<T: Pod>(
        &self,
        (from, to): (usize, usize),
        layer: usize,
        source: &[T],
        destination: &mut [T],
    ) -> Option<()> {
        let start = |view: &View, block: usize| view.starts.get(block)?.get(layer).copied();
        let from = source.get(start(&self.source, from)?..)?;
        let to = destination.get_mut(start(&self.destination, to)?..)?;
        let shape = |view: &View| IxDyn(&self.extents).strides(IxDyn(&view.strides));
        let from = ArrayView::from_shape(shape(&self.source), from).ok()?;
        let mut to = ArrayViewMut::from_shape(shape(&self.destination), to).ok()?;
        to.assign(&from);
        Some(())
    }
}

/// Bytes as elements, where they are whole.
fn elements(bytes: usize, unit_bytes: usize) -> Option<usize> {
    bytes
        .is_multiple_of(unit_bytes)
        .then_some(bytes / unit_bytes)
}

/// An axis in digits that have one stride on both sides, slowest first; `None` where the moduli do
/// not divide each other.
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
    fn method(&self) -> Method {
        Method::Ndarray
    }

    fn run(
        &mut self,
        arenas: &mut Arenas,
        orders: &Orders,
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
