//! Writes of whole bundles, and syncs, which wait for them.

use std::{
    borrow::Cow,
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use kvtile_blocks::BlockKey;
use kvtile_tiers::{TierError, tier::SyncReport};
use kvtile_transfer::completion::{Completer, Completion};
use parking_lot::Mutex;

use super::{
    alarm::TimedWork,
    assembly::{AssembledBlock, staged_of},
    counts::count,
    known::{BlockPlace, ChainedBlock, KnownBundle},
    parts::SharedTierParts,
    threads::JobClass,
};
use crate::{
    bundle::{
        BlockPacker, BundleForm, BundleHeader, BundlePacking, BundleReader, BundleTarget,
        HeldBlock, WantedBytes, read_bundle,
    },
    store::{Deadline, SharedStoreError, ValueName, ValueWritten},
};

#[derive(Debug, Default)]
struct LedgerState {
    next: u64,
    /// Numbers of the writes in flight.
    open: BTreeSet<u64>,
    /// Blocks that were lost since the last sync ended.
    lost: usize,
    failure: Option<TierError>,
    /// Syncs with the number of the first write that they do not wait for.
    syncs: Vec<(u64, Completer<SyncReport>)>,
}

/// The writes in flight, and the syncs that wait for them.
#[derive(Debug, Default)]
pub(super) struct UploadLedger(Mutex<LedgerState>);

impl UploadLedger {
    pub(super) fn in_flight(&self) -> usize {
        self.0.lock().open.len()
    }

    fn begin(&self) -> u64 {
        let mut state = self.0.lock();
        let number = state.next;
        state.next += 1;
        state.open.insert(number);
        number
    }

    fn end(&self, number: u64, lost: usize, failure: Option<TierError>) {
        let mut state = self.0.lock();
        state.open.remove(&number);
        state.lost += lost;
        state.failure = failure.or(state.failure.take());
        UploadLedger::end_syncs(state);
    }

    /// A sync: it ends when all writes that began before it have ended.
    pub(super) fn sync(&self) -> Completion<SyncReport> {
        let completer = Completer::new(0, 0);
        let completion = completer.completion();
        self.sync_with(completer);
        completion
    }

    pub(super) fn sync_with(&self, completer: Completer<SyncReport>) {
        let mut state = self.0.lock();
        let next = state.next;
        state.syncs.push((next, completer));
        UploadLedger::end_syncs(state);
    }

    fn end_syncs(mut state: parking_lot::MutexGuard<'_, LedgerState>) {
        let first = state.open.first().copied().unwrap_or(u64::MAX);
        let is_over = |(next, _): &mut (u64, Completer<SyncReport>)| *next <= first;
        let over: Vec<_> = state.syncs.extract_if(.., is_over).collect();
        if over.is_empty() {
            return;
        }
        let report = SyncReport {
            lost: std::mem::take(&mut state.lost),
            failure: state.failure.take(),
        };
        drop(state);
        for (_, completer) in over {
            completer.finish(report.clone());
        }
    }

    /// Ends the syncs of a tier that closes.
    pub(super) fn close(&self) {
        let syncs = std::mem::take(&mut self.0.lock().syncs);
        for (_, completer) in syncs {
            completer.finish(SyncReport {
                lost: 0,
                failure: Some(SharedTierParts::closed()),
            });
        }
    }
}

/// Reports a write that does not return to the breaker. The write itself cannot be cancelled.
struct UploadWatch {
    parts: Arc<SharedTierParts>,
    has_ended: AtomicBool,
}

impl TimedWork for UploadWatch {
    fn too_late(&self) {
        if !self.has_ended.load(Ordering::Relaxed) {
            let parts = &self.parts;
            let error = parts.late("write", parts.settings.write_within);
            parts.pace.failed();
            parts.writes.late(parts.clock.now(), &error);
        }
    }
}

/// The write of one bundle. Dropping it before it has run loses its blocks.
struct BundleUpload {
    parts: Arc<SharedTierParts>,
    number: u64,
    blocks: Vec<AssembledBlock>,
    has_ended: bool,
}

/// Starts writing a whole bundle.
pub(super) fn start(parts: &Arc<SharedTierParts>, blocks: Vec<AssembledBlock>) {
    let upload = BundleUpload {
        parts: Arc::clone(parts),
        number: parts.uploads.begin(),
        blocks,
        has_ended: false,
    };
    parts
        .threads
        .push(JobClass::Write, Box::new(|| upload.run()));
}

/// The bytes and the checksum of a block that was read back.
type ReadBack = (Vec<u8>, u64);

/// Why a bundle was not written.
enum UploadError {
    Store(SharedStoreError),
    Paused,
    /// The blocks that it shares with another bundle cannot be read back.
    Unreadable,
}

impl BundleUpload {
    fn run(mut self) {
        let parts = Arc::clone(&self.parts);
        let watch = Arc::new(UploadWatch {
            parts: Arc::clone(&parts),
            has_ended: AtomicBool::new(false),
        });
        parts.set_alarm(parts.settings.write_within, &watch);
        let written = self.write();
        watch.has_ended.store(true, Ordering::Relaxed);
        let failure = match written {
            Ok(written) => {
                self.is_stored();
                parts.pace.met(written == ValueWritten::Present);
                if written == ValueWritten::Present {
                    count(&parts.counts.present, 1);
                }
                parts.writes.succeeded(parts.clock.now());
                None
            }
            Err(error) => {
                count(&parts.counts.write_failed, 1);
                Some(match error {
                    UploadError::Store(error) => {
                        parts.pace.failed();
                        parts.writes.failed(parts.clock.now(), &error);
                        parts.store_error(error)
                    }
                    UploadError::Paused => {
                        parts.writes.left_out(self.blocks.len() as u64);
                        parts.paused()
                    }
                    UploadError::Unreadable => {
                        // No failure of the store's writes.
                        self.end(None);
                        return;
                    }
                })
            }
        };
        self.end(failure);
    }

    /// Ends the write: blocks that the store does not have are not found any more.
    fn end(&mut self, failure: Option<TierError>) {
        self.has_ended = true;
        let lost = self.parts.known.drop_staged(&staged_of(&self.blocks), true);
        self.blocks.clear();
        self.parts.uploads.end(self.number, lost, failure);
    }

    fn write(&self) -> Result<ValueWritten, UploadError> {
        let parts = &self.parts;
        let (Some(first), Some(last)) = (self.blocks.first(), self.blocks.last()) else {
            return Err(UploadError::Unreadable);
        };
        let bundle = last.chained.name;
        let (Some(group), Some(name)) = (parts.group(bundle.group), parts.value_name(&bundle))
        else {
            return Err(UploadError::Unreadable);
        };
        if !parts.writes.allows(parts.clock.now()) {
            return Err(UploadError::Paused);
        }
        let by = Deadline::within(parts.settings.write_within);
        for beside in std::iter::once(&group.manifest).chain(&group.announcement) {
            beside.write(&*parts.store, by);
        }
        if self.queries_first(&group.form) && self.is_present(&name, by)? {
            return Ok(ValueWritten::Present);
        }
        let read_back = self.read_back(&group.form, by)?;
        let packing = match parts.settings.compress {
            true => group.packing,
            false => BundlePacking::Raw,
        };
        let mut packer = match packing {
            BundlePacking::Raw => None,
            BundlePacking::Packed(units) => Some(BlockPacker::new(units)),
        };
        let mut contents: Vec<Cow<'_, [u8]>> = Vec::with_capacity(self.blocks.len());
        let mut held = Vec::with_capacity(self.blocks.len());
        for (block, read_back) in self.blocks.iter().zip(&read_back) {
            let (bytes, checksum) = match (&block.place, read_back) {
                (BlockPlace::Staged(staged), _) => (staged.bytes(), staged.checksum()),
                (BlockPlace::Stored(_), Some((bytes, checksum))) => (bytes.as_slice(), *checksum),
                (BlockPlace::Stored(_), None) => return Err(UploadError::Unreadable),
            };
            let packed = packer.as_mut().and_then(|packer| packer.pack(bytes));
            let stored = packed.map_or(Cow::Borrowed(bytes), Cow::Owned);
            held.push(HeldBlock {
                key: block.chained.name.key,
                checksum,
                bytes: stored.len() as u64,
            });
            contents.push(stored);
        }
        let header = BundleHeader {
            first_position: first.chained.position,
            parent: first.chained.parent,
            packing,
            blocks: held,
        };
        let header = header.encode(&group.form);
        let contents = contents.iter().map(|block| &**block);
        let contents: Vec<&[u8]> = [&*header].into_iter().chain(contents).collect();
        self.write_value(&name, &contents, by)
    }

    /// Whether to query the bundle before its bytes are sent. A store that keeps the first value of a name answers the
    /// same to the write, which is the faster query while few bundles are there already, or where bytes cost less than a
    /// call.
    fn queries_first(&self, form: &BundleForm) -> bool {
        let parts = &self.parts;
        !parts.abilities.keeps_first || parts.pace.is_query_worth(form.bundle_bytes())
    }

    fn is_present(&self, name: &ValueName, by: Deadline) -> Result<bool, UploadError> {
        let parts = &self.parts;
        let start = Instant::now();
        let has = parts.store.has(std::slice::from_ref(name), by);
        let is_present = has.map_err(UploadError::Store)?.first() == Some(&true);
        if !is_present {
            parts.pace.measured(0, start.elapsed());
        }
        Ok(is_present)
    }

    fn write_value(
        &self,
        name: &ValueName,
        contents: &[&[u8]],
        by: Deadline,
    ) -> Result<ValueWritten, UploadError> {
        let parts = &self.parts;
        let bytes: u64 = contents.iter().map(|part| part.len() as u64).sum();
        let lifetime = parts.settings.lifetime;
        let written = parts.store.write(name, contents, lifetime, by);
        let written = written.map_err(UploadError::Store)?;
        if written == ValueWritten::New {
            count(&parts.counts.written, 1);
            count(&parts.counts.written_bytes, bytes);
        }
        Ok(written)
    }

    /// The store has the bundle.
    fn is_stored(&self) {
        let Some(last) = self.blocks.last() else {
            return;
        };
        let chained: Vec<ChainedBlock> = self.blocks.iter().map(|block| block.chained).collect();
        let bundle = KnownBundle {
            name: last.chained.name,
            keys: chained.iter().map(|block| block.name.key).collect(),
            renewed: Mutex::new(Some(Instant::now())),
        };
        let bundle = Arc::new(bundle);
        self.parts.known.add_stored(&bundle, &chained, false);
    }

    /// The bytes and checksums of the blocks that are only in another bundle of the store.
    fn read_back(
        &self,
        form: &BundleForm,
        by: Deadline,
    ) -> Result<Vec<Option<ReadBack>>, UploadError> {
        let mut read: Vec<Option<ReadBack>> = vec![None; self.blocks.len()];
        let mut at = 0;
        while let Some(block) = self.blocks.get(at) {
            let BlockPlace::Stored(source) = &block.place else {
                at += 1;
                continue;
            };
            let is_of_it = |block: &&AssembledBlock| match &block.place {
                BlockPlace::Stored(other) => other.name == source.name,
                BlockPlace::Staged(_) => false,
            };
            let (_, rest) = self.blocks.split_at(at);
            let run = rest.iter().take_while(is_of_it).count();
            let (run, _) = rest.split_at(run);
            let came = self.read_run(form, source, run, by)?;
            let places = read.iter_mut().skip(at);
            at += run.len();
            for (place, came) in places.zip(came) {
                *place = Some(came);
            }
        }
        Ok(read)
    }

    /// Reads some blocks of one bundle.
    fn read_run(
        &self,
        form: &BundleForm,
        source: &KnownBundle,
        run: &[AssembledBlock],
        by: Deadline,
    ) -> Result<Vec<ReadBack>, UploadError> {
        let parts = &self.parts;
        let name = parts.value_name(&source.name);
        let name = name.ok_or(UploadError::Unreadable)?;
        let index = |block: &AssembledBlock| source.index_of(&block.chained.name.key);
        let wanted = run.iter().map(|block| {
            let bytes = usize::try_from(form.block_bytes).unwrap_or(usize::MAX);
            Some(CollectedBlock {
                index: index(block)?,
                key: block.chained.name.key,
                bytes: vec![0; bytes],
                checksum: None,
            })
        });
        let wanted: Option<Vec<CollectedBlock>> = wanted.collect();
        let target = CollectedBlocks(Mutex::new(wanted.ok_or(UploadError::Unreadable)?));
        let mut reader = BundleReader::new(form, source.name.key, &target);
        let came = read_bundle(&*parts.store, &name, &mut reader, by);
        count(&parts.counts.read_bytes, reader.bytes());
        let is_whole = came.map_err(UploadError::Store)? && reader.end().is_ok();
        drop(reader);
        if !is_whole {
            let absent_for = parts.settings.absent_for;
            parts.known.drop_bundle(source, absent_for, false);
            return Err(UploadError::Unreadable);
        }
        let blocks = target.0.into_inner().into_iter();
        let verified = blocks.map(|block| Some((block.bytes, block.checksum?)));
        verified
            .collect::<Option<_>>()
            .ok_or(UploadError::Unreadable)
    }
}

impl Drop for BundleUpload {
    fn drop(&mut self) {
        if !self.has_ended {
            self.end(Some(SharedTierParts::closed()));
        }
    }
}

/// A block that is read back.
struct CollectedBlock {
    index: u32,
    key: BlockKey,
    bytes: Vec<u8>,
    checksum: Option<u64>,
}

struct CollectedBlocks(Mutex<Vec<CollectedBlock>>);

impl BundleTarget for CollectedBlocks {
    fn first_wanted(&self) -> Option<u32> {
        self.next_wanted(0)
    }

    fn next_wanted(&self, from: u32) -> Option<u32> {
        let blocks = self.0.lock();
        let indices = blocks.iter().map(|block| block.index);
        indices.filter(|index| *index >= from).min()
    }

    fn last_wanted(&self) -> Option<u32> {
        self.0.lock().iter().map(|block| block.index).max()
    }

    fn wants(&self, index: u32, key: &BlockKey) -> WantedBytes {
        let blocks = self.0.lock();
        match blocks.iter().find(|block| block.index == index) {
            None => WantedBytes::Skipped,
            Some(block) if block.key == *key => WantedBytes::Wanted,
            Some(_) => WantedBytes::OtherKey,
        }
    }

    fn take(&self, index: u32, offset: u64, bytes: &[u8]) {
        let mut blocks = self.0.lock();
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        let end = start.saturating_add(bytes.len());
        let block = blocks.iter_mut().find(|block| block.index == index);
        if let Some(place) = block.and_then(|block| block.bytes.get_mut(start..end)) {
            place.copy_from_slice(bytes);
        }
    }

    fn verified(&self, index: u32, checksum: Option<u64>) {
        let mut blocks = self.0.lock();
        if let Some(block) = blocks.iter_mut().find(|block| block.index == index) {
            block.checksum = checksum;
        }
    }
}

/// Waits until the writes that have begun have ended, for a time.
pub(super) fn wait_for_writes(parts: &SharedTierParts, within: Duration) -> bool {
    parts.uploads.sync().wait_timeout(within).is_some()
}
