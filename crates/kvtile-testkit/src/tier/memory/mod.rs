//! A small, correct tier in process memory, as a reference for the conformance suite and
//! simulations. It scans all of its blocks for each decision.

mod hold;
#[cfg(test)]
mod tests;

use std::{
    any::Any,
    collections::{HashMap, HashSet},
    fmt,
    sync::{Arc, mpsc},
    thread::JoinHandle,
    time::Duration,
};

use kvtile_blocks::{
    BlockKey, Tick,
    events::{EventLog, StoredBlock, TierId},
    pool::{PinClaim, PinReport},
};
use kvtile_tiers::{
    RequestError, TierError,
    cache::Clock,
    tier::{
        AnswerTime, BlockName, BlockRead, BlockWrite, GroupId, NotWritten, OutcomeGather,
        ReadReport, ReadSuccess, RefusedBlocks, RemovalTicket, Removals, SyncReport, Tier,
        TierAbilities, TierContext, TierHold, TierMiss, TierStats, WriteReport, WriteSuccess,
    },
};
use kvtile_transfer::completion::{Completer, Completion};
use parking_lot::{Mutex, MutexGuard};

use hold::{MemoryHold, PinnedMemoryBlock};

type MemoryTierJob = Box<dyn FnOnce() + Send>;

/// A tier in process memory. It keeps blocks of all groups, evicts the least recently used leaf
/// that is not pinned, and does not verify what it returns.
pub struct MemoryTier {
    shared: Arc<MemoryTierShared>,
    /// Without a thread, batches complete within the calls.
    thread: Option<(mpsc::Sender<MemoryTierJob>, JoinHandle<()>)>,
}

struct MemoryTierShared {
    id: TierId,
    capacity: usize,
    is_shared: bool,
    events: Arc<EventLog>,
    clock: Arc<dyn Clock>,
    removals: Arc<Removals>,
    state: Mutex<MemoryTierState>,
}

#[derive(Default)]
struct MemoryTierState {
    blocks: HashMap<BlockName, MemoryBlock>,
    /// The number of uses so far.
    uses: u64,
    /// Pins with a deadline, by number.
    pins: HashMap<u64, PinReport>,
    /// The number of blocks and pins created so far.
    made: u64,
    /// The number of blocks stored so far.
    stored: u64,
    evicted_for_room: u64,
    removed: u64,
    read_blocks: u32,
    read_time: Duration,
}

struct MemoryBlock {
    bytes: Vec<u8>,
    checksum: u64,
    parent: Option<BlockKey>,
    tenant: u32,
    /// The number of its last use.
    used: u64,
    pins: usize,
    /// Unique, also among blocks of the same name.
    serial: u64,
}

impl fmt::Debug for MemoryTier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("MemoryTier").field(&self.shared.id).finish()
    }
}

impl MemoryTier {
    /// A tier with room for `capacity` blocks. If the context has threads, the tier has one thread,
    /// and batches complete after the calls; otherwise they complete within them.
    ///
    /// # Errors
    /// The thread cannot be spawned.
    pub fn new(
        id: TierId,
        capacity: usize,
        context: &TierContext,
    ) -> Result<MemoryTier, std::io::Error> {
        MemoryTier::open((id, false), capacity, context)
    }

    /// As [`new`](MemoryTier::new), but a tier that other caches write to as well: it also evicts
    /// held blocks.
    ///
    /// # Errors
    /// The thread cannot be spawned.
    pub fn shared(
        id: TierId,
        capacity: usize,
        context: &TierContext,
    ) -> Result<MemoryTier, std::io::Error> {
        MemoryTier::open((id, true), capacity, context)
    }

    fn open(
        (id, is_shared): (TierId, bool),
        capacity: usize,
        context: &TierContext,
    ) -> Result<MemoryTier, std::io::Error> {
        let shared = Arc::new(MemoryTierShared {
            id,
            capacity,
            is_shared,
            events: Arc::clone(&context.events),
            clock: Arc::clone(&context.clock),
            removals: Arc::default(),
            state: Mutex::default(),
        });
        let start = || {
            let (sender, work) = mpsc::channel::<MemoryTierJob>();
            let thread = std::thread::Builder::new().name("memory-tier".to_owned());
            let serve = move || work.into_iter().for_each(|work| work());
            thread.spawn(serve).map(|thread| (sender, thread))
        };
        let thread = match context.threads {
            0 => None,
            _ => Some(start()?),
        };
        Ok(MemoryTier { shared, thread })
    }

    fn run(&self, work: impl FnOnce() + Send + 'static) {
        match &self.thread {
            None => work(),
            Some((sender, _)) => {
                let sent = sender.send(Box::new(work));
                assert!(sent.is_ok(), "the thread of a memory tier has ended");
            }
        }
    }
}

impl Drop for MemoryTier {
    /// The thread completes its queue and ends.
    fn drop(&mut self) {
        if let Some((sender, thread)) = self.thread.take() {
            drop(sender);
            // A job that panicked has completed its batch by unwinding.
            let _ = thread.join();
        }
    }
}

impl MemoryTierShared {
    fn lock(&self) -> MutexGuard<'_, MemoryTierState> {
        self.state.lock()
    }

    fn hold_of(
        self: &Arc<Self>,
        state: &mut MemoryTierState,
        (group, keys): (GroupId, &[BlockKey]),
        claim: Option<&PinClaim>,
    ) -> Option<Box<dyn TierHold>> {
        let mut blocks = Vec::new();
        for &key in keys {
            let name = BlockName { group, key };
            let Some(block) = state.blocks.get_mut(&name) else {
                break;
            };
            block.pins += 1;
            if claim.is_some() {
                state.uses += 1;
                block.used = state.uses;
            }
            blocks.push(PinnedMemoryBlock {
                name,
                serial: block.serial,
                parent: block.parent,
                tenant: block.tenant,
            });
        }
        if blocks.is_empty() {
            return None;
        }
        let deadline = claim.and_then(|claim| claim.deadline.map(|deadline| (claim, deadline)));
        let pin = deadline.map(|(claim, deadline)| {
            state.made += 1;
            let report = PinReport {
                owner: claim.owner,
                deadline,
                blocks: blocks.len(),
                since: claim.now,
            };
            state.pins.insert(state.made, report);
            state.made
        });
        Some(Box::new(MemoryHold {
            shared: Arc::clone(self),
            blocks,
            pin,
        }))
    }

    fn remove(&self, state: &mut MemoryTierState, name: &BlockName) -> bool {
        let was_there = state.blocks.remove(name).is_some();
        if was_there {
            self.events.removed(self.id, name.group, &[name.key]);
        }
        was_there
    }

    /// Evicts the least recently used leaf that is not in `kept` and, unless the tier is shared,
    /// not pinned.
    fn evict_one(&self, state: &mut MemoryTierState, kept: &HashSet<BlockName>) -> bool {
        let parents: HashSet<BlockName> = state
            .blocks
            .iter()
            .filter_map(|(name, block)| block.parent.map(|key| BlockName { key, ..*name }))
            .collect();
        let leaves = state.blocks.iter().filter(|(name, block)| {
            (self.is_shared || block.pins == 0) && !parents.contains(name) && !kept.contains(name)
        });
        let oldest = leaves.min_by_key(|(name, block)| (block.used, **name));
        let Some(name) = oldest.map(|(name, _)| *name) else {
            return false;
        };
        self.remove(state, &name)
    }

    fn write_all(
        &self,
        blocks: &[BlockWrite],
        ticket: &RemovalTicket,
    ) -> Vec<Result<WriteSuccess, NotWritten>> {
        let removals = ticket.lock();
        let mut state = self.lock();
        // Parents and blocks of this batch must not be evicted for its later blocks.
        let mut kept = HashSet::new();
        let mut refused = RefusedBlocks::default();
        let mut outcomes = Vec::with_capacity(blocks.len());
        for block in blocks {
            let outcome = match removals.is_removed(&block.name) {
                true => Err(NotWritten::Removed),
                false => {
                    let may = refused.check(block);
                    may.and_then(|()| self.write_one(&mut state, block, &mut kept))
                }
            };
            refused.note(block.name, &outcome);
            outcomes.push(outcome);
        }
        outcomes
    }

    fn write_one(
        &self,
        state: &mut MemoryTierState,
        block: &BlockWrite,
        kept: &mut HashSet<BlockName>,
    ) -> Result<WriteSuccess, NotWritten> {
        let name = block.name;
        if state.blocks.contains_key(&name) {
            kept.insert(name);
            return Ok(WriteSuccess::Present);
        }
        if let Some(key) = block.parent {
            let parent = BlockName { key, ..name };
            if !state.blocks.contains_key(&parent) {
                return Err(NotWritten::NoParent);
            }
            kept.insert(parent);
        }
        let bytes = block.from.bytes();
        let bytes = bytes.map_err(|error| NotWritten::Failed(error.into()))?;
        let bytes = bytes.to_vec();
        let checksum = block.checksum().map_err(NotWritten::Failed)?;
        while state.blocks.len() >= self.capacity {
            if !self.evict_one(state, kept) {
                return Err(NotWritten::NoRoom);
            }
            state.evicted_for_room += 1;
        }
        state.uses += 1;
        state.made += 1;
        state.stored += 1;
        let stored = MemoryBlock {
            bytes,
            checksum,
            parent: block.parent,
            tenant: block.tenant,
            used: state.uses,
            pins: 0,
            serial: state.made,
        };
        state.blocks.insert(name, stored);
        kept.insert(name);
        let stored = [name.key];
        self.events
            .stored(self.id, name.group, block.parent, &stored);
        Ok(WriteSuccess::New)
    }

    fn read_one(&self, mut block: BlockRead) -> Result<ReadSuccess, TierMiss> {
        let state = self.lock();
        let Some(kept) = state.blocks.get(&block.name) else {
            return Err(TierMiss::Absent);
        };
        let into = block.into.bytes_mut();
        let into = into.map_err(|error| TierMiss::Failed(error.into()))?;
        assert_eq!(into.len(), kept.bytes.len(), "bytes of a block");
        into.copy_from_slice(&kept.bytes);
        Ok(ReadSuccess {
            checksum: Some(kept.checksum),
        })
    }
}

impl Tier for MemoryTier {
    fn id(&self) -> TierId {
        self.shared.id
    }

    fn abilities(&self) -> TierAbilities {
        TierAbilities {
            is_bounded: true,
            is_durable: false,
            is_shared: self.shared.is_shared,
            verifies: false,
            reads_pieces: false,
            answers: AnswerTime::AtOnce,
        }
    }

    fn find(
        &self,
        group: GroupId,
        keys: &[BlockKey],
        claim: &PinClaim,
    ) -> Option<Box<dyn TierHold>> {
        let mut state = self.shared.lock();
        self.shared.hold_of(&mut state, (group, keys), Some(claim))
    }

    fn hold(&self, group: GroupId, keys: &[BlockKey]) -> Option<Box<dyn TierHold>> {
        let mut state = self.shared.lock();
        self.shared.hold_of(&mut state, (group, keys), None)
    }

    fn read(&self, blocks: Vec<BlockRead>) -> Completion<ReadReport> {
        let lost = || Err(TierMiss::Failed(PANICKED));
        let (completion, part) =
            OutcomeGather::begin(blocks.len(), lost, |blocks, elapsed| ReadReport {
                blocks: blocks.into(),
                elapsed,
            });
        let shared = Arc::clone(&self.shared);
        self.run(move || {
            let start = shared.clock.now();
            let outcomes: Vec<Result<ReadSuccess, TierMiss>> = blocks
                .into_iter()
                .map(|block| shared.read_one(block))
                .collect();
            let elapsed = shared.clock.now().saturating_sub(start);
            let came = outcomes.iter().filter(|outcome| outcome.is_ok()).count();
            let mut state = shared.lock();
            let came = u32::try_from(came).unwrap_or(u32::MAX);
            state.read_blocks = state.read_blocks.saturating_add(came);
            state.read_time += elapsed;
            drop(state);
            part.end(outcomes, elapsed);
        });
        completion
    }

    fn write(&self, blocks: Vec<BlockWrite>) -> Completion<WriteReport> {
        let lost = || Err(NotWritten::Failed(PANICKED));
        let (completion, part) =
            OutcomeGather::begin(blocks.len(), lost, |blocks, elapsed| WriteReport {
                blocks: blocks.into(),
                elapsed,
            });
        let shared = Arc::clone(&self.shared);
        let ticket = shared.removals.begin();
        self.run(move || {
            let start = shared.clock.now();
            let outcomes = shared.write_all(&blocks, &ticket);
            drop(ticket);
            drop(blocks);
            part.end(outcomes, shared.clock.now().saturating_sub(start));
        });
        completion
    }

    fn forget(&self, group: GroupId, keys: &[BlockKey]) -> usize {
        let names = keys.iter().map(|&key| BlockName { group, key });
        self.shared.removals.remove(names);
        let mut state = self.shared.lock();
        let mut removed = 0;
        for &key in keys {
            let name = BlockName { group, key };
            removed += usize::from(self.shared.remove(&mut state, &name));
        }
        state.removed += removed as u64;
        removed
    }

    fn evict(&self, blocks: usize, _now: Tick) -> usize {
        let mut state = self.shared.lock();
        let mut evicted = 0;
        while evicted < blocks && self.shared.evict_one(&mut state, &HashSet::new()) {
            evicted += 1;
        }
        state.removed += evicted as u64;
        evicted
    }

    fn clear(&self, now: Tick) -> usize {
        self.shared.removals.remove_all();
        self.evict(usize::MAX, now)
    }

    fn sync(&self) -> Completion<SyncReport> {
        let completer = Completer::new(0, 0);
        let completion = completer.completion();
        self.run(move || completer.finish(SyncReport::default()));
        completion
    }

    fn durable(&self, _group: GroupId, keys: &[BlockKey]) -> Vec<bool> {
        vec![false; keys.len()]
    }

    fn stats(&self) -> TierStats {
        let state = self.shared.lock();
        let mut stats = TierStats::default();
        stats.present = state.blocks.len() as u64;
        stats.capacity = self.shared.capacity as u64;
        stats.evicted_for_room = state.evicted_for_room;
        stats.removed = state.removed;
        stats
    }

    fn estimate(&self, _group: GroupId, blocks: usize) -> Option<Duration> {
        let state = self.shared.lock();
        let one = state.read_time.checked_div(state.read_blocks)?;
        Some(one.saturating_mul(u32::try_from(blocks).unwrap_or(u32::MAX)))
    }

    fn list(&self, blocks: &mut Vec<StoredBlock>) {
        let state = self.shared.lock();
        let listed = state.blocks.iter();
        blocks.extend(listed.map(|(name, block)| StoredBlock {
            tier: self.shared.id,
            group: name.group,
            key: name.key,
            parent: block.parent,
        }));
    }

    fn overdue(&self, now: Tick) -> Vec<PinReport> {
        let state = self.shared.lock();
        let mut overdue: Vec<PinReport> = state.pins.values().copied().collect();
        overdue.retain(|pin| pin.deadline < now);
        overdue.sort_by_key(|pin| (pin.deadline, pin.owner));
        overdue
    }

    fn check_integrity(&self) {
        let state = self.shared.lock();
        let left = state.evicted_for_room + state.removed;
        assert_eq!(state.stored, left + state.blocks.len() as u64, "stored");
        assert!(
            state.blocks.len() <= self.shared.capacity,
            "too many blocks"
        );
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

const PANICKED: TierError = TierError::Request(RequestError::Panicked {
    what: "a batch of a memory tier",
});
