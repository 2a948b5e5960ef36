//! The layout part: the places of the values, independent of their meaning.

use serde::{Deserialize, Serialize};

use super::{
    Difference, Fingerprint, IdentityError, canonical::CanonicalFields, limits::check_count,
};
use crate::{
    axis::Axis,
    broken::broken,
    error::{LayoutError, ResolveError, ShapeError},
    shape::{BYTES_MAX, PLANES_MAX, Plane, PlaneName},
    strided::{Digit, PlanePiece, REGIONS_MAX, StridedLayout},
    unit::Unit,
};

/// Names the form of the layout part and its version.
const CONTEXT: &str = "kvtile identity layout 1";

/// Most digits of a plane.
const DIGITS_MAX: usize = 64;

/// The scope of a [`LayoutIdentity`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LayoutScope {
    /// All blocks of a layout in their regions.
    AllBlocks,
    /// The bytes of one block.
    OneBlock,
}

/// The place of every unit of each plane, in canonical form. Two words have equal identities
/// exactly where they put every unit at the same place. Opaque units add their codec name, because
/// it carries the parameters of their interior.
///
/// **All blocks** ([`LayoutIdentity::of_layout`]): regions, offsets and all digits. It leaves out
/// the number of blocks and the region sizes: pools of different lengths are equal as long as the
/// block axis is outermost. Where another axis lies outside the block axis in one region
/// (`L|KBNHC`), its stride is a multiple of the number of blocks and is part of the identity. A
/// layout of a single block has no block stride and so differs from longer ones.
///
/// **One block** ([`LayoutIdentity::of_block`]): the digits inside a block, relative to its first
/// byte. A stored block carries it. It is equal wherever blocks have the same interior: for
/// `BHLKNC` at any number of blocks, at any alignment, in a file or in memory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "UncheckedLayout")]
pub struct LayoutIdentity {
    scope: LayoutScope,
    regions: u64,
    planes: Vec<PlanePlace>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct UncheckedLayout {
    scope: LayoutScope,
    regions: u64,
    planes: Vec<PlanePlace>,
}

/// The place of one plane. An extent of 0 for the slowest digit of B leaves the number of blocks
/// open.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct PlanePlace {
    plane: PlaneName,
    unit_bytes: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    opaque: Option<String>,
    region: u64,
    offset: u64,
    digits: Vec<Digit>,
}

impl LayoutIdentity {
    /// The identity of all blocks of `layout`.
    #[must_use]
    pub fn of_layout(layout: &StridedLayout) -> LayoutIdentity {
        let place = |(plane, piece): (&Plane, &PlanePiece)| {
            let mut digits = StridedLayout::canonical_digits(piece);
            if let Some(slowest) = digits.iter_mut().rfind(|digit| digit.axis == Axis::B) {
                slowest.extent = 0;
            }
            PlanePlace::new(plane, piece.region(), piece.offset(), digits)
        };
        LayoutIdentity::sorted(
            LayoutScope::AllBlocks,
            layout.region_bytes().len() as u64,
            layout.planes().map(place).collect(),
        )
    }

    /// The identity of one block of `layout`.
    #[must_use]
    pub fn of_block(layout: &StridedLayout) -> LayoutIdentity {
        let pieces = layout.pieces();
        let Some(first_region) = pieces.iter().map(PlanePiece::region).min() else {
            broken(format_args!("a layout of no pieces: {layout:?}"))
        };
        let first_offset = |region: u64| {
            let same = pieces.iter().filter(|piece| piece.region() == region);
            match same.map(PlanePiece::offset).min() {
                Some(offset) => offset,
                None => broken(format_args!(
                    "no piece of {} is in region {region}",
                    pieces.len()
                )),
            }
        };
        let mut regions = 1;
        let place = |(plane, piece): (&Plane, &PlanePiece)| {
            let mut digits = StridedLayout::canonical_digits(piece);
            digits.retain(|digit| digit.axis != Axis::B);
            let region = piece.region() - first_region;
            let far = digits.iter().map(|d| (d.extent - 1) * d.step.regions);
            regions = regions.max(region + far.sum::<u64>() + 1);
            let offset = piece.offset() - first_offset(piece.region());
            PlanePlace::new(plane, region, offset, digits)
        };
        let planes = layout.planes().map(place).collect();
        LayoutIdentity::sorted(LayoutScope::OneBlock, regions, planes)
    }

    fn sorted(scope: LayoutScope, regions: u64, mut planes: Vec<PlanePlace>) -> LayoutIdentity {
        planes.sort_by(|a, b| a.plane.cmp(&b.plane));
        LayoutIdentity {
            scope,
            regions,
            planes,
        }
    }

    /// Whether the identity covers all blocks or one.
    #[must_use]
    pub fn scope(&self) -> LayoutScope {
        self.scope
    }

    /// The fingerprint of all fields.
    #[must_use]
    pub fn fingerprint(&self) -> Fingerprint {
        self.fields().fingerprint(CONTEXT)
    }

    /// The first field that differs, in a fixed order; `None` exactly where the identities are
    /// equal.
    #[must_use]
    pub fn first_difference(&self, other: &LayoutIdentity) -> Option<Difference> {
        self.differences(other).into_iter().next()
    }

    /// Every field that differs, in a fixed order.
    #[must_use]
    pub fn differences(&self, other: &LayoutIdentity) -> Vec<Difference> {
        self.fields().differences(&other.fields())
    }

    pub(super) fn fields(&self) -> CanonicalFields {
        let mut fields = CanonicalFields::default();
        let scope = match self.scope {
            LayoutScope::AllBlocks => "all blocks",
            LayoutScope::OneBlock => "one block",
        };
        fields.text("layout.scope", scope);
        fields.number("layout.regions", self.regions);
        let names: Vec<&str> = self.planes.iter().map(|p| p.plane.as_str()).collect();
        fields.text("layout.planes", names.join(", "));
        for place in &self.planes {
            let name = &place.plane;
            fields.number(format!("layout.{name}.unit_bytes"), place.unit_bytes);
            if let Some(codec) = &place.opaque {
                fields.text(format!("layout.{name}.opaque"), codec);
            }
            fields.number(format!("layout.{name}.region"), place.region);
            fields.number(format!("layout.{name}.offset"), place.offset);
            let digits: Vec<String> = place.digits.iter().map(digit_text).collect();
            fields.text(format!("layout.{name}.digits"), digits.join(", "));
        }
        fields
    }

    fn check(&self) -> Result<(), LayoutError> {
        check_count("layout.planes", self.planes.len(), PLANES_MAX)?;
        if self.planes.is_empty() {
            return Err(LayoutError::Shape(ShapeError::PlaneCount { count: 0 }));
        }
        if self.regions == 0 || self.regions > REGIONS_MAX {
            return Err(LayoutError::Resolve(ResolveError::TooManyRegions {
                regions: self.regions,
                max: REGIONS_MAX,
            }));
        }
        let mut previous: Option<&PlaneName> = None;
        for place in &self.planes {
            if let Some(codec) = &place.opaque {
                Unit::opaque(codec, place.unit_bytes)?;
            }
            let in_order = previous.is_none_or(|name| *name < place.plane);
            if !in_order || !place.is_canonical(self.scope, self.regions) {
                return Err(IdentityError::NotCanonical {
                    plane: place.plane.clone(),
                }
                .into());
            }
            previous = Some(&place.plane);
        }
        Ok(())
    }
}

impl TryFrom<UncheckedLayout> for LayoutIdentity {
    type Error = LayoutError;

    fn try_from(layout: UncheckedLayout) -> Result<LayoutIdentity, LayoutError> {
        let UncheckedLayout {
            scope,
            regions,
            planes,
        } = layout;
        let layout = LayoutIdentity {
            scope,
            regions,
            planes,
        };
        layout.check()?;
        Ok(layout)
    }
}

impl PlanePlace {
    fn new(plane: &Plane, region: u64, offset: u64, digits: Vec<Digit>) -> PlanePlace {
        let unit = plane.unit();
        PlanePlace {
            plane: plane.name().clone(),
            unit_bytes: unit.bytes(),
            opaque: unit.is_opaque().then(|| unit.codec().to_owned()),
            region,
            offset,
            digits,
        }
    }

    /// Whether these digits can come from a layout: in order, merged, in range.
    fn is_canonical(&self, scope: LayoutScope, regions: u64) -> bool {
        let last_block = self.digits.iter().rposition(|d| d.axis == Axis::B);
        let digits_fit = self.digits.iter().enumerate().all(|(i, digit)| {
            let open = scope == LayoutScope::AllBlocks && last_block == Some(i);
            let of_block = digit.axis != Axis::B || scope == LayoutScope::AllBlocks;
            let extent = if open {
                digit.extent == 0
            } else {
                digit.extent > 1
            };
            let top = digit.low.checked_mul(digit.extent);
            let span = digit.step.times(digit.extent);
            digit.low > 0 && of_block && extent && top.is_some() && span.is_some()
        });
        let pairs = self.digits.iter().zip(self.digits.iter().skip(1));
        let merged = pairs.into_iter().all(|(a, b)| {
            let continues = a.axis == b.axis
                && a.low.checked_mul(a.extent) == Some(b.low)
                && a.step.times(a.extent) == Some(b.step);
            a < b && !continues
        });
        self.digits.len() <= DIGITS_MAX
            && self.unit_bytes > 0
            && self.unit_bytes <= BYTES_MAX
            && self.offset <= BYTES_MAX
            && self.region < regions
            && digits_fit
            && merged
    }
}

/// For instance `N16..64 +4096` (the digit of N from modulus 16 to 64, 4096 bytes a step) or
/// `L.. +1r` (all of L, one region a step).
fn digit_text(digit: &Digit) -> String {
    let Digit {
        axis, low, extent, ..
    } = digit;
    let mut text = axis.to_string();
    if *low > 1 {
        text.push_str(&low.to_string());
    }
    text.push_str("..");
    if *extent > 0 {
        text.push_str(&low.saturating_mul(*extent).to_string());
    }
    text.push_str(&format!(" +{}", digit.step.bytes));
    if !digit.step.is_local() {
        text.push_str(&format!(" +{}r", digit.step.regions));
    }
    text
}
