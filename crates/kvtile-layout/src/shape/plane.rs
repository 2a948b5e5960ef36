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

/// How many entries a plane has in a block and layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PlanePer {
    /// One for each token.
    Token,
    /// One for each group of this many consecutive tokens, at least 2: compressed KV that has one
    /// entry for several tokens, or scales that a run of tokens shares. The page size is a multiple
    /// of it.
    Every(u64),
    /// One for the page, such as a recurrent state or an opaque page.
    Page,
}

impl PlanePer {
    /// Number of tokens that share an entry; `None` where an entry is of the page.
    #[must_use]
    pub fn tokens(self) -> Option<u64> {
        match self {
            PlanePer::Token => Some(1),
            PlanePer::Every(tokens) => Some(tokens),
            PlanePer::Page => None,
        }
    }
}

impl fmt::Display for PlanePer {
    /// `token`, `4 tokens` or `page`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PlanePer::Token => f.write_str("token"),
            PlanePer::Every(tokens) => write!(f, "{tokens} tokens"),
            PlanePer::Page => f.write_str("page"),
        }
    }
}

/// One named component of a block with its own unit and its own extents.
///
/// All planes of a shape share blocks and layers. A plane is per token (one entry for each of the
/// `page_size` tokens) unless [`Plane::every`] gives it one entry for several tokens, or
/// [`Plane::per_page`] one for the page. [`Plane::extent`] adds heads, content and declared axes.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "StoredPlane", into = "StoredPlane")]
pub struct Plane {
    name: PlaneName,
    unit: Unit,
    per: PlanePer,
    extents: Vec<(Axis, u64)>,
}

/// The serialised form.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct StoredPlane {
    name: PlaneName,
    unit: Unit,
    #[serde(default = "per_token_default")]
    per_token: bool,
    /// The tokens of an entry, if there are several.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    every: Option<u64>,
    #[serde(default)]
    extents: Vec<(Axis, u64)>,
}

impl From<Plane> for StoredPlane {
    fn from(plane: Plane) -> StoredPlane {
        StoredPlane {
            name: plane.name,
            unit: plane.unit,
            per_token: plane.per != PlanePer::Page,
            every: match plane.per {
                PlanePer::Every(tokens) => Some(tokens),
                PlanePer::Token | PlanePer::Page => None,
            },
            extents: plane.extents,
        }
    }
}

impl TryFrom<StoredPlane> for Plane {
    type Error = LayoutError;

    fn try_from(stored: StoredPlane) -> Result<Plane, LayoutError> {
        let mut plane = Plane::new(stored.name.as_str(), stored.unit)?;
        plane.extents = stored.extents;
        plane.extents.sort_unstable();
        plane = match (stored.per_token, stored.every) {
            (true, None) => plane,
            (true, Some(tokens)) => plane.every(tokens),
            (false, None) => plane.per_page(),
            (false, Some(tokens)) => {
                return Err(LayoutError::Shape(ShapeError::PlaneEvery {
                    plane: plane.name,
                    tokens,
                }));
            }
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
            per: PlanePer::Token,
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
        self.per = PlanePer::Page;
        self
    }

    /// Gives the plane one entry for each `tokens` consecutive tokens. The shape refuses a page size
    /// that is not a multiple of it.
    #[must_use]
    pub fn every(mut self, tokens: u64) -> Plane {
        self.per = match tokens {
            1 => PlanePer::Token,
            tokens => PlanePer::Every(tokens),
        };
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

    /// How many entries the plane has in a block and layer.
    #[must_use]
    pub fn per(&self) -> PlanePer {
        self.per
    }

    /// Whether the plane has an entry for each token.
    #[must_use]
    pub fn is_per_token(&self) -> bool {
        self.per == PlanePer::Token
    }

    /// Entries along N in a page of `page_size` tokens, which must be a multiple of the tokens of an
    /// entry.
    pub(super) fn entries(&self, page_size: u64) -> u64 {
        match self.per {
            PlanePer::Token => page_size,
            PlanePer::Every(tokens) => page_size.checked_div(tokens).unwrap_or(0),
            PlanePer::Page => 1,
        }
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
        if let PlanePer::Every(tokens @ 0) = self.per {
            return Err(LayoutError::Shape(ShapeError::PlaneEvery {
                plane: self.name.clone(),
                tokens,
            }));
        }
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
