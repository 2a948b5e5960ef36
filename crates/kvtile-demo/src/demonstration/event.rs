//! What happens, as it happens.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::report::{
    AllocateReport, AnswerReport, Comparison, ModelReport, OpenReport, PrefillReport, PromptReport,
    Refusal, RestoreReport, SaveReport,
};
use crate::fetch::Progress;

/// One thing that happened. The events of the second process arrive between
/// [`Event::SecondProcess`] and [`Event::Compared`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Event {
    /// The run's folder, which is there from now on. It is to be removed by whoever
    /// ends this process before the run is over.
    Folder {
        /// Its path.
        path: PathBuf,
    },
    /// The model is being fetched or checked.
    Fetching(Progress),
    /// The model's file is here, and is what was pinned.
    Fetched {
        /// Its path.
        path: PathBuf,
        /// Bytes that were downloaded; 0 where the file was there already.
        downloaded_bytes: u64,
        /// Downloading and checking, seconds.
        seconds: f64,
    },
    /// The real model cannot be had; the tiny one runs instead.
    TinyInstead {
        /// Why.
        reason: String,
    },
    /// The model is loaded.
    Loaded(ModelReport),
    /// The prompt is tokenised.
    Prompt(PromptReport),
    /// The blocks are allocated; from here on time to first token counts.
    Allocated(AllocateReport),
    /// So many tokens of the prompt are computed.
    Prefilling {
        /// Tokens done.
        done: usize,
        /// Tokens of the prompt.
        total: usize,
    },
    /// The prompt is computed, and the first token of the answer known.
    Prefilled(PrefillReport),
    /// A piece of the answer, as text. Nothing follows the end of the turn.
    Said {
        /// The piece.
        text: String,
    },
    /// The answer is complete.
    Answered(AnswerReport),
    /// The blocks are in the file.
    Saved(SaveReport),
    /// The second process has started.
    SecondProcess {
        /// Its process id.
        id: u32,
    },
    /// The file is open: its header is whole, its identity is the model's.
    Opened(OpenReport),
    /// The blocks are in memory again, each compared with its checksum.
    Restored(RestoreReport),
    /// The last token of the prompt is computed, and the first of the answer known.
    Resumed {
        /// Seconds of this computation.
        step_seconds: f64,
        /// Seconds from opening the file to here.
        seconds: f64,
        /// Tokens that were computed.
        computed_tokens: usize,
    },
    /// Both processes are compared.
    Compared(Comparison),
    /// The file was refused to another model.
    Refused(Refusal),
}
