//! Layouts as the user asks for them: a word, or the name of a known one.

use kvtile::{
    layout::{Shape, StridedLayout, Word},
    presets::{self, Preset, PresetLayout},
};

use crate::{error::CliError, layout::Known, shape_args::ShapeArgs};

/// A layout that was asked for.
#[derive(Clone, Debug)]
pub enum Asked {
    /// By a word.
    Word(Word),
    /// By the name of a known layout, `engine:…`.
    Known(&'static Preset),
}

impl Asked {
    /// Reads a word or a name: names of known layouts have a colon, words never have.
    ///
    /// # Errors
    /// The text is no word, or no known layout has this name.
    pub fn parse(text: &str) -> Result<Asked, CliError> {
        if text.contains(':') {
            return Ok(Asked::Known(presets::find(text)?));
        }
        let word = Word::parse(text).map_err(kvtile::layout::LayoutError::from)?;
        Ok(Asked::Word(word))
    }

    /// What is known of a known layout.
    pub(crate) fn known(&self) -> Option<Known> {
        match self {
            Asked::Word(_) => None,
            Asked::Known(preset) => Some(Known::of(preset)),
        }
    }

    /// The shape that a known layout is for.
    pub fn example(&self) -> Option<&Shape> {
        match self {
            Asked::Word(_) => None,
            Asked::Known(preset) => preset.shape.as_ref(),
        }
    }

    /// The layout for the shape that the options describe.
    pub(crate) fn resolve(&self, shape: &ShapeArgs) -> Result<StridedLayout, CliError> {
        match self {
            Asked::Word(word) => {
                let resolved = shape.shape(None)?;
                Ok(StridedLayout::resolve(word, &resolved, shape.alignment)?)
            }
            Asked::Known(preset) => {
                let resolved = shape.shape(preset.shape.as_ref())?;
                Ok(preset.resolve(&resolved, shape.alignment)?)
            }
        }
    }
}

/// The layout of a preset in a few characters.
pub(crate) fn short(preset: &Preset) -> String {
    match &preset.layout {
        PresetLayout::Word(word) => word.to_string(),
        PresetLayout::Digits { .. } => "(explicit strides)".to_owned(),
        PresetLayout::Refused(_) => "(refused)".to_owned(),
    }
}
