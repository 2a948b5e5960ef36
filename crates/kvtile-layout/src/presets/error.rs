//! What can be wrong with presets.

use thiserror::Error;

/// Why a preset was not found, or is no layout.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum PresetError {
    /// A data file of this crate that is broken. Its tests keep this from being released.
    #[error("{file}: {problem}")]
    Data {
        /// The file.
        file: &'static str,
        /// What is wrong with it.
        problem: String,
    },
    /// A name that no preset has.
    #[error("no {kind} is called {name:?}; {}", suggestion(close))]
    Unknown {
        /// `layout` or `model`.
        kind: &'static str,
        /// The name asked for.
        name: String,
        /// Names that resemble it.
        close: Vec<String>,
    },
    /// A cache that has no layout of blocks.
    #[error("{name} has no layout: {reason}")]
    Refused {
        /// The preset.
        name: String,
        /// Why not.
        reason: String,
    },
    /// Explicit strides, which are those of one shape.
    #[error("{name} has explicit strides for its example shape only; give a word or the tensors")]
    OneShape {
        /// The preset.
        name: String,
    },
    /// A unit that a head cannot be cut into.
    #[error("{values} values do not make up whole units of {unit}, for model {name}")]
    UnitValues {
        /// The model.
        name: String,
        /// Values of one head, or of the latent.
        values: u64,
        /// The unit.
        unit: String,
    },
}

fn suggestion(close: &[String]) -> String {
    match close {
        [] => "list them to see the names".to_owned(),
        close => format!("did you mean {}?", close.join(" or ")),
    }
}
