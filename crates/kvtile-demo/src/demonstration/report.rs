//! The report of a run, plain and serialisable. Times are in seconds.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// A loaded model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ModelReport {
    /// The title for people.
    pub title: String,
    /// Its name in its own file.
    pub name: String,
    /// Whether it is the miniature with random weights.
    pub tiny: bool,
    /// Size of its file in bytes.
    pub file_bytes: u64,
    /// SHA-256 of its file, hexadecimal.
    pub sha256: String,
    /// Layers.
    pub layers: usize,
    /// KV heads.
    pub kv_heads: usize,
    /// Values of a head.
    pub head_size: usize,
    /// Base of the rotary embedding.
    pub rope_base: f64,
    /// Compute threads.
    pub threads: usize,
    /// Time to read, hash, dequantise and pack the weights.
    pub seconds: f64,
}

/// The prompts of the requests, and the prefix that all of them share.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PromptReport {
    /// Tokens of each prompt.
    pub tokens: Vec<usize>,
    /// Tokens per block.
    pub page_size: usize,
    /// Full blocks of the shared prefix.
    pub prefix_blocks: usize,
    /// Their tokens.
    pub prefix_tokens: usize,
    /// Bytes of a block.
    pub block_bytes: u64,
    /// Bytes of the blocks of the shared prefix.
    pub prefix_bytes: u64,
}

/// Allocated blocks of an engine.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AllocateReport {
    /// The layout.
    pub layout: String,
    /// Blocks, for the prompts and the answers.
    pub blocks: usize,
    /// Bytes of memory.
    pub bytes: u64,
    /// Time to allocate them and map their pages.
    pub seconds: f64,
}

/// An opened cache.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct OpenReport {
    /// The folder of its disk tier.
    pub folder: PathBuf,
    /// The layout of stored blocks, in host memory and on disk.
    pub layout: String,
    /// Fingerprint of the identity that the folder and the model share.
    pub fingerprint: String,
    /// Blocks that host memory holds.
    pub host_blocks: u64,
    /// Blocks that the disk holds.
    pub disk_blocks: u64,
    /// Blocks that were on disk before.
    pub found_blocks: u64,
    /// Time to open it: host memory, the folder's manifest and records.
    pub seconds: f64,
}

/// Blocks and their tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PrefixPart {
    /// Full blocks.
    pub blocks: usize,
    /// Tokens in them.
    pub tokens: usize,
}

impl PrefixPart {
    /// A number of full blocks.
    pub(super) fn of(blocks: usize, page_size: usize) -> Self {
        Self {
            blocks,
            tokens: blocks * page_size,
        }
    }
}

/// The prefix of a request in the engine's blocks, and its sources.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PrefixReport {
    /// The layout of the engine's blocks.
    pub layout: String,
    /// Blocks that no tier had, which were computed.
    pub recomputed: PrefixPart,
    /// Blocks from host memory.
    pub host: PrefixPart,
    /// Blocks from disk, each verified by its checksum.
    pub disk: PrefixPart,
    /// Bytes of keys and values of the whole prefix.
    pub bytes: u64,
    /// Time from the arrival of the request until the prefix is complete: hashing the tokens, the
    /// lookup, and loading or computing.
    pub seconds: f64,
}

impl PrefixReport {
    /// The whole prefix.
    pub fn all(&self) -> PrefixPart {
        let parts = [self.recomputed, self.host, self.disk];
        PrefixPart {
            blocks: parts.iter().map(|part| part.blocks).sum(),
            tokens: parts.iter().map(|part| part.tokens).sum(),
        }
    }

    /// Bytes per second of the load; `None` where any of it was computed.
    pub fn bytes_per_second(&self) -> Option<f64> {
        (self.recomputed.blocks == 0).then(|| self.bytes as f64 / self.seconds.max(1e-9))
    }
}

/// An answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AnswerReport {
    /// Its tokens, always the requested number.
    pub tokens: Vec<u32>,
    /// Its text up to the end of the turn.
    pub text: String,
    /// Tokens before the end of the turn, if it ended.
    pub turn_tokens: Option<usize>,
    /// Time from the first token to the last.
    pub seconds: f64,
}

/// An answered request.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ServedReport {
    /// Its number, starting at 1.
    pub number: usize,
    /// The process that answered it.
    pub process_id: u32,
    /// The question.
    pub question: String,
    /// Tokens of its prompt.
    pub prompt_tokens: usize,
    /// Its prefix.
    pub prefix: PrefixReport,
    /// Tokens of the prompt after the prefix, which were computed.
    pub rest_tokens: usize,
    /// Time from the arrival of the request to the first token of the answer.
    pub first_token_seconds: f64,
    /// The answer.
    pub answer: AnswerReport,
}

/// The same request computed from an empty sequence, without the cache.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RecomputeReport {
    /// Time to compute the tokens of the prefix.
    pub prefix_seconds: f64,
    /// Time from the first token of the prompt to the first token of the answer.
    pub first_token_seconds: f64,
    /// The answer.
    pub answer: AnswerReport,
}

/// A request and its run from an empty sequence. The first request is that run itself.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RequestReport {
    /// The request as served.
    #[serde(flatten)]
    pub served: ServedReport,
    /// The same request without the cache, measured in this run.
    pub recompute: RecomputeReport,
    /// Seconds that the cache saved: the time to recompute the prefix minus the time to load it.
    pub saved_seconds: f64,
    /// The time to the first token without the cache over the time with it.
    pub first_token_ratio: f64,
    /// Compared tokens of the answers; none for the first request.
    pub tokens_compared: usize,
    /// The first token that differs.
    pub first_difference: Option<usize>,
}

/// Blocks that went from the engine to the cache.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StoredReport {
    /// The layout of the stored blocks.
    pub layout: String,
    /// Blocks that were copied.
    pub blocks: usize,
    /// Blocks that the cache had already.
    pub present: usize,
    /// Bytes of keys and values that were copied.
    pub bytes: u64,
    /// Time from the call to its completion.
    pub seconds: f64,
}

/// Blocks that went from host memory to disk before the first process ended.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FlushedReport {
    /// Blocks that were written.
    pub blocks: usize,
    /// Bytes of keys and values.
    pub bytes: u64,
    /// Time to write, compute checksums, and wait for durability.
    pub seconds: f64,
}

/// The report of the first process.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FirstReport {
    /// Its process id.
    pub process_id: u32,
    /// Why the tiny model runs instead of the requested one.
    pub tiny_instead: Option<String>,
    /// The model.
    pub model: ModelReport,
    /// The prompts.
    pub prompt: PromptReport,
    /// The engine's blocks.
    pub allocate: AllocateReport,
    /// The cache, empty.
    pub open: OpenReport,
    /// The stored blocks of each request.
    pub stored: [StoredReport; 2],
    /// The final flush to disk.
    pub flushed: FlushedReport,
}

/// The report of the second process.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SecondReport {
    /// Its process id.
    pub process_id: u32,
    /// Its model.
    pub model: ModelReport,
    /// The engine's blocks.
    pub allocate: AllocateReport,
    /// The cache of the first process's folder.
    pub open: OpenReport,
}

/// The message of the second process: its report and the request that it answered.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ResumeReport {
    /// The process.
    pub second: SecondReport,
    /// The request.
    pub request: ServedReport,
}

/// The refusal of the folder to another model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FolderRefusal {
    /// The field that differs.
    pub field: String,
    /// Its value in the other model.
    pub asked: String,
    /// Its value in the folder.
    pub stored: String,
    /// The message.
    pub message: String,
}

/// The whole report.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DemoReport {
    /// The process before the restart.
    pub first: FirstReport,
    /// The process after it.
    pub second: SecondReport,
    /// The requests: two before the restart, one after it.
    pub requests: [RequestReport; 3],
    /// Tokens that were compared, of all requests.
    pub tokens_compared: usize,
    /// Whether all of them are equal.
    pub tokens_equal: bool,
    /// The refusal.
    pub refusal: FolderRefusal,
    /// The folder with the files of the run, where the settings keep it.
    pub kept: Option<PathBuf>,
}
