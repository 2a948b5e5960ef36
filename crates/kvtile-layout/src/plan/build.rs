//! From two layouts and a selection to a plan.

use super::{
    AxisSet, BlockMap, CopyPlan, Loop, MapPair, Nest, PlanClass, RangePair, Selection,
    cut::{Range, Segment, cut},
    nest::{join, normalise},
    pairs::{Class, ClassKey, check, classes},
};
use crate::{
    axis::Axis,
    error::LayoutError,
    shape::{Plane, Shape, checked},
    strided::{Digit, Piece, Step, StridedLayout},
};

/// Most nests a class may have: ranges that cut tiles on both sides multiply.
const NESTS_MAX: usize = 4096;

impl CopyPlan {
    /// Plans the copy of `selection` from `source` to `destination`.
    ///
    /// # Errors
    /// Shapes whose planes differ; ranges outside their axes, empty, or cutting what has no such
    /// axis; block ids out of range; a destination token written twice; nothing selected; moduli
    /// without a common refinement; a destination in which units may overlap.
    pub fn new(
        source: &StridedLayout,
        destination: &StridedLayout,
        selection: &Selection,
    ) -> Result<CopyPlan, LayoutError> {
        let planes = matched_planes(source, destination)?;
        if !destination.is_injective() {
            return Err(LayoutError::DestinationOverlaps {
                layout: destination.describe(),
            });
        }
        let ranges = Ranges::new(source.shape(), destination.shape(), selection)?;
        check(selection, source.shape(), destination.shape())?;
        let mut builder = Builder {
            planes: &planes,
            ranges,
            source_order: selection.source_order,
            maps: Vec::new(),
        };
        let mut plan_classes = Vec::new();
        let mut bytes = 0u64;
        for class in classes(selection, source, destination) {
            let class = builder.class(class)?;
            let each = class.nests.iter().try_fold(0u64, |sum, nest| {
                checked(sum.checked_add(nest.bytes()), "bytes of a plan")
            })?;
            let all = each.checked_mul(class.pairs.len() as u64);
            bytes = checked(
                all.and_then(|all| bytes.checked_add(all)),
                "bytes of a plan",
            )?;
            plan_classes.push(class);
        }
        Ok(CopyPlan {
            classes: plan_classes,
            maps: builder.maps,
            bytes,
        })
    }
}

/// A plane and its pieces on both sides.
struct PlanePair<'a> {
    source_shape: &'a Shape,
    destination_shape: &'a Shape,
    plane: &'a Plane,
    source: &'a Piece,
    destination: &'a Piece,
}

fn matched_planes<'a>(
    source: &'a StridedLayout,
    destination: &'a StridedLayout,
) -> Result<Vec<PlanePair<'a>>, LayoutError> {
    let mut pairs = Vec::new();
    for (plane, piece) in destination.planes() {
        let found = source.planes().find(|(p, _)| p.name() == plane.name());
        let Some((other, source_piece)) = found else {
            return Err(LayoutError::PlaneNotInSource {
                plane: plane.name().clone(),
                known: source.plane_names(),
            });
        };
        check_planes(other, plane)?;
        pairs.push(PlanePair {
            source_shape: source.shape(),
            destination_shape: destination.shape(),
            plane,
            source: source_piece,
            destination: piece,
        });
    }
    let missing = source
        .planes()
        .find(|(p, _)| !destination.planes().any(|(q, _)| q.name() == p.name()));
    match missing {
        None => Ok(pairs),
        Some((plane, _)) => Err(LayoutError::PlaneNotInDestination {
            plane: plane.name().clone(),
            known: destination.plane_names(),
        }),
    }
}

fn check_planes(source: &Plane, destination: &Plane) -> Result<(), LayoutError> {
    let differ = |field: String, source_value: String, destination_value: String| {
        Err(LayoutError::PlanesDiffer {
            plane: source.name().clone(),
            field,
            source_value,
            destination_value,
        })
    };
    if source.unit() != destination.unit() {
        let (a, b) = (source.unit().to_string(), destination.unit().to_string());
        return differ("unit".into(), a, b);
    }
    if source.is_per_token() != destination.is_per_token() {
        let (a, b) = (source.is_per_token(), destination.is_per_token());
        return differ("per_token".into(), a.to_string(), b.to_string());
    }
    let axes = source.extents().iter().chain(destination.extents());
    for &(axis, _) in axes.filter(|(axis, _)| *axis != Axis::H) {
        let (a, b) = (source.extent_of(axis), destination.extent_of(axis));
        if a != b {
            return differ(format!("extent of {axis}"), a.to_string(), b.to_string());
        }
    }
    if source.has(Axis::H) != destination.has(Axis::H) {
        let (a, b) = (source.has(Axis::H), destination.has(Axis::H));
        return differ("heads".into(), a.to_string(), b.to_string());
    }
    Ok(())
}

/// Layers and heads of the selection, with what omission means made explicit.
struct Ranges {
    layers: RangePair,
    heads: RangePair,
    all_heads: bool,
}

impl Ranges {
    fn new(
        source: &Shape,
        destination: &Shape,
        selection: &Selection,
    ) -> Result<Ranges, LayoutError> {
        let (a, b) = (source.shard(), destination.shard());
        let all =
            |axis, given: Option<RangePair>, mine, theirs, totals: (u64, u64), count| match given {
                Some(range) => Ok(range),
                None if mine == theirs && totals.0 == totals.1 => Ok(RangePair::same(0, count)),
                None => Err(LayoutError::ShardsDiffer {
                    axis,
                    source_range: mine,
                    source_total: totals.0,
                    destination_range: theirs,
                    destination_total: totals.1,
                }),
            };
        let layers = all(
            "layers",
            selection.layers,
            a.layers,
            b.layers,
            (a.total_layers, b.total_layers),
            source.num_layers(),
        )?;
        let heads = all(
            "heads",
            selection.heads,
            a.heads,
            b.heads,
            (a.total_heads, b.total_heads),
            source.num_heads(),
        )?;
        layers.check("layers", source.num_layers(), destination.num_layers())?;
        heads.check("heads", source.num_heads(), destination.num_heads())?;
        Ok(Ranges {
            layers,
            heads,
            all_heads: heads.count == source.num_heads() && heads.count == destination.num_heads(),
        })
    }
}

struct Builder<'a> {
    planes: &'a [PlanePair<'a>],
    ranges: Ranges,
    source_order: bool,
    maps: Vec<MapPair>,
}

impl Builder<'_> {
    fn class(&mut self, class: Class) -> Result<PlanClass, LayoutError> {
        let Class { key, pairs } = class;
        let token_bases = pairs
            .iter()
            .any(|p| p.source_token != 0 || p.destination_token != 0);
        let mut nests = Vec::new();
        for pair in self.planes {
            let map = self.map(pair, token_bases);
            self.plane_nests(pair, &key, map, &mut nests)?;
        }
        Ok(PlanClass {
            nests: join(nests, self.source_order),
            pairs,
            blocks_per_pair: key.blocks,
        })
    }

    /// The index of the block map of a plane, shared with planes that have an equal one.
    fn map(&mut self, pair: &PlanePair<'_>, token_bases: bool) -> usize {
        let map = |piece: &Piece| BlockMap {
            block: piece.digits_of(Axis::B).copied().collect(),
            token: match token_bases {
                true => piece.digits_of(Axis::N).copied().collect(),
                false => Vec::new(),
            },
        };
        let map = MapPair {
            source: map(pair.source),
            destination: map(pair.destination),
        };
        match self.maps.iter().position(|m| *m == map) {
            Some(index) => index,
            None => {
                self.maps.push(map);
                self.maps.len() - 1
            }
        }
    }

    fn plane_nests(
        &self,
        pair: &PlanePair<'_>,
        key: &ClassKey,
        map: usize,
        nests: &mut Vec<Nest>,
    ) -> Result<(), LayoutError> {
        let plane = pair.plane;
        let mut parts = vec![Segment {
            source: Step {
                regions: pair.source.region(),
                bytes: pair.source.offset(),
            },
            destination: Step {
                regions: pair.destination.region(),
                bytes: pair.destination.offset(),
            },
            loops: block_loop(pair, key),
        }];
        for range in self.ranges_of(pair, key)? {
            let segments = cut(range, pair.source, pair.destination)?;
            if parts.len().saturating_mul(segments.len()) > NESTS_MAX {
                return Err(LayoutError::TooManyPieces {
                    plane: plane.name().clone(),
                    max: NESTS_MAX,
                });
            }
            parts = combine(&parts, &segments)?;
        }
        for part in parts {
            let mut nest = Nest {
                source: part.source,
                destination: part.destination,
                loops: part.loops,
                run_bytes: plane.unit().bytes(),
                run_axes: AxisSet::default(),
                map,
            };
            normalise(&mut nest, self.source_order);
            nests.push(nest);
        }
        Ok(())
    }

    /// What of each axis of the plane is copied.
    fn ranges_of(&self, pair: &PlanePair<'_>, key: &ClassKey) -> Result<Vec<Range>, LayoutError> {
        let plane = pair.plane;
        let range = |axis, range: RangePair| Range {
            axis,
            source: range.source,
            destination: range.destination,
            count: range.count,
        };
        let mut ranges = vec![range(Axis::L, self.ranges.layers)];
        if plane.is_per_token() {
            ranges.push(Range {
                axis: Axis::N,
                source: key.source_phase,
                destination: key.destination_phase,
                count: key.tokens,
            });
        } else if key.tokens != pair.source_shape.page_size()
            || key.tokens != pair.destination_shape.page_size()
        {
            return Err(LayoutError::PlaneNotPerToken {
                plane: plane.name().clone(),
                tokens: key.tokens,
                source_page_size: pair.source_shape.page_size(),
                destination_page_size: pair.destination_shape.page_size(),
            });
        }
        if plane.has(Axis::H) {
            ranges.push(range(Axis::H, self.ranges.heads));
        } else if !self.ranges.all_heads {
            return Err(LayoutError::PlaneNotPerHead {
                plane: plane.name().clone(),
                count: self.ranges.heads.count,
            });
        }
        let rest = plane.extents().iter().filter(|(axis, _)| *axis != Axis::H);
        ranges.extend(rest.map(|&(axis, extent)| range(axis, RangePair::same(0, extent))));
        Ok(ranges)
    }
}

/// The loop over the blocks of a progression.
fn block_loop(pair: &PlanePair<'_>, key: &ClassKey) -> Vec<Loop> {
    if key.blocks < 2 {
        return Vec::new();
    }
    let step = |piece: &Piece, stride: u64| {
        let digit: Option<&Digit> = piece.digits_of(Axis::B).next();
        digit.and_then(|d| d.step.times(stride)).unwrap_or_default()
    };
    vec![Loop {
        extent: key.blocks,
        source: step(pair.source, key.source_stride),
        destination: step(pair.destination, key.destination_stride),
        axes: AxisSet::of(Axis::B),
    }]
}

fn combine(parts: &[Segment], segments: &[Segment]) -> Result<Vec<Segment>, LayoutError> {
    let mut combined = Vec::with_capacity(parts.len() * segments.len());
    for part in parts {
        for segment in segments {
            let plus = |a: Step, b: Step| {
                a.plus(b).ok_or(LayoutError::TooLarge {
                    what: "an offset of a plan",
                })
            };
            combined.push(Segment {
                source: plus(part.source, segment.source)?,
                destination: plus(part.destination, segment.destination)?,
                loops: part.loops.iter().chain(&segment.loops).copied().collect(),
            });
        }
    }
    Ok(combined)
}
