//! Lookups: the longest stored prefix over all tiers, pinned.

use std::{
    fmt,
    sync::{Arc, Weak},
    time::Duration,
};

use kvtile_blocks::{
    BlockKey,
    events::TierId,
    pool::{Claim, PinnedBlocks},
};
use kvtile_layout::broken;

use super::{LookupOptions, Parts, below::Below, departures::Departure, tend};
use crate::{
    metrics::{CacheMetrics, MissReason},
    tier::{Hold, TierWrites},
};

/// Where the blocks of a segment are, held there.
pub(super) enum Place {
    /// In host memory.
    Host(PinnedBlocks),
    /// In a tier below, at this position in the list of tiers, by their keys.
    Below(usize, Vec<BlockKey>, Box<dyn Hold>),
    /// On their way from host memory to a tier below.
    Leaving(usize, Vec<(BlockKey, Departure)>),
}

/// Neighbouring blocks of a match that are in one tier.
pub(super) struct Segment {
    pub(super) tier: TierId,
    pub(super) place: Place,
    metrics: Arc<CacheMetrics>,
}

impl Segment {
    fn new(inner: &Parts, place: Place) -> Segment {
        let tier = match &place {
            Place::Host(_) => TierId::HOST,
            Place::Below(at, ..) | Place::Leaving(at, _) => inner.tier(*at).id,
        };
        let segment = Segment {
            tier,
            place,
            metrics: Arc::clone(&inner.metrics),
        };
        segment.metrics.pinned(tier, segment.blocks() as u64);
        segment
    }

    /// How many blocks it has.
    pub(super) fn blocks(&self) -> usize {
        match &self.place {
            Place::Host(pinned) => pinned.len(),
            Place::Below(_, keys, _) => keys.len(),
            Place::Leaving(_, leaving) => leaving.len(),
        }
    }

    /// The key of the block at `index`, where it is not in host memory.
    pub(super) fn key(&self, index: usize) -> BlockKey {
        let key = match &self.place {
            Place::Host(_) => None,
            Place::Below(_, keys, _) => keys.get(index).copied(),
            Place::Leaving(_, leaving) => leaving.get(index).map(|(key, _)| *key),
        };
        match key {
            Some(key) => key,
            None => broken(format_args!(
                "block {index} of {} in the {} tier has no key here",
                self.blocks(),
                self.tier
            )),
        }
    }

    /// The key of the block before the one at `index`, and the tenant of that one.
    pub(super) fn facts(&self, index: usize) -> (Option<BlockKey>, u32) {
        match &self.place {
            Place::Host(_) => broken(format_args!("the facts of a host block are in host memory")),
            Place::Below(_, _, hold) => (hold.parent(index), hold.tenant(index)),
            Place::Leaving(_, blocks) => match blocks.get(index) {
                Some((_, block)) => (block.parent, block.tenant),
                None => broken(format_args!("block {index} of {}", blocks.len())),
            },
        }
    }

    /// Cuts off what stands behind the first `blocks` blocks.
    pub(super) fn split_off(&mut self, blocks: usize) -> Segment {
        Segment {
            tier: self.tier,
            place: match &mut self.place {
                Place::Host(pinned) => Place::Host(pinned.split_off(blocks)),
                Place::Below(at, keys, hold) => {
                    Place::Below(*at, keys.split_off(blocks), hold.split_off(blocks))
                }
                Place::Leaving(at, leaving) => Place::Leaving(*at, leaving.split_off(blocks)),
            },
            metrics: Arc::clone(&self.metrics),
        }
    }
}

impl Drop for Segment {
    fn drop(&mut self) {
        let blocks = self.blocks() as u64;
        self.metrics.unpinned(self.tier, blocks);
    }
}

/// The longest stored prefix of a request, pinned: nothing of it is evicted while it lives. Load
/// it, or drop it.
///
/// A match does not keep its cache open: once the cache is closed, it has no blocks.
#[must_use = "a match pins its blocks until it is loaded or dropped"]
pub struct Match {
    cache: Weak<Parts>,
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
        self.open_segments().map(|s| s.blocks()).sum()
    }

    /// Of these, those in `tier`.
    #[must_use]
    pub fn blocks_in(&self, tier: TierId) -> usize {
        let segments = self.open_segments().filter(|s| s.tier == tier);
        segments.map(|s| s.blocks()).sum()
    }

    /// The tier of each block.
    pub fn tiers(&self) -> impl Iterator<Item = TierId> + '_ {
        let segments = self.open_segments();
        segments.flat_map(|s| std::iter::repeat_n(s.tier, s.blocks()))
    }

    fn open_segments(&self) -> impl Iterator<Item = &Segment> {
        let is_open = self.cache.strong_count() > 0;
        self.segments.iter().filter(move |_| is_open)
    }

    /// Whether the match was found in this cache.
    pub(super) fn is_of(&self, inner: &Arc<Parts>) -> bool {
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
            if keep < segment.blocks() {
                rest.push(segment.split_off(keep));
            }
            keep -= keep.min(segment.blocks());
            if segment.blocks() > 0 {
                kept.push(segment);
            }
        }
        self.segments = kept;
        rest
    }
}

/// Finds and pins.
pub(super) fn lookup(inner: &Arc<Parts>, keys: &[BlockKey], options: &LookupOptions) -> Match {
    let now = inner.tick();
    let claim = Claim {
        owner: options.owner,
        deadline: options.hold.map(|hold| inner.tick_in(hold)),
        now,
        hints: inner.hints(options.hints, options.lifetime),
    };
    let mut found = Match {
        cache: Arc::downgrade(inner),
        segments: segments(inner, keys, &claim),
        first: 0,
    };
    let everywhere = found.blocks();
    leave_out_slow(inner, &mut found);
    let slower = (everywhere - found.blocks()) as u64;
    let absent = (keys.len() - everywhere) as u64;
    let misses = [
        (MissReason::Absent, absent),
        (MissReason::SlowerThanComputing, slower),
    ];
    let mut hits: Vec<(TierId, u64)> = Vec::with_capacity(1 + inner.below.len());
    hits.push((TierId::HOST, 0));
    hits.extend(inner.below.iter().map(|below| (below.id, 0)));
    for segment in &found.segments {
        if let Some((_, count)) = hits.iter_mut().find(|(tier, _)| *tier == segment.tier) {
            *count += segment.blocks() as u64;
        }
    }
    inner.metrics.looked_up(&hits, &misses);
    count_uses(inner, &found);
    found
}

/// The leading blocks, wherever they are. A block that moves between host memory and a tier meanwhile is not
/// missed: where something moved, what is missing is looked up once more while nothing can move.
fn segments(inner: &Parts, keys: &[BlockKey], claim: &Claim) -> Vec<Segment> {
    let mark = inner.departures.mark();
    let mut segments = Vec::new();
    let mut at = advance(inner, keys, claim, &mut segments);
    let is_still = |mark: u64| mark.is_multiple_of(2) && inner.departures.mark() == mark;
    if at == keys.len() || inner.below.is_empty() || is_still(mark) {
        return segments;
    }
    let locked = inner.departures.lock();
    loop {
        let (_, rest) = keys.split_at(at);
        at += advance(inner, rest, claim, &mut segments);
        let (_, rest) = keys.split_at(at);
        let on_their_way = |key: &BlockKey| Some((*key, locked.get(key)?));
        let mut leaving: Vec<(BlockKey, Departure)> = rest.iter().map_while(on_their_way).collect();
        let Some((_, first)) = leaving.first() else {
            return segments;
        };
        let tier = first.tier;
        let same = leaving.iter().take_while(|(_, block)| block.tier == tier);
        leaving.truncate(same.count());
        at += leaving.len();
        segments.push(Segment::new(inner, Place::Leaving(tier, leaving)));
    }
}

/// Adds the leading blocks of `keys` that host memory and the tiers have, and returns how many.
fn advance(inner: &Parts, keys: &[BlockKey], claim: &Claim, segments: &mut Vec<Segment>) -> usize {
    let now = inner.clock.now();
    let mut at = 0;
    loop {
        let before = at;
        let (_, rest) = keys.split_at(at);
        let host = inner.host.pool.match_prefix(rest, claim);
        if !host.is_empty() {
            at += host.len();
            segments.push(Segment::new(inner, Place::Host(host)));
        }
        for (tier, below) in inner.below.iter().enumerate() {
            let (_, rest) = keys.split_at(at);
            if rest.is_empty() {
                return at;
            }
            if let Some(hold) = below.find(rest, claim, now) {
                let (mine, _) = rest.split_at(hold.blocks().min(rest.len()));
                at += mine.len();
                let place = Place::Below(tier, mine.to_vec(), hold);
                segments.push(Segment::new(inner, place));
            }
        }
        let Some(next) = keys.get(at) else {
            return at;
        };
        // A load may have brought the block to host memory behind the look there, and the tier given it up
        // before the look there.
        if at == before && !inner.host.pool.has(next) {
            return at;
        }
    }
}

/// Cuts the match before its first block that is not in host memory, where reading those blocks takes longer
/// than computing everything from there on.
fn leave_out_slow(inner: &Parts, found: &mut Match) {
    let Some(tokens_per_second) = inner.settings.recompute_tokens_per_second else {
        return;
    };
    let is_below = |tier: &TierId| *tier != TierId::HOST;
    let mut reading = Duration::ZERO;
    for below in &inner.below {
        let blocks = found.blocks_in(below.id);
        if blocks > 0
            && let Some(time) = below.tier.estimate(blocks)
        {
            reading += time;
        }
    }
    let before = found.tiers().take_while(|tier| !is_below(tier)).count();
    let behind = found.blocks() - before;
    let computing = (behind as u64 * inner.page_size) as f64 / tokens_per_second;
    if reading.as_secs_f64() > computing {
        drop(found.split(before));
    }
}

/// Blocks that were used often enough go to the tiers whose settings say so.
fn count_uses(inner: &Arc<Parts>, found: &Match) {
    let after = |below: &Below| match below.settings.writes {
        TierWrites::AfterUses(uses) => Some(uses),
        _ => None,
    };
    if !inner.below.iter().any(|below| after(below).is_some()) {
        return;
    }
    let mut used = Vec::new();
    for segment in &found.segments {
        if let Place::Host(pinned) = &segment.place {
            for (&block, key) in pinned.ids().iter().zip(pinned.keys()) {
                used.push((key, inner.host.used(block)));
            }
        }
    }
    for below in &inner.below {
        if let Some(uses) = after(below) {
            let often = used.iter().filter(|(_, count)| *count == uses);
            let wanted: Vec<BlockKey> = often.map(|(key, _)| *key).collect();
            let wanted: Vec<BlockKey> = wanted.into_iter().filter(|key| !below.has(key)).collect();
            tend::spill(inner, below, &wanted);
        }
    }
}
