//! Reads of bundles. Several batches with blocks of one bundle share one call of the store, if it
//! has not passed their blocks yet.
//!
//! The store's bytes are copied into the batch's memory under a lock. When the time is up, the
//! fetch gives the memory back and ends its blocks, whether the store's call has returned or not.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use kvtile_blocks::BlockKey;
use kvtile_tiers::{
    TierError,
    tier::{
        BatchPart, BlockName, BlockRead, HostBlock, OutcomeGather, ReadReport, ReadSuccess,
        TierMiss,
    },
};
use kvtile_transfer::completion::Completion;
use parking_lot::{Mutex, MutexGuard};

use super::{
    alarm::TimedWork,
    counts::count,
    known::{BlockPlace, KnownBundle},
    parts::SharedTierParts,
    staged::StagedBytes,
    threads::JobClass,
};
use crate::{
    bundle::{BundleFault, BundleReader, BundleTarget, HeaderFault, WantedBytes, read_bundle},
    store::{Deadline, SharedStoreError},
};

type ReadPart = BatchPart<Result<ReadSuccess, TierMiss>, ReadReport>;

/// A block of a batch, with its memory.
struct FetchedBlock {
    /// Its index in the bundle.
    index: u32,
    key: BlockKey,
    into: HostBlock,
    part: ReadPart,
    /// Its bytes came and were verified.
    is_verified: bool,
    /// Why its memory does not take bytes.
    failure: Option<TierError>,
}

impl FetchedBlock {
    /// Gives the memory back, then ends the block.
    fn end(self, otherwise: &TierMiss, elapsed: Duration) {
        let outcome = match (self.is_verified, self.failure) {
            (_, Some(error)) => Err(TierMiss::Failed(error)),
            (true, None) => Ok(ReadSuccess::default()),
            (false, None) => Err(otherwise.clone()),
        };
        drop(self.into);
        self.part.end(vec![outcome], elapsed);
    }
}

struct FetchState {
    blocks: Vec<FetchedBlock>,
    /// Blocks before this index have passed.
    passed: u32,
    /// Whether further blocks may be added.
    is_open: bool,
    /// Whether the store's call has begun.
    has_begun: bool,
}

/// A read of one bundle.
pub(super) struct BundleFetch {
    parts: Arc<SharedTierParts>,
    bundle: Arc<KnownBundle>,
    start: Instant,
    state: Mutex<FetchState>,
}

/// Starts the reads of a batch.
pub(super) fn read(parts: &Arc<SharedTierParts>, blocks: Vec<BlockRead>) -> Completion<ReadReport> {
    let lost = || Err(TierMiss::Failed(SharedTierParts::closed()));
    let (completion, mut rest) =
        OutcomeGather::begin(blocks.len(), lost, |blocks, elapsed| ReadReport {
            blocks: blocks.into(),
            elapsed,
        });
    let mut wanted: Vec<(Arc<KnownBundle>, Vec<FetchedBlock>)> = Vec::new();
    let mut places: HashMap<BlockName, usize> = HashMap::new();
    for block in blocks {
        let later = rest.split_off(1);
        let part = std::mem::replace(&mut rest, later);
        match parts.known.place(&block.name).map(|(_, place)| place) {
            None => {
                drop(block.into);
                part.end(vec![Err(TierMiss::Absent)], Duration::ZERO);
            }
            Some(BlockPlace::Staged(staged)) => read_staged(parts, block, &staged, part),
            Some(BlockPlace::Stored(bundle)) => {
                let Some(index) = bundle.index_of(&block.name.key) else {
                    drop(block.into);
                    part.end(vec![Err(TierMiss::Absent)], Duration::ZERO);
                    continue;
                };
                let one = FetchedBlock {
                    index,
                    key: block.name.key,
                    into: block.into,
                    part,
                    is_verified: false,
                    failure: None,
                };
                let at = *places.entry(bundle.name).or_insert_with(|| {
                    wanted.push((Arc::clone(&bundle), Vec::new()));
                    wanted.len() - 1
                });
                if let Some((_, blocks)) = wanted.get_mut(at) {
                    blocks.push(one);
                }
            }
        }
    }
    for (bundle, blocks) in wanted {
        fetch(parts, bundle, blocks);
    }
    completion
}

/// Copies a block that is still in staging memory.
fn read_staged(
    parts: &SharedTierParts,
    mut block: BlockRead,
    staged: &StagedBytes,
    part: ReadPart,
) {
    let start = Instant::now();
    let outcome = match block.into.bytes_mut() {
        Ok(into) if into.len() == staged.bytes().len() => {
            into.copy_from_slice(staged.bytes());
            count(&parts.counts.read_staged_blocks, 1);
            Ok(ReadSuccess::default())
        }
        Ok(_) => Err(TierMiss::Absent),
        Err(error) => Err(TierMiss::Failed(error.into())),
    };
    drop(block.into);
    part.end(vec![outcome], start.elapsed());
}

/// Reads blocks of one bundle, with a call that is in flight already if it can.
fn fetch(parts: &Arc<SharedTierParts>, bundle: Arc<KnownBundle>, blocks: Vec<FetchedBlock>) {
    let mut fetches = parts.fetches.lock();
    let blocks = match fetches.get(&bundle.name) {
        Some(running) => running.join(blocks),
        None => blocks,
    };
    if blocks.is_empty() {
        return;
    }
    if !parts.reads.allows(parts.clock.now()) {
        drop(fetches);
        count(&parts.counts.breaker_open, 1);
        parts.reads.left_out(blocks.len() as u64);
        let paused = TierMiss::Failed(parts.paused());
        for block in blocks {
            block.end(&paused, Duration::ZERO);
        }
        return;
    }
    let name = bundle.name;
    let fetch = Arc::new(BundleFetch {
        parts: Arc::clone(parts),
        bundle,
        start: Instant::now(),
        state: Mutex::new(FetchState {
            blocks,
            passed: 0,
            is_open: true,
            has_begun: false,
        }),
    });
    fetches.insert(name, Arc::clone(&fetch));
    drop(fetches);
    parts.set_alarm(parts.settings.read_within, &fetch);
    let job = FetchCall { fetch };
    parts.threads.push(JobClass::Read, Box::new(|| job.run()));
}

/// The call of the store for a fetch. Dropping it ends the fetch as closed.
struct FetchCall {
    fetch: Arc<BundleFetch>,
}

/// How a fetch ended.
enum FetchEnd {
    Came,
    Absent,
    Fault(BundleFault),
    Failed(SharedStoreError),
    Late,
    /// Its time was up before a thread was free.
    NotBegun,
    Closed,
}

impl FetchCall {
    fn run(self) {
        let fetch = &self.fetch;
        let parts = &fetch.parts;
        let (Some(group), Some(name)) = (
            parts.group(fetch.bundle.name.group),
            parts.value_name(&fetch.bundle.name),
        ) else {
            return;
        };
        {
            let mut state = fetch.lock();
            if state.blocks.is_empty() {
                // It was late before it began.
                return;
            }
            state.has_begun = true;
        }
        let left = parts
            .settings
            .read_within
            .saturating_sub(fetch.start.elapsed());
        let begun = Instant::now();
        let mut reader = BundleReader::new(&group.form, fetch.bundle.name.key, &**fetch);
        let came = read_bundle(&*parts.store, &name, &mut reader, Deadline::within(left));
        count(&parts.counts.read_bytes, reader.bytes());
        let end = match came {
            Ok(true) => match reader.end() {
                Ok(()) => FetchEnd::Came,
                Err(fault) => FetchEnd::Fault(fault),
            },
            Ok(false) => FetchEnd::Absent,
            Err(error) => FetchEnd::Failed(error),
        };
        if !matches!(end, FetchEnd::Failed(_)) {
            parts.read_succeeded(reader.bytes(), begun.elapsed());
        }
        fetch.finish(end);
    }
}

impl Drop for FetchCall {
    /// Ends a fetch that never ran, or whose store panicked.
    fn drop(&mut self) {
        self.fetch.finish(FetchEnd::Closed);
    }
}

impl BundleFetch {
    fn lock(&self) -> MutexGuard<'_, FetchState> {
        self.state.lock()
    }

    /// Adds blocks that the store has not passed yet. Returns the others.
    fn join(&self, blocks: Vec<FetchedBlock>) -> Vec<FetchedBlock> {
        let mut state = self.lock();
        if !state.is_open {
            return blocks;
        }
        let mut others = Vec::new();
        for block in blocks {
            match block.index >= state.passed {
                true => state.blocks.push(block),
                false => others.push(block),
            }
        }
        others
    }

    /// Ends its blocks. It does nothing the second time.
    fn finish(&self, end: FetchEnd) {
        let mut fetches = self.parts.fetches.lock();
        let is_this = |one: &Arc<BundleFetch>| std::ptr::eq(Arc::as_ptr(one), self);
        if fetches.get(&self.bundle.name).is_some_and(is_this) {
            fetches.remove(&self.bundle.name);
        }
        drop(fetches);
        let mut state = self.lock();
        let was_open = std::mem::replace(&mut state.is_open, false);
        let blocks = std::mem::take(&mut state.blocks);
        drop(state);
        if !was_open {
            return;
        }
        let is_faulty = matches!(end, FetchEnd::Fault(_));
        let miss = self.settle(end);
        let elapsed = self.start.elapsed();
        // No block of a faulty value is used.
        let came = |block: &&FetchedBlock| block.is_verified && !is_faulty;
        let count_came = blocks.iter().filter(came).count() as u64;
        count(&self.parts.counts.read_blocks, count_came);
        for mut block in blocks {
            block.is_verified &= !is_faulty;
            block.end(&miss, elapsed);
        }
    }

    /// Counts the end, and returns the outcome of blocks that did not come.
    fn settle(&self, end: FetchEnd) -> TierMiss {
        let parts = &self.parts;
        let counts = &parts.counts;
        let drop_bundle = |is_damaged| {
            let absent_for = parts.settings.absent_for;
            parts
                .known
                .drop_bundle(&self.bundle, absent_for, is_damaged);
        };
        match end {
            FetchEnd::Came => {
                count(&counts.read, 1);
                parts.renew(&self.bundle);
                TierMiss::Absent
            }
            FetchEnd::Absent => {
                count(&counts.absent, 1);
                drop_bundle(false);
                TierMiss::Absent
            }
            FetchEnd::Fault(fault) => {
                counts.fault(fault);
                drop_bundle(true);
                if is_ours(fault) {
                    parts.remove_damaged(&self.bundle.name);
                }
                let what = fault.to_string();
                log::warn!("a value of {} is not used: {what}", parts.store.name());
                TierMiss::Damaged { what }
            }
            FetchEnd::Failed(error) => {
                parts.read_failed(&error);
                count(&counts.read_failed, 1);
                drop_bundle(false);
                TierMiss::Failed(parts.store_error(error))
            }
            FetchEnd::Late => {
                let error = parts.late("read", parts.settings.read_within);
                parts.read_is_late(&error);
                count(&counts.late, 1);
                drop_bundle(false);
                TierMiss::Failed(error)
            }
            FetchEnd::NotBegun => {
                let error = parts.late("read", parts.settings.read_within);
                parts.read_did_not_begin(&error);
                count(&counts.late, 1);
                TierMiss::Failed(error)
            }
            FetchEnd::Closed => TierMiss::Failed(SharedTierParts::closed()),
        }
    }

    /// Ends its blocks because the tier closes.
    pub(super) fn close(&self) {
        self.finish(FetchEnd::Closed);
    }
}

/// Whether a faulty value was written by a tier like this one, and not by something else or by a
/// newer version.
fn is_ours(fault: BundleFault) -> bool {
    !matches!(
        fault,
        BundleFault::Header(
            HeaderFault::Foreign
                | HeaderFault::Version(_)
                | HeaderFault::Flags(_)
                | HeaderFault::Other(_)
        )
    )
}

impl TimedWork for BundleFetch {
    fn too_late(&self) {
        let end = match self.lock().has_begun {
            true => FetchEnd::Late,
            false => FetchEnd::NotBegun,
        };
        self.finish(end);
    }
}

impl BundleTarget for BundleFetch {
    fn first_wanted(&self) -> Option<u32> {
        self.lock().blocks.iter().map(|block| block.index).min()
    }

    fn next_wanted(&self, from: u32) -> Option<u32> {
        let mut state = self.lock();
        let indices = state.blocks.iter().map(|block| block.index);
        let next = indices.filter(|index| *index >= from).min();
        // Blocks before it can no longer be added, and after the end none.
        state.passed = state.passed.max(next.unwrap_or(u32::MAX));
        next
    }

    fn last_wanted(&self) -> Option<u32> {
        self.lock().blocks.iter().map(|block| block.index).max()
    }

    fn wants(&self, index: u32, key: &BlockKey) -> WantedBytes {
        let mut state = self.lock();
        state.passed = index.saturating_add(1);
        let mut wanted = WantedBytes::Skipped;
        for block in state.blocks.iter().filter(|block| block.index == index) {
            if block.key != *key {
                return WantedBytes::OtherKey;
            }
            wanted = WantedBytes::Wanted;
        }
        wanted
    }

    fn take(&self, index: u32, offset: u64, bytes: &[u8]) {
        let mut state = self.lock();
        for block in state.blocks.iter_mut().filter(|block| block.index == index) {
            let into = match block.into.bytes_mut() {
                Ok(into) => into,
                Err(error) => {
                    block.failure = Some(error.into());
                    continue;
                }
            };
            let start = usize::try_from(offset).unwrap_or(usize::MAX);
            let end = start.saturating_add(bytes.len());
            match into.get_mut(start..end) {
                Some(place) => place.copy_from_slice(bytes),
                None => block.failure = Some(SharedTierParts::closed()),
            }
        }
    }

    fn verified(&self, index: u32, checksum: Option<u64>) {
        let mut state = self.lock();
        for block in state.blocks.iter_mut().filter(|block| block.index == index) {
            block.is_verified = checksum.is_some();
        }
    }
}
