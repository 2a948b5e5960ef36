//! Builds nests from a frame and the key of a class.

use std::sync::Arc;

use super::{
    AxisSet, ClassNests, Loop, Nest, RangePair,
    cut::{AxisSegment, CutRange, cut},
    frame::{PlanFrame, PlanePair},
    map::MapKind,
    nest::{join, normalise},
    pairs::ClassKey,
};
use crate::{
    axis::Axis,
    broken::broken,
    error::{LayoutError, PlanError, ShapeError},
    shape::{Plane, checked},
    strided::{AddressStep, Digit, PlanePiece, StridedLayout},
};

/// Most nests of a class: ranges that cut tiles on both sides multiply.
const NESTS_MAX: usize = 4096;

/// The inputs of the nests of a class, besides the frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct NestKey {
    pub(super) class: ClassKey,
    /// The indices that pairs and layers add to the start of a nest. Nests that take the layer from
    /// the plan cover one layer; all others cover every layer of the range.
    pub(super) kind: MapKind,
}

/// The nests of a class.
#[derive(Clone, Debug)]
pub(super) struct BuiltNests {
    pub(super) nests: Arc<ClassNests>,
    /// Bytes that the nests move per pair.
    pub(super) bytes: u64,
}

/// Builds the nests that copy a pair.
pub(super) struct NestBuilder<'a> {
    pub(super) frame: &'a PlanFrame,
    pub(super) source: &'a StridedLayout,
    pub(super) destination: &'a StridedLayout,
}

impl NestBuilder<'_> {
    pub(super) fn build(&self, key: &NestKey) -> Result<BuiltNests, LayoutError> {
        let mut nests = Vec::new();
        for pair in self.frame.planes(self.source, self.destination) {
            self.plane_nests(&pair, key, &mut nests)?;
        }
        let bytes = bytes_of(&nests)?;
        let nests = join(nests, self.frame.source_order);
        assert_eq!(
            bytes_of(&nests)?,
            bytes,
            "bytes of a class after its nests were joined, and before: {key:?}"
        );
        Ok(BuiltNests {
            nests: Arc::new(ClassNests::new(nests)),
            bytes,
        })
    }

    fn plane_nests(
        &self,
        pair: &PlanePair<'_>,
        key: &NestKey,
        nests: &mut Vec<Nest>,
    ) -> Result<(), LayoutError> {
        let plane = pair.plane;
        let mut parts = vec![AxisSegment {
            source: AddressStep {
                regions: pair.source.region(),
                bytes: pair.source.offset(),
            },
            destination: AddressStep {
                regions: pair.destination.region(),
                bytes: pair.destination.offset(),
            },
            loops: block_loop(pair, &key.class),
        }];
        let ranges = self.ranges_of(pair, key)?;
        for &range in &ranges {
            let segments = cut(range, pair.source, pair.destination)?;
            if parts.len().saturating_mul(segments.len()) > NESTS_MAX {
                return Err(LayoutError::Plan(PlanError::TooManyPieces {
                    plane: plane.name().clone(),
                    max: NESTS_MAX,
                }));
            }
            parts = combine(&parts, &segments)?;
        }
        let before = nests.len();
        for part in parts {
            let mut nest = Nest {
                source: part.source,
                destination: part.destination,
                loops: part.loops,
                run_bytes: plane.unit().bytes(),
                run_axes: AxisSet::default(),
                map: pair.map(key.kind),
            };
            normalise(&mut nest, self.frame.source_order);
            nests.push(nest);
        }
        let counts = ranges.iter().map(|range| range.count);
        let units = counts.fold(key.class.blocks, u64::saturating_mul);
        assert_eq!(
            bytes_of(nests.get(before..).unwrap_or_default())?,
            units.saturating_mul(plane.unit().bytes()),
            "bytes of plane {} in the nests of {key:?}",
            plane.name()
        );
        Ok(())
    }

    /// The range of each axis of the plane to copy.
    fn ranges_of(&self, pair: &PlanePair<'_>, key: &NestKey) -> Result<Vec<CutRange>, LayoutError> {
        let plane = pair.plane;
        let range = |axis, range: RangePair| CutRange {
            axis,
            source: range.source,
            destination: range.destination,
            count: range.count,
        };
        let layers = match key.kind.layer {
            true => RangePair::same(0, 1),
            false => self.frame.layers,
        };
        let (key, pages) = (
            &key.class,
            (
                self.frame.source.page_size,
                self.frame.destination.page_size,
            ),
        );
        let mut ranges = vec![range(Axis::L, layers)];
        ranges.extend(tokens_of(plane, key, pages)?);
        if plane.has(Axis::H) {
            ranges.push(range(Axis::H, self.frame.heads));
        } else if !self.frame.takes_headless {
            return Err(LayoutError::Plan(PlanError::PlaneNotPerHead {
                plane: plane.name().clone(),
                count: self.frame.heads.count,
            }));
        }
        let rest = plane.extents().iter().filter(|(axis, _)| *axis != Axis::H);
        ranges.extend(rest.map(|&(axis, extent)| range(axis, RangePair::same(0, extent))));
        Ok(ranges)
    }
}

/// The range of entries along N that the tokens of a class are; `None` for a plane of one entry a page.
fn tokens_of(
    plane: &Plane,
    key: &ClassKey,
    (source_page, destination_page): (u64, u64),
) -> Result<Option<CutRange>, LayoutError> {
    let Some(every) = plane.per().tokens() else {
        return match key.tokens == source_page && key.tokens == destination_page {
            true => Ok(None),
            false => Err(LayoutError::Plan(PlanError::PlaneNotPerToken {
                plane: plane.name().clone(),
                tokens: key.tokens,
                source_page_size: source_page,
                destination_page_size: destination_page,
            })),
        };
    };
    let tokens = [key.source_phase, key.destination_phase, key.tokens];
    if tokens.iter().any(|tokens| !tokens.is_multiple_of(every)) {
        return Err(LayoutError::Plan(PlanError::EntryCut {
            plane: plane.name().clone(),
            every,
            tokens: key.tokens,
            source_token: key.source_phase,
            destination_token: key.destination_phase,
        }));
    }
    Ok(Some(CutRange {
        axis: Axis::N,
        source: key.source_phase / every,
        destination: key.destination_phase / every,
        count: key.tokens / every,
    }))
}

/// Bytes that the nests move per pair.
fn bytes_of(nests: &[Nest]) -> Result<u64, LayoutError> {
    nests.iter().try_fold(0u64, |sum, nest| {
        checked(sum.checked_add(nest.bytes()), "bytes of a plan")
    })
}

/// The loop over the blocks of a progression.
fn block_loop(pair: &PlanePair<'_>, key: &ClassKey) -> Vec<Loop> {
    if key.blocks < 2 {
        return Vec::new();
    }
    let step = |piece: &PlanePiece, stride: u64| {
        // Without a digit of B, all blocks lie at one place.
        let digit: Option<&Digit> = piece.digits_of(Axis::B).next();
        let step = digit.map_or(Some(AddressStep::default()), |d| d.step.times(stride));
        let Some(step) = step else {
            broken(format_args!("a step of {stride} blocks along {digit:?}"))
        };
        step
    };
    vec![Loop {
        extent: key.blocks,
        source: step(pair.source, key.source_stride),
        destination: step(pair.destination, key.destination_stride),
        axes: AxisSet::of(Axis::B),
    }]
}

fn combine(
    parts: &[AxisSegment],
    segments: &[AxisSegment],
) -> Result<Vec<AxisSegment>, LayoutError> {
    let mut combined = Vec::with_capacity(parts.len() * segments.len());
    for part in parts {
        for segment in segments {
            let plus = |a: AddressStep, b: AddressStep| {
                a.plus(b).ok_or(LayoutError::Shape(ShapeError::TooLarge {
                    what: "an offset of a plan",
                }))
            };
            combined.push(AxisSegment {
                source: plus(part.source, segment.source)?,
                destination: plus(part.destination, segment.destination)?,
                loops: part.loops.iter().chain(&segment.loops).copied().collect(),
            });
        }
    }
    Ok(combined)
}
