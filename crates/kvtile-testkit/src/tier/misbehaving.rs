//! A wrapper around any tier that breaks the contract on purpose, by a seed.

use std::{
    any::Any,
    collections::{HashMap, HashSet},
    fmt, mem,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use kvtile_blocks::{
    BlockKey, Tick,
    events::{StoredBlock, TierId},
    pool::{PinClaim, PinReport},
};
use kvtile_tiers::{
    RequestError, TierError,
    tier::{
        BlockName, BlockRead, BlockWrite, GroupId, NotWritten, ReadReport, ReadSuccess, SyncReport,
        Tier, TierAbilities, TierAnswer, TierHold, TierMiss, TierStats, WriteReport, WriteSuccess,
    },
};
use kvtile_transfer::completion::{Completer, Completion};
use parking_lot::{Mutex, MutexGuard};

use super::serving::{CopiedBlock, ServedBytes};
use crate::disk::SplitMix64;

/// The rate of each fault: once in this many calls or blocks, never if 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TierFaults {
    /// A batch completes a few calls later.
    pub slow: u64,
    /// A batch of reads or writes does not complete until it is released.
    pub no_answer: u64,
    /// A sync does not complete until it is released.
    pub no_sync_answer: u64,
    /// The blocks of a batch from some index on are reported as written, and are not.
    pub lossy: u64,
    /// A block that is read is absent from then on, without an event.
    pub vanishing: u64,
    /// A read returns wrong bytes: one bit flipped, half of another block, all of another block, or
    /// no checksum.
    pub wrong_bytes: u64,
    /// A read of a block fails.
    pub read_error: u64,
    /// A write of a block fails.
    pub write_error: u64,
    /// A sync fails.
    pub sync_error: u64,
    /// Lookups report that the tier has nothing.
    pub denial: u64,
    /// A batch reports one outcome more than it has blocks, or one fewer.
    pub wrong_count: u64,
    /// The tier keeps host memory after the batch has completed, until it is released.
    pub keeps_memory: u64,
}

impl TierFaults {
    /// Every fault, once in `of` times.
    #[must_use]
    pub fn all(of: u64) -> TierFaults {
        TierFaults {
            slow: of,
            no_answer: of,
            no_sync_answer: of,
            lossy: of,
            vanishing: of,
            wrong_bytes: of,
            read_error: of,
            write_error: of,
            sync_error: of,
            denial: of,
            wrong_count: of,
            keeps_memory: of,
        }
    }
}

/// A wrapper that breaks the contract. It waits for the inner tier within its calls, and keeps a
/// copy of every written block to derive wrong bytes from. Blocks that the inner tier held before
/// have no checksum.
pub struct MisbehavingTier {
    inner: Arc<dyn Tier>,
    /// The number of calls so far.
    calls: AtomicU64,
    state: Mutex<MisbehavingState>,
}

struct MisbehavingState {
    numbers: SplitMix64,
    faults: TierFaults,
    copies: HashMap<BlockName, CopiedBlock>,
    /// Blocks that lookups no longer find although the inner tier has them.
    vanished: HashSet<BlockName>,
    kept: Vec<KeptEntry>,
}

/// A batch or memory that is kept for later.
struct KeptEntry {
    /// The call at which the batch completes; `None` if it waits for a release.
    due: Option<u64>,
    batch: KeptBatch,
}

enum KeptBatch {
    Read(Vec<BlockRead>, Completer<ReadReport>),
    Write(Vec<BlockWrite>, Completer<WriteReport>),
    Sync(Completer<SyncReport>),
    /// The memory of a completed batch.
    Reads(#[expect(dead_code, reason = "held, not read")] Vec<BlockRead>),
    /// The memory of a completed batch.
    Writes(#[expect(dead_code, reason = "held, not read")] Vec<BlockWrite>),
}

impl fmt::Debug for MisbehavingTier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("MisbehavingTier").field(&self.inner).finish()
    }
}

impl MisbehavingTier {
    /// Wraps `inner`, without faults.
    #[must_use]
    pub fn new(inner: Arc<dyn Tier>, seed: u64) -> MisbehavingTier {
        MisbehavingTier {
            inner,
            calls: AtomicU64::new(0),
            state: Mutex::new(MisbehavingState {
                numbers: SplitMix64::new(seed),
                faults: TierFaults::default(),
                copies: HashMap::new(),
                vanished: HashSet::new(),
                kept: Vec::new(),
            }),
        }
    }

    /// Sets the rates of faults.
    pub fn set_faults(&self, faults: TierFaults) {
        self.lock().faults = faults;
    }

    /// The number of batches in flight and of completed batches whose memory is kept.
    #[must_use]
    pub fn kept(&self) -> usize {
        self.lock().kept.len()
    }

    /// Completes a kept batch, or releases its memory; `numbers` select the batch. Returns false if
    /// none is kept.
    pub fn release_one(&self, numbers: &mut SplitMix64) -> bool {
        let mut state = self.lock();
        if state.kept.is_empty() {
            return false;
        }
        let at = numbers.index(state.kept.len());
        let kept = state.kept.swap_remove(at);
        drop(state);
        self.end(kept.batch);
        true
    }

    /// Completes or releases all kept batches.
    pub fn release_all(&self) {
        let kept = mem::take(&mut self.lock().kept);
        for kept in kept {
            self.end(kept.batch);
        }
    }

    /// Completes the slow batches that the next call would complete, so that the call completes
    /// none.
    pub fn end_due(&self) {
        self.end_until(self.calls.load(Ordering::Relaxed));
    }

    /// The inner tier.
    #[must_use]
    pub fn inner(&self) -> &Arc<dyn Tier> {
        &self.inner
    }

    fn lock(&self) -> MutexGuard<'_, MisbehavingState> {
        self.state.lock()
    }

    /// Whether a fault with rate `of` happens now.
    fn happens(&self, of: impl Fn(&TierFaults) -> u64) -> bool {
        let mut state = self.lock();
        let of = of(&state.faults);
        state.numbers.once_in(of)
    }

    /// Counts a call and completes the slow batches that are due.
    fn call(&self) {
        self.end_until(self.calls.fetch_add(1, Ordering::Relaxed));
    }

    /// Completes the slow batches that are due at a call.
    fn end_until(&self, call: u64) {
        let mut state = self.lock();
        let is_due = |kept: &mut KeptEntry| kept.due.is_some_and(|due| due <= call);
        let due: Vec<KeptEntry> = state.kept.extract_if(.., is_due).collect();
        drop(state);
        for kept in due {
            self.end(kept.batch);
        }
    }

    /// Completes a batch now, after some calls, or when it is released.
    fn begin(&self, batch: KeptBatch) {
        let is_sync = matches!(batch, KeptBatch::Sync(_));
        let no_answer = |faults: &TierFaults| match is_sync {
            true => faults.no_sync_answer,
            false => faults.no_answer,
        };
        let due = if self.happens(no_answer) {
            None
        } else if self.happens(|faults| faults.slow) {
            let calls = self.calls.load(Ordering::Relaxed);
            Some(calls + self.lock().numbers.below(12))
        } else {
            self.end(batch);
            return;
        };
        self.lock().kept.push(KeptEntry { due, batch });
    }

    fn end(&self, batch: KeptBatch) {
        match batch {
            KeptBatch::Read(blocks, completer) => completer.finish(self.read_now(blocks)),
            KeptBatch::Write(blocks, completer) => completer.finish(self.write_now(blocks)),
            KeptBatch::Sync(completer) => completer.finish(self.sync_now()),
            KeptBatch::Reads(_) | KeptBatch::Writes(_) => {}
        }
    }

    fn keep(&self, batch: KeptBatch) {
        self.lock().kept.push(KeptEntry { due: None, batch });
    }

    fn read_now(&self, mut blocks: Vec<BlockRead>) -> ReadReport {
        let mut outcomes: Vec<Result<ReadSuccess, TierMiss>> = Vec::with_capacity(blocks.len());
        if self.happens(|faults| faults.keeps_memory) {
            let state = self.lock();
            for block in &mut blocks {
                outcomes.push(match state.copies.get(&block.name) {
                    Some(copy) => copy.serve(&mut block.into, ServedBytes::Right),
                    None => Err(TierMiss::Absent),
                });
            }
            drop(state);
            self.keep(KeptBatch::Reads(blocks));
        } else {
            // The inner tier serves the reads that this one does not answer itself.
            let mut passed = Vec::new();
            for mut block in blocks {
                match self.own_answer(&mut block) {
                    Some(outcome) => outcomes.push(outcome),
                    None => {
                        let at = outcomes.len();
                        passed.push((at, block));
                        outcomes.push(Err(TierMiss::Absent));
                    }
                }
            }
            let (places, passed): (Vec<usize>, Vec<BlockRead>) = passed.into_iter().unzip();
            let names: Vec<BlockName> = passed.iter().map(|block| block.name).collect();
            let report = self.inner.read(passed).wait();
            let state = self.lock();
            let ended = places.into_iter().zip(names).zip(report.blocks.iter());
            for ((at, name), outcome) in ended {
                let checksum = state.copies.get(&name).map(|copy| copy.checksum);
                let with_checksum = outcome.clone().map(|came| ReadSuccess {
                    checksum: came.checksum.or(checksum),
                });
                if let Some(one) = outcomes.get_mut(at) {
                    *one = with_checksum;
                }
            }
        }
        if self.happens(|faults| faults.wrong_count) {
            match self.lock().numbers.once_in(2) {
                true => drop(outcomes.pop()),
                false => outcomes.push(Ok(ReadSuccess::default())),
            }
        }
        ReadReport {
            blocks: outcomes.into(),
            elapsed: Duration::ZERO,
        }
    }

    /// The outcome of a read that this tier answers instead of the inner one.
    fn own_answer(&self, block: &mut BlockRead) -> Option<Result<ReadSuccess, TierMiss>> {
        let name = block.name;
        if self.happens(|faults| faults.read_error) {
            return Some(Err(TierMiss::Failed(failure("read"))));
        }
        if self.happens(|faults| faults.vanishing) {
            self.lock().vanished.insert(name);
        }
        let mut state = self.lock();
        if state.vanished.contains(&name) {
            return Some(Err(TierMiss::Absent));
        }
        let of = state.faults.wrong_bytes;
        if !state.numbers.once_in(of) {
            return None;
        }
        let other = state.copies.iter().find(|(other, _)| **other != name);
        let other = other.map(|(_, copy)| copy.clone());
        let how = ServedBytes::wrong(&mut state.numbers, other);
        let copy = state.copies.get(&name)?;
        Some(copy.serve(&mut block.into, how))
    }

    fn write_now(&self, mut blocks: Vec<BlockWrite>) -> WriteReport {
        let wanted = blocks.len();
        let mut outcomes: Vec<Result<WriteSuccess, NotWritten>> = Vec::with_capacity(wanted);
        let keeps_memory = self.happens(|faults| faults.keeps_memory);
        let lost = match self.happens(|faults| faults.lossy) {
            true => self.lock().numbers.index(wanted),
            false => wanted,
        };
        if keeps_memory {
            // The inner tier must not get memory that this one keeps.
            outcomes.extend((0..wanted).map(|_| Ok(WriteSuccess::New)));
            self.keep(KeptBatch::Writes(blocks));
        } else {
            blocks.truncate(lost);
            let mut failed = HashSet::new();
            let mut state = self.lock();
            for block in &blocks {
                let of = state.faults.write_error;
                if state.numbers.once_in(of) {
                    failed.insert(block.name);
                } else if let Some(copy) = CopiedBlock::of(block) {
                    state.copies.insert(block.name, copy);
                }
            }
            drop(state);
            let names: Vec<BlockName> = blocks.iter().map(|block| block.name).collect();
            blocks.retain(|block| !failed.contains(&block.name));
            let report = self.inner.write(blocks).wait();
            let mut passed = report.blocks.iter();
            for name in names {
                outcomes.push(match failed.contains(&name) {
                    true => Err(NotWritten::Failed(failure("write"))),
                    false => self.wrote(&name, passed.next()),
                });
            }
            outcomes.extend((lost..wanted).map(|_| Ok(WriteSuccess::New)));
        }
        if self.happens(|faults| faults.wrong_count) {
            match self.lock().numbers.once_in(2) {
                true => drop(outcomes.pop()),
                false => outcomes.push(Ok(WriteSuccess::New)),
            }
        }
        WriteReport {
            blocks: outcomes.into(),
            elapsed: Duration::ZERO,
        }
    }

    /// Makes a written block that had vanished findable again.
    fn wrote(
        &self,
        name: &BlockName,
        outcome: Option<&Result<WriteSuccess, NotWritten>>,
    ) -> Result<WriteSuccess, NotWritten> {
        match outcome {
            Some(Ok(wrote)) => match self.lock().vanished.remove(name) {
                true => Ok(WriteSuccess::New),
                false => Ok(*wrote),
            },
            Some(Err(error)) => Err(error.clone()),
            None => Err(NotWritten::Failed(failure("write"))),
        }
    }

    fn sync_now(&self) -> SyncReport {
        match self.happens(|faults| faults.sync_error) {
            true => SyncReport {
                lost: 0,
                failure: Some(failure("sync")),
            },
            false => self.inner.sync().wait(),
        }
    }

    /// The number of leading blocks that have not vanished.
    fn leading(&self, group: GroupId, keys: &[BlockKey]) -> usize {
        if self.happens(|faults| faults.denial) {
            return 0;
        }
        let state = self.lock();
        let has = |key: &&BlockKey| !state.vanished.contains(&BlockName { group, key: **key });
        keys.iter().take_while(has).count()
    }
}

fn failure(operation: &'static str) -> TierError {
    TierError::Request(RequestError::Panicked { what: operation })
}

impl Tier for MisbehavingTier {
    fn id(&self) -> TierId {
        self.inner.id()
    }

    fn abilities(&self) -> TierAbilities {
        TierAbilities {
            verifies: false,
            reads_pieces: false,
            ..self.inner.abilities()
        }
    }

    fn find(
        &self,
        group: GroupId,
        keys: &[BlockKey],
        claim: &PinClaim,
    ) -> Option<Box<dyn TierHold>> {
        self.call();
        let (keys, _) = keys.split_at(self.leading(group, keys));
        self.inner.find(group, keys, claim)
    }

    fn hold(&self, group: GroupId, keys: &[BlockKey]) -> Option<Box<dyn TierHold>> {
        self.call();
        let (keys, _) = keys.split_at(self.leading(group, keys));
        self.inner.hold(group, keys)
    }

    fn ask(&self, group: GroupId, keys: &[BlockKey]) -> Completion<TierAnswer> {
        self.call();
        let (keys, _) = keys.split_at(self.leading(group, keys));
        self.inner.ask(group, keys)
    }

    fn read(&self, blocks: Vec<BlockRead>) -> Completion<ReadReport> {
        self.call();
        let completer = Completer::new(0, 0);
        let completion = completer.completion();
        self.begin(KeptBatch::Read(blocks, completer));
        completion
    }

    fn write(&self, blocks: Vec<BlockWrite>) -> Completion<WriteReport> {
        self.call();
        let completer = Completer::new(0, 0);
        let completion = completer.completion();
        self.begin(KeptBatch::Write(blocks, completer));
        completion
    }

    fn forget(&self, group: GroupId, keys: &[BlockKey]) -> usize {
        self.call();
        self.inner.forget(group, keys)
    }

    fn evict(&self, blocks: usize, now: Tick) -> usize {
        self.call();
        self.inner.evict(blocks, now)
    }

    fn clear(&self, now: Tick) -> usize {
        self.call();
        self.inner.clear(now)
    }

    fn sync(&self) -> Completion<SyncReport> {
        self.call();
        let completer = Completer::new(0, 0);
        let completion = completer.completion();
        self.begin(KeptBatch::Sync(completer));
        completion
    }

    fn durable(&self, group: GroupId, keys: &[BlockKey]) -> Vec<bool> {
        self.inner.durable(group, keys)
    }

    fn stats(&self) -> TierStats {
        self.inner.stats()
    }

    fn estimate(&self, group: GroupId, blocks: usize) -> Option<Duration> {
        self.inner.estimate(group, blocks)
    }

    fn list(&self, blocks: &mut Vec<StoredBlock>) {
        self.inner.list(blocks);
    }

    fn overdue(&self, now: Tick) -> Vec<PinReport> {
        self.inner.overdue(now)
    }

    fn maintain(&self) {
        self.call();
        self.inner.maintain();
    }

    fn check_integrity(&self) {
        self.inner.check_integrity();
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}
