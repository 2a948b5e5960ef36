//! The events of a run, in real time.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::report::{
    AllocateReport, AnswerReport, FlushedReport, FolderRefusal, ModelReport, OpenReport,
    PrefixReport, PromptReport, RequestReport, StoredReport,
};
use crate::fetch::FetchProgress;

/// One event. The events of the second process arrive between [`DemoEvent::SecondProcess`] and the last
/// [`DemoEvent::Compared`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum DemoEvent {
    /// The folder of the run exists. A caller that ends this process early must remove it.
    Folder {
        /// Its path.
        path: PathBuf,
    },
    /// The model is being fetched or checked.
    Fetching(FetchProgress),
    /// The model's file exists and has the pinned digest.
    Fetched {
        /// Its path.
        path: PathBuf,
        /// Bytes that were downloaded; 0 where the file existed already.
        downloaded_bytes: u64,
        /// Time to download and check, in seconds.
        seconds: f64,
    },
    /// The real model is not available; the tiny one runs instead.
    TinyInstead {
        /// The reason.
        reason: String,
    },
    /// The model is loaded.
    Loaded(ModelReport),
    /// The prompts are tokenised.
    Prompt(PromptReport),
    /// The engine's blocks are allocated.
    Allocated(AllocateReport),
    /// The cache is open: the identity of its folder is that of the model.
    Opened(OpenReport),
    /// A request has arrived; its time to first token starts here.
    Request {
        /// Its number, from 1 on.
        number: usize,
        /// The question.
        question: String,
        /// Tokens of its prompt.
        prompt_tokens: usize,
    },
    /// Progress of the prefill.
    Prefilling {
        /// Tokens done.
        done: usize,
        /// Tokens to compute.
        total: usize,
    },
    /// The prefix of the request is in the engine's blocks, loaded or computed.
    Prefix(PrefixReport),
    /// The tokens after the prefix are computed, and the first token of the answer is known.
    FirstToken {
        /// Tokens after the prefix.
        rest_tokens: usize,
        /// Seconds since the arrival of the request.
        seconds: f64,
    },
    /// A piece of the answer, as text. Text after the end of the turn is left out.
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
    /// All blocks of host memory are on disk, and the cache of the first process is closed.
    Flushed(FlushedReport),
    /// The second process has started.
    SecondProcess {
        /// Its process id.
        id: u32,
    },
    /// The folder was refused to another model.
    Refused(FolderRefusal),
}
