//! Batched writes. A batch allocates slots for its blocks, writes them with one call of the slot
//! store, and then registers each block after its parent, which makes it findable.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use kvtile_blocks::{
    BlockId, BlockKey,
    pool::{AllocateRequest, MutableBlocks, PinClaim, PinnedBlocks, TenantId},
};
use kvtile_layout::broken;
use kvtile_transfer::completion::Completion;

use super::{DiskTierShared, given_up, group::DiskGroup, threads::DiskThreads};
use crate::{
    disk::SlotWrite,
    error::{BatchError, SlotError, TierError},
    room::chain_room,
    tier::{
        BlockWrite, NotWritten, OutcomeGather, RefusedBlocks, RemovalTicket, WriteReport,
        WriteSuccess,
    },
};

type DiskWriteOutcome = Result<WriteSuccess, NotWritten>;

/// Starts a batch of writes.
pub(super) fn start(
    disk: &Arc<DiskTierShared>,
    threads: &DiskThreads,
    blocks: Vec<BlockWrite>,
) -> Completion<WriteReport> {
    let lost = || Err(NotWritten::Failed(given_up("a write to the disk tier")));
    let report = |blocks: Vec<DiskWriteOutcome>, elapsed| WriteReport {
        blocks: blocks.into(),
        elapsed,
    };
    let (completion, part) = OutcomeGather::begin(blocks.len(), lost, report);
    if blocks.is_empty() {
        return completion;
    }
    let disk = Arc::clone(disk);
    // Here, not on the thread: a removal after this call counts for the batch.
    let ticket = disk.removals.begin();
    threads.run(move || {
        let start = disk.clock.now();
        let outcomes = disk.write_all(&blocks, &ticket);
        drop(ticket);
        drop(blocks);
        let elapsed = disk.clock.now().saturating_sub(start);
        part.end(outcomes, elapsed);
    });
    completion
}

/// The progress of a batch of writes to one group.
struct DiskWriteBatch<'a> {
    blocks: Vec<&'a BlockWrite>,
    ticket: &'a RemovalTicket,
    outcomes: Vec<Option<DiskWriteOutcome>>,
    /// Pinned blocks that must not be evicted for others of the batch: parents, and blocks it has
    /// written.
    held: Vec<PinnedBlocks>,
    /// Keys of the batch that are on the tier, or will be unless their write fails.
    expected: HashSet<BlockKey>,
}

impl DiskWriteBatch<'_> {
    /// The outcomes, once every block has one, apart from repeated keys.
    fn end(self) -> Vec<DiskWriteOutcome> {
        let mut of_keys: HashMap<BlockKey, DiskWriteOutcome> = HashMap::new();
        let mut refused = RefusedBlocks::default();
        let ended = self.blocks.iter().zip(self.outcomes);
        ended
            .map(|(block, outcome)| {
                let key = block.name.key;
                let outcome = match (outcome, of_keys.get(&key)) {
                    // It may be there without its parent, which was damaged.
                    (Some(Ok(success)), _) => refused.check(block).map(|()| success),
                    (Some(Err(error)), _) => Err(error),
                    (None, Some(Ok(_))) => Ok(WriteSuccess::Present),
                    (None, Some(Err(error))) => Err(error.clone()),
                    (None, None) => broken(format_args!("block {key} has no outcome")),
                };
                refused.note(block.name, &outcome);
                of_keys.insert(key, outcome.clone());
                outcome
            })
            .collect()
    }
}

impl DiskTierShared {
    /// Writes a batch: the blocks of each group on their own, in their order.
    fn write_all(&self, blocks: &[BlockWrite], ticket: &RemovalTicket) -> Vec<DiskWriteOutcome> {
        let unknown = |block: &BlockWrite| {
            let (tier, group) = (self.id, block.name.group.0);
            let unknown = BatchError::NoSuchGroup { tier, group };
            Err(NotWritten::Failed(TierError::Batch(unknown)))
        };
        let mut outcomes: Vec<DiskWriteOutcome> = blocks.iter().map(unknown).collect();
        for group in &self.groups {
            let ours = || blocks.iter().filter(|block| block.name.group == group.id);
            if ours().next().is_none() {
                continue;
            }
            let mut written = group
                .write_all(ours().collect(), (self, ticket))
                .into_iter();
            for (outcome, block) in outcomes.iter_mut().zip(blocks) {
                if block.name.group == group.id
                    && let Some(written) = written.next()
                {
                    *outcome = written;
                }
            }
        }
        outcomes
    }
}

impl DiskGroup {
    /// Writes as many blocks of a batch as there is room for.
    fn write_all(
        &self,
        blocks: Vec<&BlockWrite>,
        (disk, ticket): (&DiskTierShared, &RemovalTicket),
    ) -> Vec<DiskWriteOutcome> {
        let _writing = self.writing.lock();
        let mut batch = DiskWriteBatch {
            outcomes: vec![None; blocks.len()],
            blocks,
            ticket,
            held: Vec::new(),
            expected: HashSet::new(),
        };
        let mut wanted = self.wanted(&mut batch);
        while !wanted.is_empty() {
            let tenant = tenant_of(&batch, &wanted);
            let run = wanted.iter().map_while(|at| batch.blocks.get(*at));
            let run = run.take_while(|block| block.tenant == tenant).count();
            let Some(room) = self.slots(disk, run, tenant) else {
                for at in wanted {
                    set(&mut batch.outcomes, at, Err(NotWritten::NoRoom));
                }
                break;
            };
            let rest = wanted.split_off(room.len());
            self.write_run((disk, &mut batch), &wanted, (room, tenant));
            wanted = rest;
        }
        let blocks = batch.blocks.clone();
        let mut outcomes = batch.end();
        if ticket.lock().is_cleared() {
            self.remove_registered(&blocks, &mut outcomes);
        }
        outcomes
    }

    /// Removes the blocks that a batch registered before all blocks were removed: its pins kept them then. No other batch
    /// has written them since, because this one still has the lock of writers.
    fn remove_registered(&self, blocks: &[&BlockWrite], outcomes: &mut [DiskWriteOutcome]) {
        let ended = blocks.iter().zip(&*outcomes);
        let new = ended.filter(|(_, outcome)| matches!(outcome, Ok(WriteSuccess::New)));
        let keys: Vec<BlockKey> = new.map(|(block, _)| block.name.key).collect();
        self.forget(&keys);
        let removed: HashSet<BlockKey> = keys.into_iter().collect();
        let mut refused = RefusedBlocks::default();
        for (block, outcome) in blocks.iter().zip(outcomes) {
            if outcome.is_ok() {
                // A repeated key has the outcome of its first block.
                *outcome = match removed.contains(&block.name.key) {
                    true => Err(NotWritten::Removed),
                    false => refused.check(block).map(|()| WriteSuccess::Present),
                };
            }
            refused.note(block.name, outcome);
        }
    }

    /// The indices of the blocks to write: those that are not on the tier and whose parent is.
    fn wanted(&self, batch: &mut DiskWriteBatch<'_>) -> Vec<usize> {
        let mut wanted = Vec::new();
        for (at, block) in batch.blocks.iter().enumerate() {
            let key = block.name.key;
            if batch.expected.contains(&key) {
                // A repeated key gets the outcome of its first block.
                continue;
            }
            let there = self.pin(std::slice::from_ref(&key));
            if !there.is_empty() {
                batch.held.push(there);
                batch.expected.insert(key);
                set(&mut batch.outcomes, at, Ok(WriteSuccess::Present));
                continue;
            }
            if let Some(parent) = block.parent.filter(|key| !batch.expected.contains(key)) {
                let there = self.pin(std::slice::from_ref(&parent));
                if there.is_empty() {
                    set(&mut batch.outcomes, at, Err(NotWritten::NoParent));
                    continue;
                }
                batch.held.push(there);
            }
            batch.expected.insert(key);
            wanted.push(at);
        }
        wanted
    }

    /// Allocates slots for up to `wanted` blocks and erases those of the blocks evicted for them.
    fn slots(&self, disk: &DiskTierShared, wanted: usize, tenant: u32) -> Option<MutableBlocks> {
        let wanted = match self.store.lends() {
            true => self.lent_room(disk, wanted),
            false => wanted,
        };
        let request = AllocateRequest {
            tenant: TenantId(tenant),
            now: self.tick(),
        };
        chain_room(wanted, |blocks| {
            self.pool.allocate_with(blocks, &request, |leaving| {
                let slots: Vec<BlockId> = leaving.iter().map(|evicted| evicted.block).collect();
                self.erase(&slots);
            })
        })
    }

    /// For how many of `wanted` blocks the group has free places, after it took room from other groups
    /// and evicted blocks of its own.
    fn lent_room(&self, disk: &DiskTierShared, wanted: usize) -> usize {
        let most = u32::try_from(wanted).unwrap_or(u32::MAX);
        disk.move_room(self, most);
        let free = || self.store.room().saturating_sub(self.store.used());
        let missing = most.saturating_sub(free());
        if missing > 0 {
            self.evict_for_room(missing as usize);
        }
        most.min(free()) as usize
    }

    /// Writes the blocks with the indices `run` into `room`, and registers each whose parent is
    /// present.
    fn write_run(
        &self,
        (disk, batch): (&DiskTierShared, &mut DiskWriteBatch<'_>),
        run: &[usize],
        (mut room, tenant): (MutableBlocks, u32),
    ) {
        let mut writes = Vec::with_capacity(run.len());
        let mut unreadable: Vec<(BlockId, TierError)> = Vec::new();
        for (&at, &slot) in run.iter().zip(room.ids()) {
            let Some(block) = batch.blocks.get(at) else {
                broken(format_args!("block {at} of {}", batch.blocks.len()))
            };
            match block.from.bytes() {
                Ok(bytes) => writes.push(SlotWrite {
                    slot: slot.0,
                    key: block.name.key,
                    parent: block.parent,
                    position: block.position,
                    tenant: block.tenant,
                    bytes,
                }),
                Err(error) => unreadable.push((slot, error.into())),
            }
        }
        let written = self.store.write(&writes);
        if let Some(lending) = &disk.lending {
            let blocks = writes.len() as u64;
            lending.turns.written(blocks * self.store.block_bytes());
        }
        self.drop_lost(&self.store.take_lost());
        let failed = written.failed.into_iter();
        let mut failed: Vec<(BlockId, TierError)> = failed
            .map(|failed| (BlockId(failed.slot), failed.error))
            .collect();
        failed.append(&mut unreadable);
        for &at in run {
            let one = room.take(0..1);
            let [slot] = *one.ids() else {
                broken(format_args!("{} slots for one block", one.len()))
            };
            let failure = failed.iter().find(|(failed, _)| *failed == slot);
            let outcome = match failure {
                Some((_, error)) => Err(NotWritten::Failed(error.clone())),
                None => {
                    self.describe(slot, tenant);
                    self.register(batch, (at, slot), one)
                }
            };
            if outcome.is_err() {
                self.erase(&[slot]);
            }
            set(&mut batch.outcomes, at, outcome);
        }
    }

    /// Registers a written block in the pool if its parent is there.
    fn register(
        &self,
        batch: &mut DiskWriteBatch<'_>,
        (at, slot): (usize, BlockId),
        room: MutableBlocks,
    ) -> DiskWriteOutcome {
        let Some(block) = batch.blocks.get(at) else {
            broken(format_args!("block {at} of {}", batch.blocks.len()))
        };
        let removals = batch.ticket.lock();
        if removals.is_removed(&block.name) {
            return Err(NotWritten::Removed);
        }
        // The write of a parent in this batch may have failed, or a sync may have lost the parent.
        if block.parent.is_some_and(|parent| !self.pool.has(&parent)) {
            return Err(NotWritten::NoParent);
        }
        let key = block.name.key;
        let failed = |error| NotWritten::Failed(TierError::Blocks(error));
        let complete = room.complete(std::slice::from_ref(&key), block.parent);
        let complete = complete.map_err(|rejected| failed(rejected.error))?;
        let registered = complete.register(&PinClaim {
            now: self.tick(),
            ..PinClaim::default()
        });
        let registered = registered.map_err(|rejected| failed(rejected.error))?;
        drop(removals);
        assert!(
            registered.duplicates.is_empty(),
            "block {key} was written while another thread wrote it"
        );
        // A sync that lost the block before its registration did not find it in the pool, so this
        // check removes it. A sync that loses it later does.
        if !self.store.holds(slot.0, &key) {
            self.remove_damaged(std::slice::from_ref(&key));
            let slot = slot.0;
            return Err(NotWritten::Failed(TierError::Slot(
                SlotError::SyncFailedMeanwhile { slot },
            )));
        }
        batch.held.push(registered.blocks);
        Ok(WriteSuccess::New)
    }
}

fn tenant_of(batch: &DiskWriteBatch<'_>, wanted: &[usize]) -> u32 {
    let first = wanted.first().and_then(|at| batch.blocks.get(*at));
    let Some(first) = first else {
        broken(format_args!(
            "no block of {} is to be written",
            batch.blocks.len()
        ))
    };
    first.tenant
}

fn set(outcomes: &mut [Option<DiskWriteOutcome>], at: usize, outcome: DiskWriteOutcome) {
    let blocks = outcomes.len();
    let Some(one) = outcomes.get_mut(at) else {
        broken(format_args!("the outcome of block {at} of {blocks}"))
    };
    *one = Some(outcome);
}
