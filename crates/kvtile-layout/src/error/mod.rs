//! The errors of layouts, words, plans and identities.

mod plan;
mod resolve;
mod shape;

pub use plan::PlanError;
pub use resolve::ResolveError;
pub use shape::ShapeError;

use std::convert::Infallible;

use thiserror::Error;

use crate::{
    identity::IdentityError, presets::PresetError, tensor::TensorError, tradition::ConfigError,
    word::ParseError,
};

/// Why a layout or a plan was refused. Every message gives the values and what to do.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum LayoutError {
    /// A text that is not a word of the layout language, with the parse error.
    #[error("not a layout word: {0}")]
    Parse(#[from] ParseError),
    /// An invalid traditional config or layout details that are invalid.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// An invalid identity, or a part of one.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// A preset that is unknown, refused or broken.
    #[error(transparent)]
    Preset(#[from] PresetError),
    /// Imported tensors that make no layout.
    #[error(transparent)]
    Tensor(#[from] TensorError),
    /// A shape, a plane or a unit that is not valid.
    #[error(transparent)]
    Shape(#[from] ShapeError),
    /// A word or digits that do not describe a layout of the shape.
    #[error(transparent)]
    Resolve(#[from] ResolveError),
    /// A copy between two layouts that cannot be planned.
    #[error(transparent)]
    Plan(#[from] PlanError),
}

/// For arguments that are converted: a value that is already of the type is never refused.
impl From<Infallible> for LayoutError {
    fn from(never: Infallible) -> LayoutError {
        match never {}
    }
}
