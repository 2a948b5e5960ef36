//! The part of a plan that does not depend on blocks: matched planes, checked ranges, block maps.

use std::sync::Arc;

use super::{BlockMap, MapPair, PlanSettings, RangePair, map::MapKind};
use crate::{
    axis::Axis,
    broken::broken,
    error::{LayoutError, PlanError},
    shape::{Plane, Shape},
    strided::{PlanePiece, StridedLayout},
};

/// The part of a plan that does not depend on blocks.
#[derive(Clone, Debug)]
pub(super) struct PlanFrame {
    pub(super) source: FrameSide,
    pub(super) destination: FrameSide,
    pub(super) layers: RangePair,
    pub(super) heads: RangePair,
    /// Whether planes without heads are copied.
    pub(super) takes_headless: bool,
    pub(super) source_order: bool,
    /// Whether each side has one constant distance between blocks, so that a progression is a loop.
    pub(super) progressions: bool,
    pub(super) maps: Arc<[MapPair]>,
    planes: Vec<MatchedPlane>,
}

/// One side of a frame.
#[derive(Clone, Copy, Debug)]
pub(super) struct FrameSide {
    pub(super) name: &'static str,
    pub(super) num_blocks: u64,
    pub(super) page_size: u64,
    /// The least common multiple of the moduli of N in all pieces, in tokens. Adding a multiple of it
    /// to a token only moves the base of a pair, and cuts no entry.
    pub(super) token_modulus: u64,
}

/// The indices of one plane on both sides, and the index of its map of each [`MapKind`].
#[derive(Clone, Debug)]
struct MatchedPlane {
    source: usize,
    destination: usize,
    maps: [usize; MapKind::ALL.len()],
}

impl MatchedPlane {
    /// The pieces of both sides. A missing piece is a broken invariant: skipping the plane would
    /// lose its bytes.
    fn pieces<'a>(
        &self,
        source: &'a StridedLayout,
        destination: &'a StridedLayout,
    ) -> (&'a PlanePiece, &'a PlanePiece) {
        let from = source.pieces().get(self.source);
        let to = destination.pieces().get(self.destination);
        let (Some(from), Some(to)) = (from, to) else {
            broken(format_args!(
                "{self:?} between layouts of {} and {} pieces",
                source.pieces().len(),
                destination.pieces().len()
            ))
        };
        (from, to)
    }
}

/// A plane and its pieces on both sides.
pub(super) struct PlanePair<'a> {
    pub(super) plane: &'a Plane,
    pub(super) source: &'a PlanePiece,
    pub(super) destination: &'a PlanePiece,
    maps: [usize; MapKind::ALL.len()],
}

impl PlanePair<'_> {
    /// The index of the plane's map of `kind`; planes with equal maps share one.
    pub(super) fn map(&self, kind: MapKind) -> usize {
        let Some(&map) = self.maps.get(kind.index()) else {
            broken(format_args!(
                "{kind:?} is number {} of {} kinds of maps",
                kind.index(),
                self.maps.len()
            ))
        };
        map
    }
}

impl PlanFrame {
    /// Matches the planes and checks the ranges.
    pub(super) fn new(
        source: &StridedLayout,
        destination: &StridedLayout,
        settings: &PlanSettings,
    ) -> Result<PlanFrame, LayoutError> {
        let mut planes = matched_planes(source, destination)?;
        if !destination.is_injective() {
            return Err(LayoutError::Plan(PlanError::DestinationOverlaps {
                layout: destination.describe(),
            }));
        }
        let (a, b) = (source.shape(), destination.shape());
        let (layers, heads) = ranges(a, b, settings)?;
        let maps = maps(&mut planes, source, destination);
        let single = |layout: &StridedLayout| {
            let mut pieces = layout.pieces().iter();
            pieces.all(|piece| piece.digits_of(Axis::B).count() <= 1)
        };
        Ok(PlanFrame {
            source: FrameSide::new("source", source),
            destination: FrameSide::new("destination", destination),
            layers,
            heads,
            takes_headless: settings.replicated_planes
                || (heads.count == a.num_heads() && heads.count == b.num_heads()),
            source_order: settings.source_order,
            progressions: single(source) && single(destination),
            maps: maps.into(),
            planes,
        })
    }

    /// The planes with their pieces. The layouts must be those of [`PlanFrame::new`].
    pub(super) fn planes<'a>(
        &'a self,
        source: &'a StridedLayout,
        destination: &'a StridedLayout,
    ) -> impl Iterator<Item = PlanePair<'a>> {
        self.planes.iter().map(|matched| {
            let (from, to) = matched.pieces(source, destination);
            let plane = destination.shape().planes().get(matched.destination);
            let Some(plane) = plane else {
                broken(format_args!("{matched:?} in {}", destination.describe()))
            };
            PlanePair {
                plane,
                source: from,
                destination: to,
                maps: matched.maps,
            }
        })
    }
}

impl FrameSide {
    fn new(name: &'static str, layout: &StridedLayout) -> FrameSide {
        FrameSide {
            name,
            num_blocks: layout.shape().num_blocks(),
            page_size: layout.shape().page_size(),
            token_modulus: token_modulus(layout),
        }
    }

    /// `token` modulo the largest modulus of N.
    #[inline]
    pub(super) fn phase(&self, token: u64) -> u64 {
        // Most tokens are the first of their block, and a division would cost more than the whole
        // binding of a pair.
        if token == 0 {
            0
        } else {
            token % self.token_modulus
        }
    }
}

/// The least common multiple of the moduli of N and of the tokens of each plane's entries; where it
/// does not fit, no token is a multiple of it.
fn token_modulus(layout: &StridedLayout) -> u64 {
    let moduli = layout.planes().flat_map(|(plane, piece)| {
        let every = plane.per().tokens().unwrap_or(1);
        let digits = piece.digits_of(Axis::N);
        let in_tokens = digits.map(move |digit| digit.low.saturating_mul(every));
        in_tokens.chain([every])
    });
    moduli.fold(1, |multiple: u64, modulus| {
        let mut gcd = (multiple, modulus);
        while gcd.1 != 0 {
            gcd = (gcd.1, gcd.0 % gcd.1);
        }
        (multiple / gcd.0).saturating_mul(modulus)
    })
}

/// The maps of all planes and kinds, without duplicates. Stores the index of each map in its plane.
fn maps(
    planes: &mut [MatchedPlane],
    source: &StridedLayout,
    destination: &StridedLayout,
) -> Vec<MapPair> {
    let mut maps: Vec<MapPair> = Vec::new();
    for plane in planes {
        let (from, to) = plane.pieces(source, destination);
        let shape = destination.shape().planes().get(plane.destination);
        let every = shape.and_then(|plane| plane.per().tokens()).unwrap_or(1);
        for (index, kind) in plane.maps.iter_mut().zip(MapKind::ALL) {
            let map = MapPair {
                source: BlockMap::new(from, every, kind),
                destination: BlockMap::new(to, every, kind),
            };
            *index = maps.iter().position(|m| *m == map).unwrap_or_else(|| {
                maps.push(map);
                maps.len() - 1
            });
        }
    }
    maps
}

fn matched_planes(
    source: &StridedLayout,
    destination: &StridedLayout,
) -> Result<Vec<MatchedPlane>, LayoutError> {
    let mut matched = Vec::new();
    for (index, (plane, _)) in destination.planes().enumerate() {
        let mut others = source.planes().enumerate();
        let found = others.find(|(_, (p, _))| p.name() == plane.name());
        let Some((source_index, (other, _))) = found else {
            return Err(LayoutError::Plan(PlanError::PlaneNotInSource {
                plane: plane.name().clone(),
                known: source.plane_names(),
            }));
        };
        check_planes(other, plane)?;
        matched.push(MatchedPlane {
            source: source_index,
            destination: index,
            maps: Default::default(),
        });
    }
    let missing = source
        .planes()
        .find(|(p, _)| !destination.planes().any(|(q, _)| q.name() == p.name()));
    match missing {
        None => Ok(matched),
        Some((plane, _)) => Err(LayoutError::Plan(PlanError::PlaneNotInDestination {
            plane: plane.name().clone(),
            known: destination.plane_names(),
        })),
    }
}

fn check_planes(source: &Plane, destination: &Plane) -> Result<(), LayoutError> {
    let differ = |field: String, source_value: String, destination_value: String| {
        Err(LayoutError::Plan(PlanError::PlanesDiffer {
            plane: source.name().clone(),
            field,
            source_value,
            destination_value,
        }))
    };
    if source.unit() != destination.unit() {
        let (a, b) = (source.unit().to_string(), destination.unit().to_string());
        return differ("unit".into(), a, b);
    }
    if source.per() != destination.per() {
        let entries = |plane: &Plane| format!("one every {}", plane.per());
        return differ("entries".into(), entries(source), entries(destination));
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

/// Layers and heads of the settings, with defaults resolved.
fn ranges(
    source: &Shape,
    destination: &Shape,
    settings: &PlanSettings,
) -> Result<(RangePair, RangePair), LayoutError> {
    let (a, b) = (source.shard(), destination.shard());
    let all = |axis, given: Option<RangePair>, mine, theirs, totals: (u64, u64), count| match given
    {
        Some(range) => Ok(range),
        None if mine == theirs && totals.0 == totals.1 => Ok(RangePair::same(0, count)),
        None => Err(LayoutError::Plan(PlanError::ShardsDiffer {
            axis,
            source_range: mine,
            source_total: totals.0,
            destination_range: theirs,
            destination_total: totals.1,
        })),
    };
    let layers = all(
        "layers",
        settings.layers,
        a.layers,
        b.layers,
        (a.total_layers, b.total_layers),
        source.num_layers(),
    )?;
    let heads = all(
        "heads",
        settings.heads,
        a.heads,
        b.heads,
        (a.total_heads, b.total_heads),
        source.num_heads(),
    )?;
    layers.check("layers", source.num_layers(), destination.num_layers())?;
    heads.check("heads", source.num_heads(), destination.num_heads())?;
    Ok((layers, heads))
}
