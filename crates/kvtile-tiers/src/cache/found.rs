//! Lookups: the longest stored prefix over all tiers, pinned.

use std::{
    fmt,
    sync::{Arc, Weak},
};

use kvtile_blocks::{
    BlockKey,
    events::Tier,
    pool::{Claim, PinnedBlocks},
};

use super::{DiskWrites, Inner, LookupOptions};
use crate::metrics::{CacheMetrics, MissReason};

/// Neighbouring blocks of a match that are in one tier.
pub(super) struct Segment {
    pub(super) tier: Tier,
    pub(super) blocks: PinnedBlocks,
    metrics: Arc<CacheMetrics>,
}

impl Segment {
    fn new(inner: &Inner, tier: Tier, blocks: PinnedBlocks) -> Segment {
        inner.metrics.pinned(tier, blocks.len() as u64);
        Segment {
            tier,
            blocks,
            metrics: Arc::clone(&inner.metrics),
        }
    }

    /// Cuts off what stands behind the first `blocks` blocks.
    pub(super) fn split_off(&mut self, blocks: usize) -> Segment {
        Segment {
            tier: self.tier,
            blocks: self.blocks.split_off(blocks),
            metrics: Arc::clone(&self.metrics),
        }
    }
}

impl Drop for Segment {
    fn drop(&mut self) {
        let blocks = self.blocks.len() as u64;
        self.metrics.unpinned(self.tier, blocks);
    }
}

/// The longest stored prefix of a request, pinned: nothing of it is evicted while it lives. Load
/// it, or drop it.
///
/// A match does not keep its cache open: once the cache is closed, it has no blocks.
#[must_use = "a match pins its blocks until it is loaded or dropped"]
pub struct Match {
    cache: Weak<Inner>,
    pub(super) segments: Vec<Segment>,
    /// Where in its chain it starts.
    pub(super) first: usize,
}

impl fmt::Debug for Match {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Match")
            .field("first", &self.first)
            .field("blocks", &self.blocks())
            .finish_non_exhaustive()
    }
}

impl Match {
    /// Blocks that were found; none once the cache is closed.
    #[must_use]
    pub fn blocks(&self) -> usize {
        self.open_segments().map(|s| s.blocks.len()).sum()
    }

    /// Of these, those in `tier`.
    #[must_use]
    pub fn blocks_in(&self, tier: Tier) -> usize {
        let segments = self.open_segments().filter(|s| s.tier == tier);
        segments.map(|s| s.blocks.len()).sum()
    }

    /// The tier of each block.
    pub fn tiers(&self) -> impl Iterator<Item = Tier> + '_ {
        let segments = self.open_segments();
        segments.flat_map(|s| std::iter::repeat_n(s.tier, s.blocks.len()))
    }

    fn open_segments(&self) -> impl Iterator<Item = &Segment> {
        let is_open = self.cache.strong_count() > 0;
        self.segments.iter().filter(move |_| is_open)
    }

    /// Whether the match was found in this cache.
    pub(super) fn is_of(&self, inner: &Arc<Inner>) -> bool {
        std::ptr::eq(self.cache.as_ptr(), Arc::as_ptr(inner))
    }

    /// Leaves out the first `blocks` blocks: the engine has them itself.
    pub fn skip(mut self, blocks: usize) -> Match {
        let rest = self.split(blocks);
        self.first += self.blocks();
        self.segments = rest;
        self
    }

    /// Keeps only the first `blocks` blocks.
    pub fn truncate(mut self, blocks: usize) -> Match {
        drop(self.split(blocks));
        self
    }

    /// Cuts off what stands behind the first `blocks` blocks.
    fn split(&mut self, blocks: usize) -> Vec<Segment> {
        let mut keep = blocks;
        let mut rest = Vec::new();
        let mut kept = Vec::new();
        for mut segment in self.segments.drain(..) {
            if keep < segment.blocks.len() {
                rest.push(segment.split_off(keep));
            }
            keep -= keep.min(segment.blocks.len());
            if !segment.blocks.is_empty() {
                kept.push(segment);
            }
        }
        self.segments = kept;
        rest
    }
}

/// Finds and pins.
pub(super) fn lookup(inner: &Arc<Inner>, keys: &[BlockKey], options: &LookupOptions) -> Match {
    let now = inner.tick();
    let claim = Claim {
        owner: options.owner,
        deadline: options.hold.map(|hold| inner.tick_in(hold)),
        now,
        hints: inner.hints(options.hints, options.lifetime),
    };
    let mut segments: Vec<Segment> = Vec::new();
    let mut rest = keys;
    loop {
        let before = rest.len();
        let host = inner.host.pool.match_prefix(rest, &claim);
        rest = rest.get(host.len()..).unwrap_or_default();
        if !host.is_empty() {
            segments.push(Segment::new(inner, Tier::Host, host));
        }
        if let Some(disk) = &inner.disk
            && !rest.is_empty()
        {
            let found = disk.pool.match_prefix(rest, &claim);
            rest = rest.get(found.len()..).unwrap_or_default();
            if !found.is_empty() {
                segments.push(Segment::new(inner, Tier::Disk, found));
            }
        }
        if rest.is_empty() || rest.len() == before {
            break;
        }
    }
    let mut found = Match {
        cache: Arc::downgrade(inner),
        segments,
        first: 0,
    };
    let everywhere = found.blocks();
    leave_out_slow(inner, &mut found);
    let count = |tier| (tier, found.blocks_in(tier) as u64);
    let slower = (everywhere - found.blocks()) as u64;
    let absent = (keys.len() - everywhere) as u64;
    let misses = [
        (MissReason::Absent, absent),
        (MissReason::SlowerThanComputing, slower),
    ];
    let hits = [count(Tier::Host), count(Tier::Disk)];
    inner.metrics.looked_up(&hits, &misses);
    count_uses(inner, &found);
    found
}

/// Cuts the match before its first disk block, where reading the disk blocks takes longer than
/// computing everything from there on.
fn leave_out_slow(inner: &Inner, found: &mut Match) {
    let Some(tokens_per_second) = inner.settings.recompute_tokens_per_second else {
        return;
    };
    let rate = inner.disk.as_ref().and_then(|d| d.rate.bytes_per_second());
    let on_disk = found.blocks_in(Tier::Disk);
    let Some(bytes_per_second) = rate.filter(|_| on_disk > 0) else {
        return;
    };
    let before: usize = found.tiers().take_while(|tier| *tier != Tier::Disk).count();
    let behind = found.blocks() - before;
    let reading = (on_disk as u64 * inner.block_bytes) as f64 / bytes_per_second;
    let computing = (behind as u64 * inner.page_size) as f64 / tokens_per_second;
    if reading > computing {
        drop(found.split(before));
    }
}

/// Blocks that were used often enough go to the disk, where the settings say so.
fn count_uses(inner: &Arc<Inner>, found: &Match) {
    let Some(disk) = &inner.disk else { return };
    let Some(DiskWrites::AfterUses(uses)) = inner.settings.disk.as_ref().map(|disk| disk.writes)
    else {
        return;
    };
    let mut wanted = Vec::new();
    for segment in found.segments.iter().filter(|s| s.tier == Tier::Host) {
        let blocks = segment.blocks.ids().iter().zip(segment.blocks.keys());
        for (&block, key) in blocks {
            if inner.host.used(block) == uses && !disk.has(&key) {
                wanted.push(key);
            }
        }
    }
    inner.spill(disk, &wanted);
}
