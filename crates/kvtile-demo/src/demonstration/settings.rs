//! The settings of a run, and the request to the second process.

use std::num::NonZeroUsize;
use std::path::PathBuf;

use kvtile::layout::Word;
use serde::{Deserialize, Serialize};

/// The source of the model.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ModelSource {
    /// The pinned model, fetched once; the tiny one where it is not available.
    Fetched,
    /// A GGUF file of the same architecture.
    File(PathBuf),
    /// The seeded miniature: no network, no real answer.
    Tiny,
}

/// The settings of a run.
#[derive(Clone, Debug)]
pub struct DemoSettings {
    /// The source of the model.
    pub model: ModelSource,
    /// The layout of the blocks in host memory and on disk, in which blocks must be contiguous.
    pub store_layout: Word,
    /// Tokens per block.
    pub page_size: NonZeroUsize,
    /// Tokens to answer; the answer continues past the end of the turn to this number.
    pub answer_tokens: NonZeroUsize,
    /// Compute threads of the model.
    pub threads: NonZeroUsize,
    /// Folder for the model and, in a subfolder, the files of the run.
    pub cache: PathBuf,
    /// Whether to keep the files of the run.
    pub keep: bool,
}

/// A model as a local file or the miniature, without need of a network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ModelFile {
    /// A GGUF file.
    Path(PathBuf),
    /// The miniature.
    Tiny,
}

/// The store of both processes: the host memory of each, and the folder, which persists.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoreSettings {
    /// The folder of the disk tier.
    pub folder: PathBuf,
    /// The layout of stored blocks.
    pub layout: Word,
    /// Tokens per block.
    pub page_size: NonZeroUsize,
    /// Capacity in blocks of host memory, and of the disk.
    pub blocks: NonZeroUsize,
}

/// The request to the second process. It contains no keys and values, and the prompt as text.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResumeRequest {
    /// The model, which the second process loads again.
    pub model: ModelFile,
    /// The store with the blocks.
    pub store: StoreSettings,
    /// The number of the request.
    pub number: usize,
    /// Its question.
    pub question: String,
    /// Its whole prompt.
    pub prompt: String,
    /// Leading blocks that it shares with earlier requests, all of which must come from disk.
    pub prefix_blocks: usize,
    /// Tokens to answer.
    pub answer_tokens: NonZeroUsize,
    /// Compute threads of the model.
    pub threads: NonZeroUsize,
}
