//! The errors of presets.

use thiserror::Error;

/// Why a preset was not found, or has no layout.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum PresetError {
    /// A broken data file of this crate. Its tests keep one from being released.
    #[error("{file}: {problem}")]
    Data {
        /// The file.
        file: &'static str,
        /// The problem.
        problem: String,
    },
    /// A name that no preset has.
    #[error("no {kind} is called {name:?}; {}", suggestion(close))]
    Unknown {
        /// `layout` or `model`.
        kind: &'static str,
        /// The requested name.
        name: String,
        /// Names that resemble it.
        close: Vec<String>,
    },
    /// The name of an engine, or a part of the name of a known layout, in place of a word.
    #[error("{text:?} is no layout word; it names {what}:{}", listed(layouts, *left_out))]
    NameForWord {
        /// The text.
        text: String,
        /// The named engine or layouts.
        what: String,
        /// The known layouts that it may mean.
        layouts: Vec<String>,
        /// The number of further layouts.
        left_out: usize,
    },
    /// A cache that has no block layout.
    #[error("{name} has no layout: {reason}")]
    Refused {
        /// The preset.
        name: String,
        /// The reason.
        reason: String,
    },
    /// A preset with explicit strides, for a shape other than its example.
    #[error("{name} has explicit strides for its example shape only; give a word or the tensors")]
    OneShape {
        /// The preset.
        name: String,
    },
    /// A unit that does not divide a head.
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
