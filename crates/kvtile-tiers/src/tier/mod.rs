//! The contract of a tier: it stores blocks by group and key, below host memory.
//!
//! ```text
//! cache ── find, hold ──────────► pins or promises, at once
//!       ── ask ─────────────────► an answer that may arrive later
//!       ── read  [leased blocks] ► completion: an outcome for each block
//!       ── write [leased blocks] ► completion: an outcome for each block
//!       ── sync ────────────────► completion: what is durable
//! ```
//!
//! Every implementation guarantees the following; the conformance suite of the testkit checks it:
//!
//! - No call waits for a device or a network. Slow operations return a [`Completion`]. An
//!   implementation without threads may do the work before it returns.
//! - A batch owns the host memory that it fills or reads ([`HostBlock`]) and drops it before its
//!   completion ends. A caller that stops waiting leaves the memory to the batch until the tier
//!   drops it.
//! - Every batch completes exactly once, with one outcome for each of its blocks, in their order;
//!   also after a panic, and when the tier is dropped.
//! - A batch of writes that refuses a block refuses its descendants too ([`RefusedBlocks`]), whatever other batches
//!   write at the same time.
//! - A block whose bytes differ from those written is a miss. A tier that cannot verify the bytes
//!   returns the checksum that was written with the block, and the caller verifies
//!   ([`TierAbilities::verifies`]).
//! - Presence is a hint on a shared tier: the block may be evicted before the read. The outcome of
//!   the read counts.
//! - A removal also counts for the writes in flight: a block that [`Tier::forget`] or [`Tier::clear`]
//!   removes during its write does not become findable when the write ends ([`Removals`] keeps
//!   the record). A later write of the block is independent of it.
//! - Groups are independent: equal keys of two groups are two blocks, a parent is a block of the same
//!   group, and a batch may contain blocks of several groups. A group that the tier does not have is
//!   absent from lookups and reads; a write to it fails with
//!   [`BatchError::NoSuchGroup`](crate::BatchError::NoSuchGroup).

mod batch;
mod gather;
mod identity;
mod memory;
mod pieces;
mod promise;
mod refused;
mod removals;
mod report;
mod settings;

use std::{any::Any, fmt, sync::Arc, time::Duration};

use kvtile_blocks::{
    BlockKey, Tick,
    events::{EventLog, StoredBlock, TierId},
    pool::{PinClaim, PinReport},
};
use kvtile_transfer::completion::Completion;

pub use batch::{BlockName, BlockRead, BlockWrite, ContentDigest, content_checksum};
pub use gather::{BatchPart, OutcomeGather};
pub use identity::{STORAGE_WORD, StoreIdentity, TierGroup};
pub use kvtile_blocks::GroupId;
pub use memory::HostBlock;
pub use pieces::BlockPieces;
pub use promise::PromisedHold;
pub use refused::RefusedBlocks;
pub use removals::{RemovalGuard, RemovalTicket, Removals};
pub use report::{
    NotWritten, ReadReport, ReadSuccess, SyncReport, TierAnswer, TierMiss, TierStats, WriteReport,
    WriteSuccess,
};

pub use settings::{TierSettings, TierWrites};

use crate::{clock::Clock, error::TierError};

/// When a tier answers lookups.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum AnswerTime {
    /// [`Tier::find`] knows all blocks of the tier.
    AtOnce,
    /// [`Tier::find`] knows the blocks of earlier answers to [`Tier::ask`].
    Later,
}

/// The capabilities of a tier.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TierAbilities {
    /// It has a capacity. To store a new block it evicts an unused block of its own choice, or
    /// refuses the new block.
    pub is_bounded: bool,
    /// Its synced blocks outlive the process. The cache syncs only durable tiers, and flushing and
    /// closing write only to these.
    pub is_durable: bool,
    /// Other caches write to it too, so a [`TierHold`] is only a promise. The cache prefers other tiers
    /// to pin the ancestors of host blocks.
    pub is_shared: bool,
    /// It verifies each read with a checksum from the write. Otherwise it returns the checksum that
    /// was written with the block, and the cache verifies.
    pub verifies: bool,
    /// It reads pieces of a block separately ([`StoreIdentity::pieces`]) and verifies each.
    /// Otherwise every read is of whole blocks.
    pub reads_pieces: bool,
    /// When it answers lookups.
    pub answers: AnswerTime,
}

/// Pins of consecutive blocks of a tier, until this is dropped. On a shared tier it is only a
/// promise to keep them for a time.
pub trait TierHold: fmt::Debug + Send + Sync {
    /// Number of blocks.
    fn blocks(&self) -> usize;

    /// The parent of the block at `index`; `None` for the first block of a chain.
    fn parent(&self, index: usize) -> Option<BlockKey>;

    /// The tenant of the block at `index`.
    fn tenant(&self, index: usize) -> u32;

    /// Splits off the blocks from index `at` on.
    fn split_off(&mut self, at: usize) -> Box<dyn TierHold>;
}

/// A tier below host memory. The [module](self) lists the guarantees of every implementation.
pub trait Tier: fmt::Debug + Send + Sync {
    /// The name of the tier, unique within a cache.
    fn id(&self) -> TierId;

    /// The capabilities of the tier.
    fn abilities(&self) -> TierAbilities;

    /// Pins the leading blocks of `keys` that it has, for a request with the claim `claim`; `None`
    /// if it does not have the first block. The tier's policy counts this as a use.
    fn find(
        &self,
        group: GroupId,
        keys: &[BlockKey],
        claim: &PinClaim,
    ) -> Option<Box<dyn TierHold>>;

    /// Like [`Tier::find`], but does not count as a use.
    fn hold(&self, group: GroupId, keys: &[BlockKey]) -> Option<Box<dyn TierHold>>;

    /// Whether it has the block.
    fn has(&self, group: GroupId, key: &BlockKey) -> bool {
        self.hold(group, std::slice::from_ref(key)).is_some()
    }

    /// Queries the leading blocks of `keys`; [`Tier::find`] knows them once the completion has
    /// ended. On tiers that answer at once the completion has already ended.
    fn ask(&self, group: GroupId, keys: &[BlockKey]) -> Completion<TierAnswer> {
        let leading = self.hold(group, keys).map_or(0, |hold| hold.blocks());
        Completion::ended(0, TierAnswer::of(leading))
    }

    /// Reads blocks into host memory.
    fn read(&self, blocks: Vec<BlockRead>) -> Completion<ReadReport>;

    /// Writes blocks from host memory. The parent of a block must be on the tier, or before the
    /// block in the batch. The tier does not write a block that it already has.
    fn write(&self, blocks: Vec<BlockWrite>) -> Completion<WriteReport>;

    /// Removes blocks and returns how many it had. Lookups do not find removed blocks even while
    /// they are pinned, nor after a write of them that is in flight now.
    fn forget(&self, group: GroupId, keys: &[BlockKey]) -> usize;

    /// Evicts up to `blocks` blocks, the least valuable of each group first. Returns how many.
    fn evict(&self, blocks: usize, now: Tick) -> usize;

    /// Removes all blocks that are not in use; on a shared tier only for this cache. Returns how
    /// many. Blocks of writes in flight are not stored. Until the next [`Tier::sync`] a crash may restore some of them.
    fn clear(&self, now: Tick) -> usize;

    /// Makes all earlier writes and removals durable. It does nothing on a tier that is not durable.
    fn sync(&self) -> Completion<SyncReport>;

    /// Whether each block is durable now.
    fn durable(&self, group: GroupId, keys: &[BlockKey]) -> Vec<bool>;

    /// The counters and contents of the tier.
    fn stats(&self) -> TierStats;

    /// The counters and contents of one group. A tier that does not count its groups apart returns
    /// those of all groups.
    fn stats_of(&self, _group: GroupId) -> TierStats {
        self.stats()
    }

    /// Evicts up to `blocks` blocks of one group, the least valuable first. Returns how many. A tier
    /// that cannot choose a group evicts none.
    fn evict_of(&self, _group: GroupId, _blocks: usize, _now: Tick) -> usize {
        0
    }

    /// The estimated time to read `blocks` blocks of a group, from earlier reads; `None` before the
    /// first measurement, and for a group that the tier does not have.
    fn estimate(&self, group: GroupId, blocks: usize) -> Option<Duration>;

    /// Appends all blocks of all groups that lookups can find, each under the lock that also orders
    /// its events.
    fn list(&self, blocks: &mut Vec<StoredBlock>);

    /// Pins held past the deadlines of their claims.
    fn overdue(&self, _now: Tick) -> Vec<PinReport> {
        Vec::new()
    }

    /// Runs periodic work.
    fn maintain(&self) {}

    /// Checks the invariants of the tier, for tests.
    ///
    /// # Panics
    /// If an invariant does not hold.
    fn check_integrity(&self) {}

    /// The implementation, for a downcast.
    fn as_any(&self) -> &dyn Any;
}

/// The context that a cache passes to the tiers it opens.
#[derive(Clone)]
pub struct TierContext {
    /// The groups of blocks; group `i` is `GroupId(i)`.
    pub groups: Vec<TierGroup>,
    /// The log in which the tier records stored and removed blocks.
    pub events: Arc<EventLog>,
    /// The clock of the cache.
    pub clock: Arc<dyn Clock>,
    /// Number of worker threads of the cache. With 0 the tier has no threads either, and does its
    /// work within the calls.
    pub threads: usize,
}

impl fmt::Debug for TierContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TierContext")
            .field("groups", &self.groups)
            .field("threads", &self.threads)
            .finish_non_exhaustive()
    }
}

/// Opens a tier for a cache.
pub type TierOpener = Box<dyn FnOnce(&TierContext) -> Result<Arc<dyn Tier>, TierError> + Send>;
