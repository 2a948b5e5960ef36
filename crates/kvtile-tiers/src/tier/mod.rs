//! The contract of a tier: a place below host memory that keeps blocks by group and key.
//!
//! ```text
//! cache ── find, hold ──────────► pins or promises, at once
//!       ── ask ─────────────────► an answer that may arrive later
//!       ── read  [leased blocks] ► completion: an outcome for each block
//!       ── write [leased blocks] ► completion: an outcome for each block
//!       ── sync ────────────────► completion: what is durable
//! ```
//!
//! What every implementation keeps, and the conformance suite of the testkit checks:
//!
//! - No call waits for a device or a network. What takes time ends in a [`Completion`]; an implementation
//!   without threads may do the work before it returns.
//! - A batch owns the host memory that it fills or reads ([`HostBlock`]) and drops it before its completion
//!   ends. A caller that gives up waiting leaves the memory to the batch: it is free when the tier drops it.
//! - Every batch ends exactly once, with one outcome for each of its blocks, in their order: also after a
//!   panic, and when the tier is dropped.
//! - A block that is not what was written is a miss. A tier that cannot verify its bytes returns the checksum
//!   that came with the block, and the caller verifies ([`Abilities::verifies`]).
//! - Presence may be wrong by the time of the read where the tier is shared; the outcome of the read counts.

mod batch;
mod gather;
mod identity;
mod memory;
mod pieces;
mod report;
mod settings;

use std::{any::Any, fmt, sync::Arc, time::Duration};

use kvtile_blocks::{
    BlockKey, Tick,
    events::{EventLog, StoredBlock, TierId},
    pool::{Claim, PinReport},
};
use kvtile_transfer::completion::Completion;

pub use batch::{BlockName, BlockRead, BlockWrite, content_checksum};
pub use gather::{Gather, Part};
pub use identity::{STORAGE_WORD, StoreIdentity};
pub use kvtile_blocks::GroupId;
pub use memory::HostBlock;
pub use pieces::Pieces;
pub use report::{
    Answer, Came, NotWritten, ReadReport, SyncReport, TierMiss, TierStats, WriteReport, Wrote,
};

pub use settings::{TierSettings, TierWrites};

use crate::{clock::Clock, error::TierError};

/// How a tier answers lookups.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Answers {
    /// [`Tier::find`] knows everything that the tier has.
    AtOnce,
    /// [`Tier::find`] knows what earlier answers of [`Tier::ask`] said.
    Later,
}

/// What a tier can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Abilities {
    /// It has a capacity. For a new block it evicts one that is not in use, which it chooses itself, or has no room
    /// for it.
    pub is_bounded: bool,
    /// What it has synced outlives the process. The cache syncs such tiers alone, and a flush and closing write to
    /// them alone.
    pub is_durable: bool,
    /// Other caches write to it too, so that a [`Hold`] is a promise. The cache keeps the ancestors of host blocks on
    /// other tiers where it can.
    pub is_shared: bool,
    /// It compares what it reads with a checksum that it took when the block was written. Otherwise it
    /// returns the checksum that was written with the block, and the cache compares.
    pub verifies: bool,
    /// It reads the pieces of a block alone ([`StoreIdentity::pieces`]) and verifies each. Otherwise every read
    /// is of whole blocks.
    pub reads_pieces: bool,
    /// How it answers lookups.
    pub answers: Answers,
}

/// Blocks that a tier keeps until this is dropped, or promises to keep for a time where it is shared.
pub trait Hold: fmt::Debug + Send + Sync {
    /// How many.
    fn blocks(&self) -> usize;

    /// The key of the block before the one at `index`, where there is one.
    fn parent(&self, index: usize) -> Option<BlockKey>;

    /// The tenant that the block at `index` was written for.
    fn tenant(&self, index: usize) -> u32;

    /// Takes out the blocks from position `at` on.
    fn split_off(&mut self, at: usize) -> Box<dyn Hold>;
}

/// A place below host memory that keeps blocks. See the [module](self) for what every implementation keeps.
pub trait Tier: fmt::Debug + Send + Sync {
    /// Its name; no two tiers of a cache have the same.
    fn id(&self) -> TierId;

    /// What it can do.
    fn abilities(&self) -> Abilities;

    /// Finds the leading blocks of `keys` that it has, for a request that `claim` describes; `None` where it
    /// does not have the first one. Its policy counts it as a use.
    fn find(&self, group: GroupId, keys: &[BlockKey], claim: &Claim) -> Option<Box<dyn Hold>>;

    /// The same without a request: nothing counts it as a use.
    fn hold(&self, group: GroupId, keys: &[BlockKey]) -> Option<Box<dyn Hold>>;

    /// Whether it has a block.
    fn has(&self, group: GroupId, key: &BlockKey) -> bool {
        self.hold(group, std::slice::from_ref(key)).is_some()
    }

    /// Asks for the leading blocks of `keys`; [`Tier::find`] knows them once the answer has arrived. Tiers
    /// that answer at once do so here too.
    fn ask(&self, group: GroupId, keys: &[BlockKey]) -> Completion<Answer> {
        let leading = self.hold(group, keys).map_or(0, |hold| hold.blocks());
        Completion::ended(0, Answer::of(leading))
    }

    /// Reads blocks into host memory.
    fn read(&self, blocks: Vec<BlockRead>) -> Completion<ReadReport>;

    /// Writes blocks from host memory; the parent of a block is on the tier, or before it in the batch. What is
    /// there already is not written again.
    fn write(&self, blocks: Vec<BlockWrite>) -> Completion<WriteReport>;

    /// Gives up blocks. Those that are pinned cannot be found any more. Returns how many were there.
    fn forget(&self, group: GroupId, keys: &[BlockKey]) -> usize;

    /// Gives up to `blocks` blocks up, those least worth keeping first. Returns how many.
    fn evict(&self, blocks: usize, now: Tick) -> usize;

    /// Gives up all blocks that are not in use, on this cache's behalf alone where the tier is shared.
    /// Returns how many. A crash may bring some back until the next [`Tier::sync`].
    fn clear(&self, now: Tick) -> usize;

    /// Brings everything written and given up before to where it outlives the process. A tier that is not durable
    /// has nothing to do.
    fn sync(&self) -> Completion<SyncReport>;

    /// Which of these blocks outlive the process now.
    fn durable(&self, group: GroupId, keys: &[BlockKey]) -> Vec<bool>;

    /// What it counted and holds.
    fn stats(&self) -> TierStats;

    /// How long reading so many blocks takes, from what it measured; `None` before the first measurement.
    fn estimate(&self, blocks: usize) -> Option<Duration>;

    /// Appends all blocks of all groups that can be found, each under the lock under which its events are appended.
    fn list(&self, blocks: &mut Vec<StoredBlock>);

    /// Pins that were held for longer than their claims said.
    fn overdue(&self, _now: Tick) -> Vec<PinReport> {
        Vec::new()
    }

    /// Does what is due from time to time.
    fn maintain(&self) {}

    /// Asserts what must hold between its parts, for tests.
    ///
    /// # Panics
    /// Where something does not hold.
    fn check_integrity(&self) {}

    /// The implementation itself, for callers that know it.
    fn as_any(&self) -> &dyn Any;
}

/// What a cache gives to the tiers that it opens.
#[derive(Clone)]
pub struct TierContext {
    /// What the blocks mean, how they lie, and how long they are.
    pub identity: StoreIdentity,
    /// Where the tier appends what it stores and removes.
    pub events: Arc<EventLog>,
    /// The clock of the cache.
    pub clock: Arc<dyn Clock>,
    /// Threads that the cache has for moving blocks; with 0 a tier has none either, and does its work in the
    /// calls.
    pub threads: usize,
}

impl fmt::Debug for TierContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TierContext")
            .field("identity", &self.identity)
            .field("threads", &self.threads)
            .finish_non_exhaustive()
    }
}

/// Opens a tier for a cache.
pub type OpenTier = Box<dyn FnOnce(&TierContext) -> Result<Arc<dyn Tier>, TierError> + Send>;
