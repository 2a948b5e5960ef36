//! Known layouts of real engines, and the numbers of well-known models.
//!
//! The data are two files beside the sources, `presets/layouts.toml` and `presets/models.toml`.
//! Every row states its source and its evidence. Nothing here guesses: the name of a layout or the
//! shape of a tensor alone never selects a preset. [`Evidence`] marks presets whose bytes are
//! unchecked.
//!
//! ```
//! use kvtile_layout::presets;
//!
//! let preset = presets::find("vllm:LBHNC/cpu/bf16/vec")?;
//! assert_eq!(preset.word().map(ToString::to_string).as_deref(), Some("L|BH(kCN,vNC)"));
//! assert!(preset.evidence.bytes_checked());
//! # Ok::<(), kvtile_layout::LayoutError>(())
//! ```

mod data;
mod error;
mod models;
mod requested;

use std::{fmt, sync::LazyLock};

pub use error::PresetError;
pub use models::{ModelCache, ModelPreset, find_model, models};
pub use requested::RequestedLayout;
use serde::{Deserialize, Serialize};

use crate::{
    error::LayoutError,
    near::nearest,
    shape::Shape,
    strided::{PlaneDigits, StridedLayout},
    unit::Unit,
    word::Word,
};

static LAYOUTS: LazyLock<Result<Vec<Preset>, LayoutError>> =
    LazyLock::new(|| data::parse(include_str!("../../presets/layouts.toml")));

/// Every known layout, in the order of the data file: by engine.
///
/// # Errors
/// A broken data file, which the tests of this crate exclude.
pub fn all() -> Result<&'static [Preset], LayoutError> {
    LAYOUTS.as_deref().map_err(Clone::clone)
}

/// The layout called `name`. Case does not count, and dtypes may have any name that [`Unit::named`]
/// knows.
///
/// # Errors
/// [`PresetError::Unknown`], with names that resemble it.
pub fn find(name: &str) -> Result<&'static Preset, LayoutError> {
    let all = all()?;
    if let Some(preset) = all.iter().find(|preset| preset.name == name) {
        return Ok(preset);
    }
    let wanted = spelled(name);
    let mut alike = all
        .iter()
        .filter(|preset| preset.name.eq_ignore_ascii_case(&wanted));
    // Two names that differ only in case are two layouts, so neither is chosen.
    if let (Some(preset), None) = (alike.next(), alike.next()) {
        return Ok(preset);
    }
    let names = all.iter().map(|preset| preset.name.as_str());
    Err(unknown("layout", name, names).into())
}

/// How a layout is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Evidence {
    /// Compared byte for byte with what the engine's own code or kernel wrote.
    Run,
    /// Strides compared with those of tensors from the engine's own code; bytes unchecked.
    Strides,
    /// From the engine's source; bytes unchecked.
    Read,
    /// From excerpts or documentation, without a line number; bytes unchecked.
    Excerpt,
    /// The interior is unknown.
    None,
}

impl Evidence {
    /// Whether this project compared bytes that the engine wrote.
    #[must_use]
    pub fn bytes_checked(self) -> bool {
        self == Evidence::Run
    }
}

impl fmt::Display for Evidence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Evidence::Run => "compared byte for byte with what the engine wrote",
            Evidence::Strides => "strides compared with the engine's tensors; bytes unchecked",
            Evidence::Read => "read in the engine's source; bytes unchecked",
            Evidence::Excerpt => "from excerpts or documentation; bytes unchecked",
            Evidence::None => "interior unknown",
        })
    }
}

/// How a preset states its layout.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PresetLayout {
    /// A word.
    Word(Word),
    /// Explicit digits for the example shape, over regions of the given sizes in bytes.
    Digits {
        /// Digits of every plane.
        planes: Vec<PlaneDigits>,
        /// Bytes of each region.
        region_bytes: Vec<u64>,
    },
    /// No layout, for this reason.
    Refused(String),
}

/// One known layout.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Preset {
    /// `engine:layout/backend/dtype/instruction set`, as far as each is known.
    pub name: String,
    /// The engine, in its usual spelling.
    pub engine: String,
    /// The version that was read or run, where known.
    pub version: Option<String>,
    /// A description of the case.
    pub case: String,
    /// The layout.
    pub layout: PresetLayout,
    /// The planes and units of the layout, with small example sizes; `None` where it is refused.
    pub shape: Option<Shape>,
    /// The source of the layout in the engine.
    pub source: String,
    /// The evidence for it.
    pub evidence: Evidence,
    /// A warning or a hint for users.
    pub note: Option<String>,
}

impl Preset {
    /// The word, where there is one.
    #[must_use]
    pub fn word(&self) -> Option<&Word> {
        match &self.layout {
            PresetLayout::Word(word) => Some(word),
            PresetLayout::Digits { .. } | PresetLayout::Refused(_) => None,
        }
    }

    /// The layout for its example shape.
    ///
    /// # Errors
    /// A preset that is refused.
    pub fn example(&self) -> Result<StridedLayout, LayoutError> {
        match &self.shape {
            Some(shape) => self.resolve(shape, 1),
            None => Err(self.refused("no example").into()),
        }
    }

    /// The layout for `shape`, whose planes must have the names that the word uses. Stride rules of
    /// the word (`@` and `=`) keep their values from the example.
    ///
    /// # Errors
    /// A preset that is refused, or has explicit strides for another shape; the errors of
    /// [`StridedLayout::resolve`].
    pub fn resolve(&self, shape: &Shape, alignment: u64) -> Result<StridedLayout, LayoutError> {
        match &self.layout {
            PresetLayout::Word(word) => StridedLayout::resolve(word, shape, alignment),
            PresetLayout::Digits {
                planes,
                region_bytes,
            } if self.shape.as_ref() == Some(shape) => {
                StridedLayout::from_digits(shape, planes, region_bytes, alignment)
            }
            PresetLayout::Digits { .. } => Err(PresetError::OneShape {
                name: self.name.clone(),
            }
            .into()),
            PresetLayout::Refused(reason) => Err(self.refused(reason).into()),
        }
    }

    fn refused(&self, reason: &str) -> PresetError {
        PresetError::Refused {
            name: self.name.clone(),
            reason: reason.to_owned(),
        }
    }
}

/// A name with its dtypes in the spelling of the data file.
fn spelled(name: &str) -> String {
    let part = |part: &str| match Unit::named(part) {
        // In names, `fp8` keeps the engine's spelling.
        Some(unit) if !part.eq_ignore_ascii_case("fp8") => unit.codec().to_owned(),
        _ => part.to_owned(),
    };
    name.split('/').map(part).collect::<Vec<_>>().join("/")
}

/// The error for a name that is not among `names`, with up to three that have most of its parts.
fn unknown<'a>(
    kind: &'static str,
    name: &str,
    names: impl Iterator<Item = &'a str>,
) -> PresetError {
    let parts = |text: &str| -> Vec<String> {
        let parts = text.split([':', '/', '-', '.', '_', ' ']);
        parts.map(str::to_ascii_lowercase).collect()
    };
    let wanted = parts(name);
    let names: Vec<&str> = names.collect();
    let mut close: Vec<(usize, &str)> = names
        .iter()
        .map(|&known| {
            let mine = parts(known);
            let shared = wanted.iter().filter(|part| mine.contains(part)).count();
            (shared, known)
        })
        .filter(|(shared, _)| *shared > 0)
        .collect();
    close.sort_by_key(|(shared, known)| (std::cmp::Reverse(*shared), known.len()));
    close.dedup_by_key(|(_, known)| *known);
    let mut suggested: Vec<&str> = close.into_iter().map(|(_, known)| known).collect();
    if suggested.is_empty() {
        suggested = nearest(name, names);
    }
    PresetError::Unknown {
        kind,
        name: name.to_owned(),
        close: suggested.into_iter().take(3).map(str::to_owned).collect(),
    }
}
