//! Staging memory: stored blocks between the copy from the caller's row and their writes to the
//! tiers, and bounce buffers of loads that permute.
//!
//! A staged block is findable until all tiers have handled it, so no load misses it in between.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use kvtile_blocks::{BlockKey, GroupId};
use kvtile_transfer::LayoutHandle;
use parking_lot::{Condvar, Mutex};

use super::count::CountedJob;

/// Free blocks that stores leave for loads.
const LEFT_FOR_LOADS: usize = 1;

/// The staging memory of one group.
#[derive(Debug)]
pub(super) struct GroupStaging {
    pub(super) handle: LayoutHandle,
    state: Mutex<StagingState>,
    changed: Condvar,
}

#[derive(Debug)]
struct StagingState {
    free: Vec<usize>,
    staged: HashMap<BlockKey, Arc<StagedBlock>>,
}

/// One block of staging memory, until it is dropped.
#[derive(Debug)]
pub(super) struct StagingBlock {
    staging: Arc<GroupStaging>,
    pub(super) block: usize,
}

impl Drop for StagingBlock {
    fn drop(&mut self) {
        self.staging.state.lock().free.push(self.block);
        self.staging.changed.notify_all();
    }
}

/// A stored block that is not on all tiers yet.
#[derive(Debug)]
pub(super) struct StagedBlock {
    pub(super) place: StagingBlock,
    pub(super) group: GroupId,
    pub(super) key: BlockKey,
    pub(super) parent: Option<BlockKey>,
    pub(super) position: u32,
    pub(super) tenant: u32,
    /// Number of tiers that have not handled it.
    left: AtomicUsize,
    /// Whether the caller removed it. The tiers do not get it then.
    is_forgotten: AtomicBool,
    /// Counts it as unwritten.
    _unwritten: CountedJob,
}

/// A block to stage, with its names.
#[derive(Clone, Copy, Debug)]
pub(super) struct StagedName {
    pub(super) group: GroupId,
    pub(super) key: BlockKey,
    pub(super) parent: Option<BlockKey>,
    pub(super) position: u32,
    pub(super) tenant: u32,
}

impl StagedBlock {
    /// A block for `tiers` tiers.
    pub(super) fn new(
        place: StagingBlock,
        name: StagedName,
        (tiers, unwritten): (usize, CountedJob),
    ) -> StagedBlock {
        StagedBlock {
            place,
            group: name.group,
            key: name.key,
            parent: name.parent,
            position: name.position,
            tenant: name.tenant,
            left: AtomicUsize::new(tiers),
            is_forgotten: AtomicBool::new(false),
            _unwritten: unwritten,
        }
    }

    pub(super) fn is_forgotten(&self) -> bool {
        self.is_forgotten.load(Ordering::SeqCst)
    }
}

impl GroupStaging {
    pub(super) fn new(handle: LayoutHandle, blocks: usize) -> GroupStaging {
        GroupStaging {
            handle,
            state: Mutex::new(StagingState {
                free: (0..blocks).rev().collect(),
                staged: HashMap::new(),
            }),
            changed: Condvar::new(),
        }
    }

    /// Takes up to `most` free blocks for a store; waits for the first one at most `within`. It leaves
    /// one block for loads, so that these go on while the tiers take no writes.
    pub(super) fn take_to_store(
        self: &Arc<Self>,
        most: usize,
        within: Duration,
    ) -> Vec<StagingBlock> {
        self.take(most, LEFT_FOR_LOADS, within)
    }

    /// Takes up to `most` free blocks for a load; waits for the first one at most `within`.
    pub(super) fn take_to_load(
        self: &Arc<Self>,
        most: usize,
        within: Duration,
    ) -> Vec<StagingBlock> {
        self.take(most, 0, within)
    }

    /// Takes up to `most` of the free blocks apart from `left` of them.
    fn take(self: &Arc<Self>, most: usize, left: usize, within: Duration) -> Vec<StagingBlock> {
        let deadline = Instant::now().checked_add(within);
        let mut state = self.state.lock();
        while state.free.len() <= left {
            let timed_out = match deadline {
                Some(deadline) => self.changed.wait_until(&mut state, deadline).timed_out(),
                None => self
                    .changed
                    .wait_for(&mut state, Duration::from_secs(3600))
                    .timed_out(),
            };
            if timed_out && state.free.len() <= left {
                return Vec::new();
            }
        }
        let kept = state.free.len().saturating_sub(most).max(left);
        let taken = state.free.split_off(kept);
        drop(state);
        let block = |block| StagingBlock {
            staging: Arc::clone(self),
            block,
        };
        taken.into_iter().map(block).collect()
    }

    /// Whether a block with this key is staged.
    pub(super) fn has(&self, key: &BlockKey) -> bool {
        self.state.lock().staged.contains_key(key)
    }

    /// The staged blocks of `keys`.
    pub(super) fn find(&self, keys: &[BlockKey]) -> Vec<Option<Arc<StagedBlock>>> {
        let state = self.state.lock();
        let find = |key| state.staged.get(key).cloned();
        keys.iter().map(find).collect()
    }

    /// Makes blocks findable. A block whose key is staged already is dropped; returns the others.
    pub(super) fn stage(&self, blocks: Vec<StagedBlock>) -> Vec<Arc<StagedBlock>> {
        let mut twice = Vec::new();
        let mut staged = Vec::with_capacity(blocks.len());
        let mut state = self.state.lock();
        for block in blocks {
            if state.staged.contains_key(&block.key) {
                twice.push(block);
                continue;
            }
            let block = Arc::new(block);
            state.staged.insert(block.key, Arc::clone(&block));
            staged.push(block);
        }
        drop(state);
        // After the lock: a dropped block takes it.
        drop(twice);
        staged
    }

    /// Records that one more tier has handled the block. After the last one it is not findable here.
    pub(super) fn handled(&self, block: &Arc<StagedBlock>) {
        if block.left.fetch_sub(1, Ordering::SeqCst) > 1 {
            return;
        }
        let mut state = self.state.lock();
        let same = state.staged.get(&block.key);
        let removed = match same.is_some_and(|staged| Arc::ptr_eq(staged, block)) {
            true => state.staged.remove(&block.key),
            false => None,
        };
        drop(state);
        drop(removed);
    }

    /// Removes blocks; returns how many were staged.
    pub(super) fn forget(&self, keys: &[BlockKey]) -> usize {
        let mut state = self.state.lock();
        let removed: Vec<Arc<StagedBlock>> = keys
            .iter()
            .filter_map(|key| state.staged.remove(key))
            .collect();
        for block in &removed {
            block.is_forgotten.store(true, Ordering::SeqCst);
        }
        drop(state);
        removed.len()
    }

    /// Removes all blocks; returns how many were staged.
    pub(super) fn forget_all(&self) -> usize {
        let keys: Vec<BlockKey> = self.state.lock().staged.keys().copied().collect();
        self.forget(&keys)
    }
}
