//! The invariants of a pool at rest.

use super::BlockPool;
use super::slot::BlockPhase;
use crate::BlockId;

impl BlockPool {
    /// Asserts the pool's invariants, while no other thread uses it; for tests.
    ///
    /// # Panics
    /// If an invariant is violated.
    pub fn check_integrity(&self) {
        self.check_free();
        self.check_index();
        self.check_shares();
        let children = self.children.lock();
        assert_eq!(
            children.len(),
            self.cached(),
            "every cached block is listed"
        );
        children.check(self.of_keys());
    }

    fn check_free(&self) {
        let mut free: Vec<BlockId> = self.free.lock().iter().collect();
        let count = free.len();
        free.sort_unstable();
        free.dedup();
        assert_eq!(free.len(), count, "no block is free twice");
        for &id in &free {
            let phase = self.slots.of(id).state().phase();
            assert_eq!(
                phase,
                BlockPhase::Free,
                "{id:?} is in the list of free blocks"
            );
        }
        assert_eq!(self.census().free, count, "every free block is in the list");
    }

    fn check_index(&self) {
        assert!(self.index.is_idle(), "no writer is in the index");
        let mut found = vec![false; self.blocks()];
        for list in self.index.lists(&self.slots) {
            for id in list {
                let slot = self.slots.get(id);
                assert!(slot.state().is_registered(), "{id} is in the index");
                let place = found.get_mut(id as usize);
                assert!(
                    place.is_some_and(|place| !std::mem::replace(place, true)),
                    "{id} is in the index once"
                );
                let glance = self.index.glance(&self.slots, slot.key());
                assert_eq!(glance, Some(id), "{id} is found by its key");
            }
        }
        for (id, found) in (0_u32..).zip(found) {
            let registered = self.slots.get(id).state().is_registered();
            assert_eq!(registered, found, "{id} is in the index when registered");
        }
    }

    fn check_shares(&self) {
        let mut used = vec![0_usize; self.shares.len()];
        let mut registered = vec![0_usize; self.shares.len()];
        for id in (0_u32..).take(self.blocks()) {
            let slot = self.slots.get(id);
            let state = slot.state();
            let count = |counts: &mut Vec<usize>, by: bool| {
                if let Some(count) = counts.get_mut(slot.share()) {
                    *count += usize::from(by);
                }
            };
            count(&mut used, state.phase() != BlockPhase::Free);
            count(&mut registered, state.is_registered());
            let quiet = state.references() > 0 || !state.is_parked();
            assert!(quiet, "{id} is parked only while it is pinned");
            let pins = state.references() == 0
                || matches!(
                    state.phase(),
                    BlockPhase::Registered | BlockPhase::Withdrawn
                );
            assert!(pins, "{id} is pinned only while registered or withdrawn");
        }
        for ((share, used), registered) in self.shares.iter().zip(used).zip(registered) {
            assert_eq!(share.used(), used, "every block in use is charged");
            assert!(used <= share.limit, "no tenant is over its quota");
            let core = share.lock();
            core.policy.check_integrity();
            assert_eq!(
                core.listed.len(),
                registered,
                "registered blocks are listed"
            );
            assert_eq!(core.policy.len(), registered, "the policy knows them");
            for id in core.listed.iter() {
                let slot = self.slots.of(id);
                assert!(slot.state().is_registered(), "{id:?} is listed");
            }
        }
    }
}
