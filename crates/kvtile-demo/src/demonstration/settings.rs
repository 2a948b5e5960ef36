//! What a run is told.

use std::num::NonZeroUsize;
use std::path::PathBuf;

use kvtile::layout::Word;
use serde::{Deserialize, Serialize};

/// Where the model comes from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ModelSource {
    /// The pinned model, fetched once; the tiny one where it cannot be had.
    Fetched,
    /// A GGUF file of the same architecture.
    File(PathBuf),
    /// The seeded miniature: no network, no real answer.
    Tiny,
}

/// The settings of a run.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Where the model comes from.
    pub model: ModelSource,
    /// The order of the blocks in host memory and on disk; a block has to be one piece in it.
    pub store_layout: Word,
    /// Tokens of a block.
    pub page_size: NonZeroUsize,
    /// Tokens to answer: always as many, past the end of the turn too.
    pub answer_tokens: NonZeroUsize,
    /// Threads that the model computes on.
    pub threads: NonZeroUsize,
    /// Folder for the model and, in a folder of its own, the files of the run.
    pub cache: PathBuf,
    /// Whether the files of the run stay.
    pub keep: bool,
}

/// A model that needs no network any more.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ModelFile {
    /// A GGUF file.
    Path(PathBuf),
    /// The miniature.
    Tiny,
}

/// The store of both processes: host memory of each, and the folder that outlives them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoreSettings {
    /// The folder of the disk tier.
    pub folder: PathBuf,
    /// The order of stored blocks.
    pub layout: Word,
    /// Tokens of a block.
    pub page_size: NonZeroUsize,
    /// Blocks that host memory holds, and the disk as well.
    pub blocks: NonZeroUsize,
}

/// What the second process is told: no key and no value, and the prompt as text.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResumeRequest {
    /// The model, to load anew.
    pub model: ModelFile,
    /// Where the blocks are.
    pub store: StoreSettings,
    /// The number of the request.
    pub number: usize,
    /// Its question.
    pub question: String,
    /// Its whole prompt.
    pub prompt: String,
    /// Leading blocks that it shares with requests before it, all of which are to come from
    /// disk.
    pub prefix_blocks: usize,
    /// Tokens to answer.
    pub answer_tokens: NonZeroUsize,
    /// Threads that the model computes on.
    pub threads: NonZeroUsize,
}
