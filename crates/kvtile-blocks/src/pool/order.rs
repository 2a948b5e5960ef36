//! The order in which the cached blocks would be evicted, computed without evicting. A caller uses
//! it to choose what to write first when there is not enough space for all.

use super::BlockPool;
use super::restore::StoredEntry;
use crate::policy::{EvictionPolicy, EvictionRefusal};
use crate::{BlockId, BlockKey, Tick};
use std::collections::HashMap;

/// A cached block during the computation of the order.
struct OrderEntry {
    entry: StoredEntry,
    /// The index of the policy copy that has the block.
    policy: usize,
    /// Cached children that are not in the order yet.
    children: usize,
    /// Index of the parent's entry, if the parent is cached.
    parent: Option<usize>,
    is_out: bool,
}

impl BlockPool {
    /// The cached blocks, the least valuable first: in the order in which the policies would evict
    /// them, where the policies of different tenants take turns. A block never precedes its cached
    /// children. Blocks that policies do not offer, because they are in use, are last.
    ///
    /// It works on copies of the policies. Their locks are held only for the copying, and nothing
    /// changes.
    #[must_use]
    pub fn eviction_order(&self, now: Tick) -> Vec<StoredEntry> {
        let (mut policies, mut places) = self.copies();
        let ids: HashMap<BlockId, usize> = positions(&places, |entry| entry.block);
        let keys: HashMap<BlockKey, usize> = positions(&places, |entry| entry.key);
        let parents: Vec<Option<usize>> = places
            .iter()
            .map(|place| keys.get(&place.entry.parent?).copied())
            .collect();
        for (at, parent) in parents.into_iter().enumerate() {
            let parent = parent.filter(|parent| *parent != at);
            if let Some(place) = places.get_mut(at) {
                place.parent = parent;
            }
            if let Some(place) = parent.and_then(|parent| places.get_mut(parent)) {
                place.children += 1;
            }
        }
        let mut order = Vec::with_capacity(places.len());
        let mut dry = 0;
        while dry < policies.len() {
            dry = 0;
            for at in 0..policies.len() {
                match next(&mut policies, at, now, (&mut places, &ids)) {
                    Some(entry) => order.push(entry),
                    None => dry += 1,
                }
            }
        }
        rest(&mut places, &mut order);
        order
    }

    /// Copies of all policies, and their blocks.
    fn copies(&self) -> (Vec<Box<dyn EvictionPolicy>>, Vec<OrderEntry>) {
        let mut policies = Vec::with_capacity(self.shares.len());
        let mut places = Vec::new();
        for policy in 0..self.shares.len() {
            let core = self.share(policy).lock();
            places.extend(self.entries(policy, &core).map(|entry| OrderEntry {
                entry,
                policy,
                children: 0,
                parent: None,
                is_out: false,
            }));
            policies.push(core.policy.copy());
        }
        (policies, places)
    }
}

fn positions<K: std::hash::Hash + Eq>(
    places: &[OrderEntry],
    key: impl Fn(&StoredEntry) -> K,
) -> HashMap<K, usize> {
    let places = places.iter().enumerate();
    places.map(|(at, place)| (key(&place.entry), at)).collect()
}

/// The next block that the policy `at` evicts; `None` if it offers none now.
fn next(
    policies: &mut [Box<dyn EvictionPolicy>],
    at: usize,
    now: Tick,
    (places, ids): (&mut [OrderEntry], &HashMap<BlockId, usize>),
) -> Option<StoredEntry> {
    loop {
        let policy = policies.get_mut(at)?;
        let block = policy.candidate(now)?;
        let place = ids.get(&block).and_then(|place| places.get_mut(*place));
        assert!(
            place.is_some(),
            "a policy offers {block:?}, which is not cached"
        );
        let place = place?;
        if place.children > 0 {
            policy.refused(block, EvictionRefusal::Followed);
            continue;
        }
        policy.evicted(block, &place.entry.key);
        place.is_out = true;
        let (entry, parent) = (place.entry, place.parent);
        if let Some(parent) = parent.and_then(|parent| places.get_mut(parent)) {
            parent.children -= 1;
            if parent.children == 0
                && !parent.is_out
                && let Some(policy) = policies.get_mut(parent.policy)
            {
                policy.became_leaf(parent.entry.block);
            }
        }
        return Some(entry);
    }
}

/// Appends the blocks that no policy offers, children before parents.
fn rest(places: &mut [OrderEntry], order: &mut Vec<StoredEntry>) {
    let leaves = places.iter().enumerate();
    let leaves = leaves.filter(|(_, place)| !place.is_out && place.children == 0);
    let mut stack: Vec<usize> = leaves.map(|(at, _)| at).collect();
    while let Some(place) = stack.pop().and_then(|at| places.get_mut(at)) {
        place.is_out = true;
        order.push(place.entry);
        let parent = place.parent;
        if let Some((at, parent)) = parent.and_then(|at| Some((at, places.get_mut(at)?))) {
            parent.children -= 1;
            if parent.children == 0 && !parent.is_out {
                stack.push(at);
            }
        }
    }
    // A hostile caller's keys can form a cycle of parents, in which no block is a leaf.
    order.extend(
        places
            .iter()
            .filter(|place| !place.is_out)
            .map(|place| place.entry),
    );
}
