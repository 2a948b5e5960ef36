//! Lookups: the longest stored prefix over all tiers, pinned.

use std::{
    fmt,
    sync::{Arc, Weak},
    time::Duration,
};

use kvtile_blocks::{
    BlockKey,
    events::TierId,
    pool::{PinClaim, PinnedBlocks},
};
use kvtile_layout::broken;

use super::{
    CacheParts, LookupOptions,
    below::{CacheTier, GROUP},
    connect::ConnectedMatch,
    departures::Departure,
    tend,
};
use crate::{
    error::{RequestError, TierError},
    metrics::{CacheMetrics, MissReason},
    rate::reading_pays,
    tier::{TierHold, TierWrites},
};

/// The place of a segment's blocks, with their pins.
pub(super) enum SegmentPlace {
    /// In host memory.
    Host(PinnedBlocks),
    /// In a tier below, given by its index in the list of tiers, with the keys of the blocks.
    Below(usize, Vec<BlockKey>, Box<dyn TierHold>),
    /// In flight from host memory to a tier below.
    Leaving(usize, Vec<(BlockKey, Departure)>),
}

/// Consecutive blocks of a match in one tier.
pub(super) struct MatchSegment {
    pub(super) tier: TierId,
    pub(super) place: SegmentPlace,
    metrics: Arc<CacheMetrics>,
}

impl MatchSegment {
    pub(super) fn new(inner: &CacheParts, place: SegmentPlace) -> MatchSegment {
        let tier = match &place {
            SegmentPlace::Host(_) => TierId::HOST,
            SegmentPlace::Below(at, ..) | SegmentPlace::Leaving(at, _) => inner.tier(*at).id,
        };
        let segment = MatchSegment {
            tier,
            place,
            metrics: Arc::clone(&inner.metrics),
        };
        segment.metrics.pinned(tier, segment.blocks() as u64);
        segment
    }

    /// Number of blocks.
    pub(super) fn blocks(&self) -> usize {
        match &self.place {
            SegmentPlace::Host(pinned) => pinned.len(),
            SegmentPlace::Below(_, keys, _) => keys.len(),
            SegmentPlace::Leaving(_, leaving) => leaving.len(),
        }
    }

    /// The key of the block at `index`, which must not be in host memory.
    pub(super) fn key(&self, index: usize) -> BlockKey {
        let key = match &self.place {
            SegmentPlace::Host(_) => None,
            SegmentPlace::Below(_, keys, _) => keys.get(index).copied(),
            SegmentPlace::Leaving(_, leaving) => leaving.get(index).map(|(key, _)| *key),
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

    /// The parent and the tenant of the block at `index`.
    pub(super) fn facts(&self, index: usize) -> (Option<BlockKey>, u32) {
        match &self.place {
            SegmentPlace::Host(_) => {
                broken(format_args!("the facts of a host block are in host memory"))
            }
            SegmentPlace::Below(_, _, hold) => (hold.parent(index), hold.tenant(index)),
            SegmentPlace::Leaving(_, blocks) => match blocks.get(index) {
                Some((_, block)) => (block.parent, block.tenant),
                None => broken(format_args!("block {index} of {}", blocks.len())),
            },
        }
    }

    /// Splits off the blocks after the first `blocks`.
    pub(super) fn split_off(&mut self, blocks: usize) -> MatchSegment {
        MatchSegment {
            tier: self.tier,
            place: match &mut self.place {
                SegmentPlace::Host(pinned) => SegmentPlace::Host(pinned.split_off(blocks)),
                SegmentPlace::Below(at, keys, hold) => {
                    SegmentPlace::Below(*at, keys.split_off(blocks), hold.split_off(blocks))
                }
                SegmentPlace::Leaving(at, leaving) => {
                    SegmentPlace::Leaving(*at, leaving.split_off(blocks))
                }
            },
            metrics: Arc::clone(&self.metrics),
        }
    }
}

impl Drop for MatchSegment {
    fn drop(&mut self) {
        let blocks = self.blocks() as u64;
        self.metrics.unpinned(self.tier, blocks);
    }
}

/// The longest stored prefix of a request, pinned: no tier evicts its blocks while it lives. Load
/// it, or drop it.
///
/// A match does not keep its cache open. Once the cache is closed, the match has no blocks.
#[must_use = "a match pins its blocks until it is loaded or dropped"]
pub struct Match {
    cache: Weak<CacheParts>,
    pub(super) segments: Vec<MatchSegment>,
    /// Index of its first block in the chain.
    pub(super) first: usize,
    /// The match of a connected cache, which has no segments here.
    there: Option<ConnectedMatch>,
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
    /// The match of a cache that was closed.
    pub(super) fn of_closed() -> Match {
        Match {
            cache: Weak::new(),
            segments: Vec::new(),
            first: 0,
            there: None,
        }
    }

    /// The match of a connected cache.
    pub(super) fn of_connected(there: ConnectedMatch) -> Match {
        Match {
            there: Some(there),
            ..Match::of_closed()
        }
    }

    /// Blocks of a match that a hold gives back, of which the first has the index `first` in its chain.
    pub(super) fn of_rest(
        cache: &Weak<CacheParts>,
        segments: Vec<MatchSegment>,
        first: usize,
    ) -> Match {
        Match {
            cache: Weak::clone(cache),
            segments,
            first,
            there: None,
        }
    }

    /// The match of a connected cache, or this match if it is of another one.
    pub(super) fn into_connected(mut self) -> Result<ConnectedMatch, Match> {
        self.there.take().ok_or(self)
    }

    /// Checks the load of a match of another cache, or of a lookup that found no daemon.
    pub(super) fn check_nothing(self, destinations: &[usize]) -> Result<(), TierError> {
        let request = match (self.segments.is_empty(), destinations.len()) {
            (false, _) => RequestError::OtherCache,
            (true, 0) => return Ok(()),
            (true, destinations) => RequestError::TooManyDestinations {
                destinations,
                blocks: 0,
            },
        };
        Err(TierError::Request(request))
    }

    /// Number of blocks found; 0 once the cache is closed.
    #[must_use]
    pub fn blocks(&self) -> usize {
        match &self.there {
            Some(there) => there.blocks(),
            None => self.open_segments().map(|s| s.blocks()).sum(),
        }
    }

    /// Number of these blocks in `tier`.
    #[must_use]
    pub fn blocks_in(&self, tier: TierId) -> usize {
        let runs = self.runs().filter(|(one, _)| *one == tier);
        runs.map(|(_, blocks)| blocks).sum()
    }

    /// The tier of each block.
    pub fn tiers(&self) -> impl Iterator<Item = TierId> + '_ {
        self.runs()
            .flat_map(|(tier, blocks)| std::iter::repeat_n(tier, blocks))
    }

    /// Consecutive blocks of one tier each.
    fn runs(&self) -> impl Iterator<Item = (TierId, usize)> + '_ {
        let there = self.there.iter().flat_map(|there| there.runs()).copied();
        let here = self.open_segments().map(|s| (s.tier, s.blocks()));
        there.chain(here)
    }

    fn open_segments(&self) -> impl Iterator<Item = &MatchSegment> {
        let is_open = self.cache.strong_count() > 0;
        self.segments.iter().filter(move |_| is_open)
    }

    /// Whether the match was found in this cache.
    pub(super) fn is_of(&self, inner: &Arc<CacheParts>) -> bool {
        std::ptr::eq(self.cache.as_ptr(), Arc::as_ptr(inner))
    }

    /// Drops the first `blocks` blocks, which the engine already has.
    pub fn skip(mut self, blocks: usize) -> Match {
        if let Some(there) = &mut self.there {
            there.narrow(blocks, usize::MAX);
            return self;
        }
        let rest = self.split(blocks);
        self.first += self.blocks();
        self.segments = rest;
        self
    }

    /// Keeps only the first `blocks` blocks.
    pub fn truncate(mut self, blocks: usize) -> Match {
        if let Some(there) = &mut self.there {
            there.narrow(0, blocks);
            return self;
        }
        drop(self.split(blocks));
        self
    }

    /// Splits off the blocks after the first `blocks`.
    pub fn split_off(&mut self, blocks: usize) -> Match {
        if let Some(there) = &mut self.there {
            return Match::of_connected(there.split_off(blocks));
        }
        let segments = self.split(blocks);
        Match {
            cache: Weak::clone(&self.cache),
            segments,
            first: self.first + self.blocks(),
            there: None,
        }
    }

    /// Splits off the blocks after the first `blocks`.
    fn split(&mut self, blocks: usize) -> Vec<MatchSegment> {
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

/// Looks up keys and pins the blocks found. Blocks that are in no tier are misses for the reason
/// `absent`.
pub(super) fn lookup(
    inner: &Arc<CacheParts>,
    keys: &[BlockKey],
    (options, absent): (&LookupOptions, MissReason),
) -> Match {
    let now = inner.tick();
    let claim = PinClaim {
        owner: options.owner,
        deadline: options.hold.map(|hold| inner.tick_in(hold)),
        now,
        hints: inner.hints(options.hints, options.lifetime),
    };
    let mut found = Match {
        cache: Arc::downgrade(inner),
        segments: segments(inner, keys, &claim),
        first: 0,
        there: None,
    };
    let everywhere = found.blocks();
    leave_out_slow(inner, &mut found, options);
    let slower = (everywhere - found.blocks()) as u64;
    let missing = (keys.len() - everywhere) as u64;
    let misses = [(absent, missing), (MissReason::SlowerThanComputing, slower)];
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

/// The leading blocks of `keys` in all tiers. If blocks moved during the search, it continues under
/// the lock of the departures, so that a moving block is not a miss.
fn segments(inner: &CacheParts, keys: &[BlockKey], claim: &PinClaim) -> Vec<MatchSegment> {
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
        segments.push(MatchSegment::new(
            inner,
            SegmentPlace::Leaving(tier, leaving),
        ));
    }
}

/// Adds the leading blocks of `keys` that host memory and the tiers have, and returns their number.
fn advance(
    inner: &CacheParts,
    keys: &[BlockKey],
    claim: &PinClaim,
    segments: &mut Vec<MatchSegment>,
) -> usize {
    let now = inner.clock.now();
    let mut at = 0;
    loop {
        let before = at;
        let (_, rest) = keys.split_at(at);
        let host = inner.host.pool.match_prefix(rest, claim);
        if !host.is_empty() {
            at += host.len();
            segments.push(MatchSegment::new(inner, SegmentPlace::Host(host)));
        }
        for (tier, below) in inner.below.iter().enumerate() {
            let (_, rest) = keys.split_at(at);
            if rest.is_empty() {
                return at;
            }
            if let Some(hold) = below.find(GROUP, rest, claim, now) {
                let (mine, _) = rest.split_at(hold.blocks().min(rest.len()));
                at += mine.len();
                let place = SegmentPlace::Below(tier, mine.to_vec(), hold);
                segments.push(MatchSegment::new(inner, place));
            }
        }
        let Some(next) = keys.get(at) else {
            return at;
        };
        // A load may have copied the block to host memory after the search there, and the tier may
        // have evicted it before the search there.
        if at == before && !inner.host.pool.has(next) {
            return at;
        }
    }
}

/// Truncates the match to its leading host blocks if reading the other tiers takes longer than
/// computing all blocks from there on.
fn leave_out_slow(inner: &CacheParts, found: &mut Match, options: &LookupOptions) {
    let rate = options.rate();
    let Some(tokens_per_second) = rate.or(inner.settings.recompute_tokens_per_second) else {
        return;
    };
    let is_below = |tier: &TierId| *tier != TierId::HOST;
    let mut reading = Duration::ZERO;
    for below in &inner.below {
        let blocks = found.blocks_in(below.id);
        if blocks > 0
            && let Some(time) = below.tier.estimate(GROUP, blocks)
        {
            reading += time;
        }
    }
    let before = found.tiers().take_while(|tier| !is_below(tier)).count();
    let behind = found.blocks() - before;
    if !reading_pays(reading, behind as u64 * inner.page_size, tokens_per_second) {
        drop(found.split(before));
    }
}

/// Counts uses, and queues writes of the blocks that reached [`TierWrites::AfterUses`].
fn count_uses(inner: &Arc<CacheParts>, found: &Match) {
    let after = |below: &CacheTier| match below.settings.writes {
        TierWrites::AfterUses(uses) => Some(uses),
        _ => None,
    };
    if !inner.below.iter().any(|below| after(below).is_some()) {
        return;
    }
    let mut used = Vec::new();
    for segment in &found.segments {
        if let SegmentPlace::Host(pinned) = &segment.place {
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
