//! Layouts as the user asks for them, for the shape that the options describe.

use kvtile::{
    layout::StridedLayout,
    presets::{AskedLayout, Preset, PresetLayout},
};

use crate::{error::CliError, shape_args::ShapeArgs};

/// The layout that was asked for, for the shape that the options describe.
pub(crate) fn resolve(asked: &AskedLayout, shape: &ShapeArgs) -> Result<StridedLayout, CliError> {
    let resolved = shape.shape(asked.example())?;
    Ok(asked.resolve(&resolved, shape.alignment)?)
}

/// The layout of a preset in a few characters.
pub(crate) fn short(preset: &Preset) -> String {
    match &preset.layout {
        PresetLayout::Word(word) => word.to_string(),
        PresetLayout::Digits { .. } => "(explicit strides)".to_owned(),
        PresetLayout::Refused(_) => "(refused)".to_owned(),
    }
}
