//! What happens, as it happens.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::report::{
    AllocateReport, AnswerReport, FlushedReport, ModelReport, OpenReport, PrefixReport,
    PromptReport, Refusal, RequestReport, StoredReport,
};
use crate::fetch::Progress;

/// One thing that happened. The events of the second process arrive between
/// [`Event::SecondProcess`] and the last [`Event::Compared`].
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
    /// The prompts are tokenised.
    Prompt(PromptReport),
    /// The engine's blocks are allocated.
    Allocated(AllocateReport),
    /// The cache is open: what its folder holds is of this model.
    Opened(OpenReport),
    /// A request has come; from here on its time to first token counts.
    Request {
        /// Its number, from 1 on.
        number: usize,
        /// What is asked.
        question: String,
        /// Tokens of its prompt.
        prompt_tokens: usize,
    },
    /// So many tokens are computed.
    Prefilling {
        /// Tokens done.
        done: usize,
        /// Tokens to compute.
        total: usize,
    },
    /// The prefix of the request is in the engine's blocks, wherever it came from.
    Prefix(PrefixReport),
    /// The rest of the prompt is computed, and the first token of the answer known.
    FirstToken {
        /// Tokens behind the prefix.
        rest_tokens: usize,
        /// Seconds since the request came.
        seconds: f64,
    },
    /// A piece of the answer, as text. Nothing follows the end of the turn.
    Said {
        /// The piece.
        text: String,
    },
    /// The answer is complete.
    Answered(AnswerReport),
    /// The full blocks of the prompt are in host memory.
    Stored(StoredReport),
    /// A request is compared with its run from an empty sequence.
    Compared(Box<RequestReport>),
    /// What host memory held is on disk, and the cache of the first process is closed.
    Flushed(FlushedReport),
    /// The second process has started.
    SecondProcess {
        /// Its process id.
        id: u32,
    },
    /// The folder was refused to another model.
    Refused(Refusal),
}
