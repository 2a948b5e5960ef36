//! The errors of keys, sequences, pools and events.

use crate::events::Lagged;
use crate::pool::TenantId;
use crate::{BlockId, BlockKey};
use thiserror::Error;

/// Why a pool, a sequence or a subscriber refuses a request. Every message contains the values and
/// the remedy.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum BlocksError {
    /// The event log's ring cannot be allocated.
    #[error(
        "no memory for a log of {capacity} events; a few thousand are enough for a reader that \
         polls often"
    )]
    EventLogTooLarge {
        /// The requested capacity, in events.
        capacity: usize,
    },
    /// No policy has this name.
    #[error("there is no eviction policy {name:?}; the policies are gittins, lru, arc and s3-fifo")]
    UnknownPolicy {
        /// The name.
        name: String,
    },
    /// A subscriber of events fell behind the log.
    #[error(transparent)]
    Lagged(#[from] Lagged),
    /// A page size of zero or above the maximum.
    #[error(
        "a page of {page_size} tokens; it may have 1 to {}",
        crate::key::PAGE_SIZE_MAX
    )]
    PageSizeOutOfRange {
        /// The requested page size, in tokens.
        page_size: usize,
    },
    /// Only full blocks have keys.
    #[error("{tokens} tokens are not one page of {page_size}; only full blocks have keys")]
    NotOnePage {
        /// The number of tokens given.
        tokens: usize,
        /// Tokens per block.
        page_size: usize,
    },
    /// Router hashes have a seed and no salt.
    #[error("keys of the router profile have no salt; set its seed, or take the profile blake3")]
    RouterTakesNoSalt,
    /// Router hashes do not cover extra keys.
    #[error(
        "keys of the router profile cannot contain the block's {count} extra keys, and without them \
         it would match other content; take the profile blake3 or xxh3"
    )]
    RouterTakesNoExtraKeys {
        /// The number of extra keys given.
        count: usize,
    },
    /// Content was marked on tokens that already have keys.
    #[error(
        "content was marked from token {start} on, but the keys of the first {keyed} tokens are made \
         already; mark it before its tokens are appended"
    )]
    MarkedTooLate {
        /// The first token of the content.
        start: usize,
        /// Tokens in full blocks.
        keyed: usize,
    },
    /// The pool size is zero or above the maximum.
    #[error("a pool of {blocks} blocks; it may have 1 to {blocks_max}")]
    PoolSize {
        /// The requested number of blocks.
        blocks: usize,
        /// The maximum number of blocks.
        blocks_max: usize,
    },
    /// A tenant's quota is zero.
    #[error(
        "tenant {} has a quota of 0 blocks; leave it out, or give it as many as a request needs",
        tenant.0
    )]
    QuotaOfNothing {
        /// The tenant.
        tenant: TenantId,
    },
    /// A tenant has two quotas.
    #[error("tenant {} has two quotas; give one", tenant.0)]
    TwoQuotas {
        /// The tenant.
        tenant: TenantId,
    },
    /// An allocation needs more blocks than can be evicted.
    #[error(
        "{wanted} blocks requested of a pool of {blocks}: {free} are free, {cached} are cached, of \
         which those that remain are pinned or ancestors of pinned blocks, and {held} are being \
         filled or written out; release some, or make the pool larger"
    )]
    Exhausted {
        /// The requested number of blocks.
        wanted: usize,
        /// Blocks in the pool.
        blocks: usize,
        /// Free blocks.
        free: usize,
        /// Cached blocks. Those that remain after the eviction are pinned, or ancestors of pinned
        /// blocks.
        cached: usize,
        /// Blocks that a guard owns and that lookups do not find.
        held: usize,
    },
    /// An allocation needs more blocks than its tenant may hold.
    #[error(
        "{wanted} blocks requested for tenant {}, which holds {used} of at most {limit}, and too few of \
         them can be evicted; release some, or raise its quota",
        tenant.0
    )]
    QuotaExhausted {
        /// The tenant.
        tenant: TenantId,
        /// The requested number of blocks.
        wanted: usize,
        /// The tenant's quota.
        limit: usize,
        /// The blocks charged to the tenant.
        used: usize,
    },
    /// The number of keys differs from the number of blocks.
    #[error("{keys} keys for {blocks} blocks; give one for each")]
    KeyCount {
        /// The blocks.
        blocks: usize,
        /// The keys.
        keys: usize,
    },
    /// The key exists already, and the pool is set to refuse duplicates.
    #[error(
        "key {key} at position {position} is registered, or being registered; match it instead"
    )]
    DuplicateKey {
        /// The key.
        key: BlockKey,
        /// Its position in the batch.
        position: usize,
    },
    /// The blocks of one guard must come from one pool.
    #[error("the blocks are of another pool")]
    AnotherPool,
    /// The block to restore is not free, or is not a block of the pool.
    #[error(
        "block {} cannot be restored: it is not free, or not one of the pool's {blocks} blocks",
        block.0
    )]
    NotRestorable {
        /// The block.
        block: BlockId,
        /// Blocks of the pool.
        blocks: usize,
    },
    /// The name is not a valid tier name.
    #[error(
        "{name:?} is not a valid tier name; give 1 to {} of the letters a to z, digits, -, _ and .",
        crate::events::TIER_NAME_BYTES_MAX
    )]
    TierName {
        /// The given name, truncated to 64 characters.
        name: String,
    },
    /// The text does not start with a tier kind.
    #[error(
        "there is no tier {text:?}; a tier is named by its kind (device, host, disk, shared or remote) or by kind:name"
    )]
    TierKind {
        /// The given text, truncated to 64 characters.
        text: String,
    },
}
