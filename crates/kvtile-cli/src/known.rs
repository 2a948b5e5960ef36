//! Resolves layouts that the user names, for the shape of the options.

use kvtile::{
    layout::StridedLayout,
    presets::{Preset, PresetLayout, RequestedLayout},
};

use crate::{error::CliError, shape_args::ShapeArgs};

/// Resolves the requested layout for the shape of the options.
pub(crate) fn resolve(
    asked: &RequestedLayout,
    shape: &ShapeArgs,
) -> Result<StridedLayout, CliError> {
    let resolved = shape.shape(asked.example())?;
    Ok(asked.resolve(&resolved, shape.alignment)?)
}

/// A short form of the layout of a preset.
pub(crate) fn short(preset: &Preset) -> String {
    match &preset.layout {
        PresetLayout::Word(word) => word.to_string(),
        PresetLayout::Digits { .. } => "(explicit strides)".to_owned(),
        PresetLayout::Refused(_) => "(refused)".to_owned(),
    }
}
