//! Planes: the named components of a block.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{
    axis::Axis,
    error::{LayoutError, ShapeError},
    unit::{NAME_BYTES_MAX, Unit},
};

/// The name of a plane: lower-case letters, for instance `k`, `v`, `ks` or `conv`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PlaneName(String);

impl PlaneName {
    /// Checks and takes a name.
    ///
    /// # Errors
    /// A name that is empty, longer than 64 letters or has characters other than `a` to `z`.
    pub fn new(name: &str) -> Result<PlaneName, LayoutError> {
        if name.is_empty()
            || name.len() > NAME_BYTES_MAX
            || !name.bytes().all(|b| b.is_ascii_lowercase())
        {
            return Err(LayoutError::Shape(ShapeError::PlaneName {
                name: name.chars().take(NAME_BYTES_MAX).collect(),
            }));
        }
        Ok(PlaneName(name.to_owned()))
    }

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for PlaneName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for PlaneName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<PlaneName> for String {
    fn from(name: PlaneName) -> String {
        name.0
    }
}

impl TryFrom<String> for PlaneName {
    type Error = LayoutError;

    fn try_from(name: String) -> Result<Self, LayoutError> {
        PlaneName::new(&name)
    }
}

/// One named component of a block with its own unit and its own extents.
///
/// All planes of a shape share blocks and layers. A plane is per token (one entry for each of the
/// `page_size` tokens) unless [`Plane::per_page`] makes it per page. [`Plane::extent`] adds heads,
/// content and declared axes.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "UncheckedPlane")]
pub struct Plane {
    name: PlaneName,
    unit: Unit,
    per_token: bool,
    extents: Vec<(Axis, u64)>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct UncheckedPlane {
    name: PlaneName,
    unit: Unit,
    #[serde(default = "per_token_default")]
    per_token: bool,
    #[serde(default)]
    extents: Vec<(Axis, u64)>,
}

impl TryFrom<UncheckedPlane> for Plane {
    type Error = LayoutError;

    fn try_from(plane: UncheckedPlane) -> Result<Plane, LayoutError> {
        let UncheckedPlane {
            name,
            unit,
            per_token,
            mut extents,
        } = plane;
        extents.sort_unstable();
        let plane = Plane {
            name,
            unit,
            per_token,
            extents,
        };
        plane.check()?;
        Ok(plane)
    }
}

fn per_token_default() -> bool {
    true
}

impl Plane {
    /// A plane of one unit per token.
    ///
    /// # Errors
    /// A bad plane name.
    pub fn new(name: &str, unit: Unit) -> Result<Plane, LayoutError> {
        Ok(Plane {
            name: PlaneName::new(name)?,
            unit,
            per_token: true,
            extents: Vec::new(),
        })
    }

    /// Gives the plane `extent` entries along `axis` (H, C or a declared axis), in units.
    #[must_use]
    pub fn extent(mut self, axis: Axis, extent: u64) -> Plane {
        self.extents.push((axis, extent));
        self.extents.sort_unstable();
        self
    }

    /// Makes the plane per page: one entry for each block and layer instead of one per token, as
    /// for a recurrent state or an opaque page.
    #[must_use]
    pub fn per_page(mut self) -> Plane {
        self.per_token = false;
        self
    }

    /// The name.
    #[must_use]
    pub fn name(&self) -> &PlaneName {
        &self.name
    }

    /// The unit.
    #[must_use]
    pub fn unit(&self) -> &Unit {
        &self.unit
    }

    /// Whether the plane has an entry for each token.
    #[must_use]
    pub fn is_per_token(&self) -> bool {
        self.per_token
    }

    /// The extents that the plane declares, by axis.
    #[must_use]
    pub fn extents(&self) -> &[(Axis, u64)] {
        &self.extents
    }

    /// The declared extent of `axis`, or 1.
    #[must_use]
    pub fn extent_of(&self, axis: Axis) -> u64 {
        self.extents
            .iter()
            .find(|(a, _)| *a == axis)
            .map_or(1, |(_, extent)| *extent)
    }

    /// Whether the plane declares `axis`.
    #[must_use]
    pub fn has(&self, axis: Axis) -> bool {
        self.extents.iter().any(|(a, _)| *a == axis)
    }

    /// The plane with another number of heads, if it has heads.
    pub(super) fn with_heads(&self, heads: u64) -> Plane {
        let mut plane = self.clone();
        for (axis, extent) in &mut plane.extents {
            if *axis == Axis::H {
                *extent = heads;
            }
        }
        plane
    }

    pub(super) fn check(&self) -> Result<(), LayoutError> {
        let mut previous = None;
        for &(axis, extent) in &self.extents {
            if matches!(axis, Axis::B | Axis::L | Axis::K | Axis::N) || previous == Some(axis) {
                return Err(LayoutError::Shape(ShapeError::PlaneAxis {
                    plane: self.name.clone(),
                    axis,
                }));
            }
            if extent == 0 {
                return Err(LayoutError::Shape(ShapeError::ZeroExtent {
                    what: format!("{axis} of plane {}", self.name),
                }));
            }
            previous = Some(axis);
        }
        Ok(())
    }
}
