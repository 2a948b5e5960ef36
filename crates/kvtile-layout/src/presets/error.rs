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
    /// The name of an engine, or a part of the name of a known layout, in the place of a word.
    #[error("{text:?} is no layout word; it names {what}:{}", listed(layouts, *left_out))]
    NameForWord {
        /// The text.
        text: String,
        /// What it names.
        what: String,
        /// The known layouts that it may mean.
        layouts: Vec<String>,
        /// How many more there are.
        left_out: usize,
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

/// One name a line.
fn listed(layouts: &[String], left_out: usize) -> String {
    let mut text = String::new();
    for name in layouts {
        text.push_str("\n  ");
        text.push_str(name);
    }
    if left_out > 0 {
        text.push_str(&format!("\n  and {left_out} more"));
    }
    text
}
