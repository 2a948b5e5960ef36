//! What can go wrong with keys, sequences, pools and events.

use crate::events::Lagged;
use crate::pool::TenantId;
use crate::{BlockId, BlockKey};
use thiserror::Error;

/// Why a request to a pool, a sequence or a subscriber was refused. Every message names the values
/// and what to do.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum BlocksError {
    /// There is no memory for an event log of this length.
    #[error(
        "no memory for a log of {capacity} events; a few thousand are enough for a reader that \
         polls often"
    )]
    EventLogTooLarge {
        /// The events that it should remember.
        capacity: usize,
    },
    /// No policy has this name.
    #[error("there is no eviction policy {name:?}; there are gittins, lru, arc and s3-fifo")]
    UnknownPolicy {
        /// The name.
        name: String,
    },
    /// A subscriber of events was too slow.
    #[error(transparent)]
    Lagged(#[from] Lagged),
    /// A page that has no tokens, or too many.
    #[error(
        "a page of {page_size} tokens; it may have 1 to {}",
        crate::key::PAGE_SIZE_MAX
    )]
    PageSizeOutOfRange {
        /// The page size that was asked for.
        page_size: usize,
    },
    /// Only full blocks have keys.
    #[error("{tokens} tokens are not one page of {page_size}; only full blocks have keys")]
    NotOnePage {
        /// The tokens that were given.
        tokens: usize,
        /// Tokens per block.
        page_size: usize,
    },
    /// The hashes of routers have a seed and no salt.
    #[error("keys of the router profile have no salt; set its seed, or take the profile blake3")]
    RouterTakesNoSalt,
    /// The hashes of routers have no place for extra keys.
    #[error(
        "keys of the router profile cannot contain the block's {count} extra keys, and without them \
         it would match other content; take the profile blake3 or xxh3"
    )]
    RouterTakesNoExtraKeys {
        /// How many were given.
        count: usize,
    },
    /// Content was announced for tokens whose keys are made already.
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
    /// A pool has no blocks, or more than ids can tell apart.
    #[error("a pool of {blocks} blocks; it may have 1 to {blocks_max}")]
    PoolSize {
        /// The blocks that were asked for.
        blocks: usize,
        /// How many there can be.
        blocks_max: usize,
    },
    /// A tenant may hold nothing.
    #[error(
        "tenant {} has a quota of 0 blocks; leave it out, or give it as many as a request needs",
        tenant.0
    )]
    QuotaOfNothing {
        /// Whose.
        tenant: TenantId,
    },
    /// A tenant has two limits.
    #[error("tenant {} has two quotas; give one", tenant.0)]
    TwoQuotas {
        /// Whose.
        tenant: TenantId,
    },
    /// An allocation needs more blocks than can be evicted.
    #[error(
        "{wanted} blocks wanted of a pool of {blocks}: {free} are free, {cached} are cached, and \
         those that are left are in use or stand before some that are, {held} are being filled or \
         written down; release some, or make \
         the pool larger"
    )]
    Exhausted {
        /// The blocks that were asked for.
        wanted: usize,
        /// Blocks of the pool.
        blocks: usize,
        /// Of them: free.
        free: usize,
        /// Of them: to be found. What is left of these after the eviction is pinned, or stands before
        /// something that is.
        cached: usize,
        /// Of them: in somebody's hands and not to be found.
        held: usize,
    },
    /// An allocation needs more blocks than its tenant may hold.
    #[error(
        "{wanted} blocks wanted for tenant {}, which holds {used} of at most {limit}, and too few of \
         them can be evicted; release some, or raise its quota",
        tenant.0
    )]
    QuotaExhausted {
        /// Whose quota it is.
        tenant: TenantId,
        /// The blocks that were asked for.
        wanted: usize,
        /// How many it may hold.
        limit: usize,
        /// How many it holds.
        used: usize,
    },
    /// Keys and blocks do not go together.
    #[error("{keys} keys for {blocks} blocks; give one for each")]
    KeyCount {
        /// The blocks.
        blocks: usize,
        /// The keys.
        keys: usize,
    },
    /// A key is taken, and the pool was told to refuse that.
    #[error(
        "key {key} at position {position} is registered, or being registered; match it instead"
    )]
    DuplicateKey {
        /// The key.
        key: BlockKey,
        /// Its position in the batch.
        position: usize,
    },
    /// Blocks of two pools do not go into one guard.
    #[error("the blocks are of another pool")]
    AnotherPool,
    /// A block that comes back from before a restart is in use, or there is no such block.
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
    /// A name that a tier cannot have.
    #[error(
        "{name:?} is no name of a tier; give 1 to {} of the letters a to z, digits, -, _ and .",
        crate::events::TIER_NAME_BYTES_MAX
    )]
    TierName {
        /// What was given, at most its first 64 characters.
        name: String,
    },
    /// A text that begins with no kind of tier.
    #[error(
        "there is no tier {text:?}; a tier is named by its kind (device, host, disk, object or remote) or by kind:name"
    )]
    TierKind {
        /// What was given, at most its first 64 characters.
        text: String,
    },
}
