//! What a run found, plain and serialisable. Times are in seconds.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// A loaded model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ModelReport {
    /// What people call it.
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
    /// Threads that compute.
    pub threads: usize,
    /// Reading, hashing, dequantising and packing the weights.
    pub seconds: f64,
}

/// The prompt and the blocks that it takes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PromptReport {
    /// Tokens.
    pub tokens: usize,
    /// Tokens of a block.
    pub page_size: usize,
    /// Blocks that hold them, the last one possibly in part.
    pub blocks: usize,
    /// Bytes of a block.
    pub block_bytes: u64,
    /// Bytes of all of them.
    pub bytes: u64,
}

/// Allocated blocks.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AllocateReport {
    /// Their order.
    pub layout: String,
    /// Blocks, for the prompt and the answer.
    pub blocks: usize,
    /// Bytes of memory.
    pub bytes: u64,
    /// Allocating them and mapping their pages.
    pub seconds: f64,
}

/// A computed prompt.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PrefillReport {
    /// The order of the blocks.
    pub layout: String,
    /// Tokens computed.
    pub tokens: usize,
    /// Bytes of keys and values that they left in the blocks.
    pub bytes: u64,
    /// From the first token of the prompt to the first token of the answer.
    pub seconds: f64,
}

/// An answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AnswerReport {
    /// Its tokens, always as many as were asked for.
    pub tokens: Vec<u32>,
    /// Its text up to the end of the turn.
    pub text: String,
    /// Tokens before the end of the turn, if it ended.
    pub turn_tokens: Option<usize>,
    /// From the first token to the last.
    pub seconds: f64,
}

/// A saved cache.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SaveReport {
    /// The file.
    pub file: PathBuf,
    /// Its size in bytes.
    pub file_bytes: u64,
    /// The order of the blocks in it.
    pub layout: String,
    /// Blocks.
    pub blocks: usize,
    /// Tokens that are valid.
    pub tokens: usize,
    /// Bytes of keys and values.
    pub bytes: u64,
    /// Reordering and writing.
    pub copy_seconds: f64,
    /// All of it: reordering, writing, checksums, and waiting for the disk.
    pub seconds: f64,
}

/// An opened cache.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct OpenReport {
    /// Blocks in the file.
    pub blocks: usize,
    /// Valid tokens in the file.
    pub tokens: usize,
    /// The order of the blocks in it.
    pub layout: String,
    /// Fingerprint of the identity that file and model share.
    pub fingerprint: String,
    /// Opening, and checking header, checksum table, identity and prompt.
    pub seconds: f64,
}

/// Restored blocks.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RestoreReport {
    /// The order of the blocks in memory.
    pub layout: String,
    /// Blocks whose checksum held.
    pub blocks: usize,
    /// Bytes of keys and values.
    pub bytes: u64,
    /// Reading, comparing checksums, reordering.
    pub seconds: f64,
}

/// What the second process did.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ResumeReport {
    /// Its process id.
    pub process_id: u32,
    /// The model that it loaded.
    pub model: ModelReport,
    /// Its blocks.
    pub allocate: AllocateReport,
    /// The cache that it opened.
    pub open: OpenReport,
    /// The blocks that it restored.
    pub restore: RestoreReport,
    /// Prompt tokens that it computed: the last one, whose logits are not stored.
    pub computed_tokens: usize,
    /// From opening the file to the first token of the answer.
    pub first_token_seconds: f64,
    /// The answer.
    pub answer: AnswerReport,
}

/// What the first process did before the second one started.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FirstReport {
    /// Its process id.
    pub process_id: u32,
    /// Why the tiny model runs, where another was asked for.
    pub tiny_instead: Option<String>,
    /// The model.
    pub model: ModelReport,
    /// The prompt.
    pub prompt: PromptReport,
    /// The blocks for it and the answer.
    pub allocate: AllocateReport,
    /// Its computation.
    pub prefill: PrefillReport,
    /// The answer: the run that never left memory.
    pub answer: AnswerReport,
    /// The file.
    pub save: SaveReport,
}

/// Both processes compared.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Comparison {
    /// Time to first token with prefill.
    pub cold_seconds: f64,
    /// Time to first token from the file.
    pub warm_seconds: f64,
    /// How many times faster the second one is.
    pub ratio: f64,
    /// Bytes of keys and values that went to the file.
    pub saved_bytes: u64,
    /// Speed of saving, 10^9 bytes a second.
    pub save_gb_per_second: f64,
    /// Bytes of keys and values that came back.
    pub restored_bytes: u64,
    /// Speed of restoring, 10^9 bytes a second.
    pub restore_gb_per_second: f64,
    /// Tokens that were compared.
    pub tokens_compared: usize,
    /// Whether all of them are equal.
    pub tokens_equal: bool,
    /// The first that differs.
    pub first_difference: Option<usize>,
}

/// The refusal of the file to another model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Refusal {
    /// The field that differs.
    pub field: String,
    /// Its value in the model that asked.
    pub asked: String,
    /// Its value in the file.
    pub stored: String,
    /// The message.
    pub message: String,
}

/// Everything.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DemoReport {
    /// The process that prefilled and saved.
    pub first: FirstReport,
    /// The process that restored and continued.
    pub second: ResumeReport,
    /// Both compared.
    pub comparison: Comparison,
    /// The refusal.
    pub refusal: Refusal,
    /// The folder with the files of the run, where they were to be kept.
    pub kept: Option<PathBuf>,
}
