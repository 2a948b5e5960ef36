//! Bounds that no cache can exceed.

use std::collections::BinaryHeap;

use super::{run::ReplayTotals, trace::Trace};

/// The number of a next use that does not exist.
const NEVER: u32 = u32::MAX;

/// The hits of a cache that evicts nothing.
#[must_use]
pub fn infinite(trace: &Trace) -> ReplayTotals {
    let mut stored = vec![false; trace.distinct_blocks()];
    let mut totals = ReplayTotals::default();
    for request in trace.requests() {
        let mut hits = 0;
        for (at, &block) in request.blocks.iter().enumerate() {
            if let Some(stored) = stored.get_mut(block as usize)
                && std::mem::replace(stored, true)
            {
                hits = hits.max(at + 1);
            }
        }
        totals.count(&request, hits, trace.page_size());
    }
    totals
}

/// The most hits of a cache of `capacity` blocks that knows all requests in advance (Belady): after each
/// request it evicts the blocks whose next use is furthest away.
///
/// A block is never needed later than one that follows it in its chain, so what is kept is always
/// closed under prefixes, and no block is kept in vain: the bound is exact.
#[must_use]
pub fn belady(trace: &Trace, capacity: usize) -> ReplayTotals {
    let next = next_uses(trace);
    let mut next = next.iter();
    // The request that uses each cached block next.
    let mut stored: Vec<Option<u32>> = vec![None; trace.distinct_blocks()];
    let mut kept = 0_usize;
    // Blocks by their next use, the furthest first, and of several the deepest. Entries of blocks that were
    // used or evicted since are stale.
    let mut queue: BinaryHeap<(u32, u32, u32)> = BinaryHeap::new();
    let mut totals = ReplayTotals::default();
    for request in trace.requests() {
        let is_stored = |block: &&u32| matches!(stored.get(**block as usize), Some(Some(_)));
        let hits = request.blocks.iter().take_while(is_stored).count();
        totals.count(&request, hits, trace.page_size());
        for ((depth, &block), &needed) in (0_u32..).zip(request.blocks).zip(next.by_ref()) {
            let Some(stored) = stored.get_mut(block as usize) else {
                continue;
            };
            let before = std::mem::replace(stored, (needed != NEVER).then_some(needed));
            kept = kept + usize::from(needed != NEVER) - usize::from(before.is_some());
            if needed != NEVER {
                queue.push((needed, depth, block));
            }
        }
        while kept > capacity
            && let Some((needed, _, block)) = queue.pop()
        {
            if let Some(stored) = stored.get_mut(block as usize)
                && *stored == Some(needed)
            {
                *stored = None;
                kept -= 1;
            }
        }
    }
    totals
}

/// For each reference, the request that refers to the same block next.
fn next_uses(trace: &Trace) -> Vec<u32> {
    let requests: Vec<_> = trace.requests().collect();
    let mut later = vec![NEVER; trace.distinct_blocks()];
    let mut next = Vec::with_capacity(trace.references());
    let numbers = 0..u32::try_from(requests.len()).unwrap_or(NEVER);
    for (number, request) in numbers.zip(&requests).rev() {
        for &block in request.blocks.iter().rev() {
            let later = later.get_mut(block as usize);
            let known = later.map(|later| std::mem::replace(later, number));
            next.push(known.unwrap_or(NEVER));
        }
    }
    next.reverse();
    next
}
