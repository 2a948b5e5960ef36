//! Replays on the cache over groups: the stops that requests find, and the pages that move, by group.
//!
//! The cache is the real one ([`GroupCache`]), with pages of a few bytes in place of the model's. Each group has as
//! many pages of host memory as the model's pages would have in the given bytes.
//!
//! A trace names blocks of many tokens; the cache has a key for each unit of the model's pages. A block of the trace
//! stands for all units in it. A prompt that ends within a block has the units that it fills.

use std::{
    num::NonZeroU64,
    ops::Range,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use kvtile_blocks::{
    BlockKey,
    policy::{EvictionHints, PolicyKind},
};
use kvtile_layout::{
    Axis, GroupRule, LayoutError, Plane, Shape, Unit, Word,
    identity::{Identity, ModelGroup, ModelIdentity},
};
use kvtile_transfer::{LayoutHandle, PhysicalLayout, TransferManager};

use super::trace::{Trace, TraceRequest};
use crate::{
    cache::Clock,
    error::TierError,
    groups::{
        CacheGroup, GroupCache, GroupCacheSettings, GroupFacts, GroupOperation, GroupPart,
        GroupStoreOptions, LoadBlocks, StopOptions, StoreBlocks, divide_host, divisor, facts_of,
        fill_shares, memory_bytes, pages_of_a_stop,
    },
    opening,
};

/// The most pages of host memory of a replay, over all groups. Each takes 4 KiB.
pub const GROUPED_PAGES_MAX: u64 = 1_000_000;

/// Bytes of a page that stands for one of the model.
const PAGE_BYTES: u64 = 8;

/// Which stops of a prompt an engine stores.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReplayStops {
    /// The last one before the last token of the prompt that ends a block of the trace, and the end of the prompt where it
    /// is one. Within a block a trace does not say where two prompts part.
    pub prompt: bool,
    /// Where an earlier request branched off, as a lookup reports it.
    pub branch: bool,
    /// The first ones at or after each multiple of so many tokens.
    pub every: Option<NonZeroU64>,
}

impl Default for ReplayStops {
    fn default() -> ReplayStops {
        ReplayStops {
            prompt: true,
            branch: true,
            every: None,
        }
    }
}

/// Settings of a replay over groups.
#[derive(Clone, Copy, Debug)]
pub struct GroupedSettings<'a> {
    /// The model. Draft groups are left out: they decide no hit.
    pub model: &'a ModelIdentity,
    /// Bytes of host memory, which the groups divide as in the cache; `None` for room for all pages of the trace.
    pub host_bytes: Option<u64>,
    /// The eviction policy.
    pub policy: PolicyKind,
    /// The stops that are stored.
    pub stops: ReplayStops,
}

/// Why a replay over groups is refused.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GroupedError {
    /// Blocks of the trace that the units of the model do not divide.
    #[error(
        "blocks of the trace have {block} tokens, which is no multiple of {unit}, the greatest common divisor of the \
         model's page sizes; give a model with page sizes that divide {block}"
    )]
    Unit {
        /// Tokens of a block of the trace.
        block: u32,
        /// Tokens of a unit of the model.
        unit: u64,
    },
    /// More pages than a replay keeps.
    #[error(
        "host memory has {pages} pages and a replay keeps at most {max}; give fewer bytes, or a model with larger pages"
    )]
    Pages {
        /// Pages of all groups.
        pages: u64,
        /// The limit.
        max: u64,
    },
    /// The cache failed.
    #[error(transparent)]
    Tier(#[from] TierError),
}

impl From<LayoutError> for GroupedError {
    fn from(error: LayoutError) -> GroupedError {
        GroupedError::Tier(error.into())
    }
}

/// The totals of one group.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct GroupedMoves {
    /// The name of the group.
    pub name: String,
    /// What a hit needs of it.
    pub rule: GroupRule,
    /// Tokens of a page.
    pub page_size: NonZeroU64,
    /// Bytes of a page of the model.
    pub page_bytes: u64,
    /// Pages of host memory.
    pub host_pages: u64,
    /// Pages that hits brought.
    pub loaded_pages: u64,
    /// Pages that were stored.
    pub stored_pages: u64,
}

/// The totals of a replay over groups.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct GroupedTotals {
    /// Requests.
    pub requests: u64,
    /// Requests that found a stop.
    pub hits: u64,
    /// Tokens of the prompts.
    pub tokens: u64,
    /// Tokens of the stops that were loaded.
    pub hit_tokens: u64,
    /// Tokens up to which the groups with the rule full were stored. Those beyond [`hit_tokens`](Self::hit_tokens) were
    /// computed again, because another group lacked a stop there.
    pub spine_tokens: u64,
    /// Stops that stores named.
    pub stops: u64,
    /// By group, in the order of the model.
    pub groups: Vec<GroupedMoves>,
}

impl GroupedTotals {
    /// The part of all prompt tokens that were loaded.
    #[must_use]
    pub fn token_hit_ratio(&self) -> f64 {
        self.hit_tokens as f64 / self.tokens.max(1) as f64
    }

    /// Bytes that hits brought.
    #[must_use]
    pub fn loaded_bytes(&self) -> u64 {
        self.bytes(|group| group.loaded_pages)
    }

    /// Bytes that were stored.
    #[must_use]
    pub fn stored_bytes(&self) -> u64 {
        self.bytes(|group| group.stored_pages)
    }

    fn bytes(&self, pages: fn(&GroupedMoves) -> u64) -> u64 {
        let bytes = |group: &GroupedMoves| pages(group).saturating_mul(group.page_bytes);
        self.groups.iter().map(bytes).fold(0, u64::saturating_add)
    }
}

/// The time of the trace.
#[derive(Default)]
struct TraceClock(AtomicU64);

impl Clock for TraceClock {
    fn now(&self) -> Duration {
        Duration::from_millis(self.0.load(Ordering::Relaxed))
    }
}

/// The cache, and an engine that computes nothing: block `n` of each layout is for page `n` of a request.
struct GroupedReplay {
    cache: GroupCache,
    clock: Arc<TraceClock>,
    stops: ReplayStops,
    /// Units of a block of the trace.
    units: u64,
    /// Tokens between two stops at ends of blocks of the trace.
    prompt_unit: u64,
    chain: Vec<BlockKey>,
    totals: GroupedTotals,
}

/// Replays a trace on a cache over the groups of a model. Calls `progress` after each request with the number of
/// requests so far.
///
/// # Errors
/// A model whose pages do not divide the trace's blocks; more pages than [`GROUPED_PAGES_MAX`]; the errors of
/// [`GroupCache::open`], such as too little host memory for one stop.
pub fn replay_grouped(
    trace: &Trace,
    settings: &GroupedSettings<'_>,
    progress: &mut dyn FnMut(u64),
) -> Result<GroupedTotals, GroupedError> {
    let mut replay = GroupedReplay::open(trace, settings)?;
    for request in trace.requests() {
        replay.request(&request)?;
        progress(replay.totals.requests);
    }
    Ok(replay.totals)
}

/// A page of a group in the cache of a replay.
fn small_shape(blocks: u64, page_size: u64) -> Result<Shape, LayoutError> {
    let plane = Plane::new("page", Unit::new("u8", 1, 1)?)?;
    let plane = plane.extent(Axis::C, PAGE_BYTES).per_page();
    Shape::new(blocks, 1, page_size, vec![plane])
}

/// The pages of host memory of each group.
fn host_pages(
    trace: &Trace,
    facts: &[GroupFacts],
    (groups, host_bytes): (&[&ModelGroup], Option<u64>),
) -> Result<Vec<u64>, GroupedError> {
    // No pool fills more pages than the trace has.
    let blocks = trace.distinct_blocks() as u64;
    let tokens = blocks.saturating_mul(u64::from(trace.page_size()));
    let all = facts
        .iter()
        .map(|facts| pages_of_a_stop(facts).max(tokens / facts.page_size));
    let all: Vec<u64> = all.collect();
    let pages = match host_bytes {
        None => all,
        Some(host_bytes) => {
            let mut parts = Vec::with_capacity(groups.len());
            for group in groups {
                parts.push(GroupPart {
                    page_bytes: memory_bytes(group.shape().block_bytes()?)?,
                    share: None,
                });
            }
            fill_shares(facts, &mut parts);
            let divided = divide_host(facts, &parts, host_bytes)?;
            let divided = divided.into_iter().zip(&parts).zip(all);
            divided
                .map(|((bytes, part), all)| (bytes / part.page_bytes.max(1)).min(all))
                .collect()
        }
    };
    let sum = pages.iter().copied().fold(0, u64::saturating_add);
    if sum > GROUPED_PAGES_MAX {
        return Err(GroupedError::Pages {
            pages: sum,
            max: GROUPED_PAGES_MAX,
        });
    }
    Ok(pages)
}

impl GroupedReplay {
    fn open(trace: &Trace, settings: &GroupedSettings<'_>) -> Result<GroupedReplay, GroupedError> {
        let groups: Vec<&ModelGroup> = settings.model.targets().collect();
        let longest = trace.requests().map(|request| request.input_tokens).max();
        let longest = u64::from(longest.unwrap_or(0));
        let manager = Arc::new(TransferManager::new());
        let mut handles: Vec<LayoutHandle> = Vec::new();
        let mut small: Vec<CacheGroup> = Vec::new();
        for group in &groups {
            let page_size = group.shape().page_size();
            let shape = small_shape((longest / page_size).max(1), page_size)?;
            let identity = Identity::new("a trace", "1", &shape)?;
            let engine = PhysicalLayout::builder()
                .with_shape(shape)
                .layout(Word::parse("BLC").map_err(LayoutError::from)?)
                .allocate_system()
                .build()
                .map_err(TierError::from)?;
            handles.push(manager.register(engine).map_err(TierError::from)?);
            small.push(CacheGroup::new(
                group.name().as_str(),
                group.rule(),
                identity,
            ));
        }
        let (facts, unit, _) = facts_of(&small)?;
        let block = trace.page_size();
        if !u64::from(block).is_multiple_of(unit.get()) {
            let unit = unit.get();
            return Err(GroupedError::Unit { block, unit });
        }
        let pages = host_pages(trace, &facts, (&groups, settings.host_bytes))?;
        let moves = facts
            .iter()
            .zip(&groups)
            .zip(&pages)
            .map(|((facts, group), &host_pages)| {
                Ok(GroupedMoves {
                    name: facts.name.clone(),
                    rule: facts.rule,
                    page_size: facts.page_size,
                    page_bytes: group.shape().block_bytes()?,
                    host_pages,
                    loaded_pages: 0,
                    stored_pages: 0,
                })
            });
        let totals = GroupedTotals {
            groups: moves.collect::<Result<_, GroupedError>>()?,
            ..GroupedTotals::default()
        };
        let clock = Arc::new(TraceClock::default());
        let small = with_pages(small, &facts, &pages);
        let opened = GroupCache::builder(small_settings(small, &pages, settings.policy))
            .clock(Arc::clone(&clock) as Arc<dyn Clock>)
            .open_registered(manager, &handles)?;
        let opened_unit = opened.stop_unit();
        Ok(GroupedReplay {
            cache: opened,
            clock,
            stops: settings.stops,
            units: u64::from(block) / unit,
            prompt_unit: common_multiple(opened_unit, u64::from(block)),
            chain: Vec::new(),
            totals,
        })
    }

    fn request(&mut self, request: &TraceRequest<'_>) -> Result<(), TierError> {
        self.clock.0.store(request.timestamp_ms, Ordering::Relaxed);
        let tokens = u64::from(request.input_tokens);
        self.totals.requests += 1;
        self.totals.tokens += tokens;
        self.set_chain(request);
        let mut hints = EvictionHints::default();
        hints.output_tokens = request.output_tokens;
        // The engine computes the last token.
        let options = StopOptions::new()
            .at_most(tokens.saturating_sub(1))
            .hints(hints);
        let found = self.cache.lookup_with(&self.chain, &options);
        let (stop, branch) = (found.stop(), found.branch());
        let has_spine = |facts: &GroupFacts| facts.rule == GroupRule::Full;
        self.totals.spine_tokens += match branch {
            Some(spine) if self.cache.groups().iter().any(has_spine) => spine,
            _ => stop,
        };
        if stop > 0 {
            self.load(found)?;
        } else {
            drop(found);
        }
        self.store((stop, tokens), branch, hints)?;
        while self.cache.step() {}
        self.cache.look_after();
        Ok(())
    }

    /// The keys of the units that a prompt fills.
    fn set_chain(&mut self, request: &TraceRequest<'_>) {
        self.chain.clear();
        let units = u64::from(request.input_tokens) / self.cache.unit();
        for block in request.blocks {
            for unit in 0..self.units {
                if self.chain.len() as u64 == units {
                    return;
                }
                let name = u128::from(*block) << 64 | u128::from(unit);
                self.chain.push(BlockKey::from_opaque(&name.to_le_bytes()));
            }
        }
    }

    fn load(&mut self, found: crate::groups::GroupMatch) -> Result<(), TierError> {
        let stop = found.stop();
        let mut blocks: Vec<Vec<usize>> = Vec::new();
        for facts in self.cache.groups() {
            blocks.push(ids(found.needs(&facts.name, 0)?));
        }
        let given = self.cache.groups().iter().zip(&blocks);
        let given: Vec<LoadBlocks<'_>> = given
            .map(|(facts, blocks)| LoadBlocks::new(&facts.name, blocks))
            .collect();
        let load = self.cache.load(found, &given)?;
        let report = self.end(&load);
        if report.tokens == stop {
            self.totals.hits += 1;
            self.totals.hit_tokens += stop;
            for (group, blocks) in self.totals.groups.iter_mut().zip(&blocks) {
                group.loaded_pages += blocks.len() as u64;
            }
        }
        Ok(())
    }

    /// Stores what the engine computed of a prompt of `end` tokens, from `start` on.
    fn store(
        &mut self,
        (start, end): (u64, u64),
        branch: Option<u64>,
        hints: EvictionHints,
    ) -> Result<(), TierError> {
        let stops = self.stops_of((start, end), branch);
        let mut blocks: Vec<(u64, Vec<usize>)> = Vec::new();
        for facts in self.cache.groups() {
            let first = match (facts.rule, stops.first()) {
                (GroupRule::Full, _) => start / facts.page_size,
                (_, Some(&stop)) => facts.needs(stop).start,
                (_, None) => end / facts.page_size,
            };
            blocks.push((first, ids(first..end / facts.page_size)));
        }
        let given = self.cache.groups().iter().zip(&blocks);
        let given: Vec<StoreBlocks<'_>> = given
            .filter(|(_, (_, blocks))| !blocks.is_empty())
            .map(|(facts, (first, blocks))| StoreBlocks::new(&facts.name, *first, blocks))
            .collect();
        self.totals.stops += stops.len() as u64;
        let options = GroupStoreOptions::new().stops(stops).hints(hints);
        let store = self.cache.store_with(&self.chain, &given, &options)?;
        let report = self.end(&store);
        for of_group in report.groups {
            let mut groups = self.totals.groups.iter_mut();
            if let Some(group) = groups.find(|group| group.name == of_group.group)
                && let Ok(stored) = of_group.outcome
            {
                group.stored_pages += stored.stored as u64;
            }
        }
        Ok(())
    }

    /// The stops to store, in their order.
    fn stops_of(&self, (start, end): (u64, u64), branch: Option<u64>) -> Vec<u64> {
        let unit = self.cache.stop_unit();
        let mut stops: Vec<u64> = Vec::new();
        if self.stops.prompt {
            let before_last = end.saturating_sub(1);
            stops.push(before_last - before_last % self.prompt_unit);
            stops.push(end - end % self.prompt_unit);
        }
        if self.stops.branch {
            stops.extend(branch);
        }
        if let Some(every) = self.stops.every {
            let multiples = start / every..=end / every;
            let stop = |at: u64| at.checked_mul(every.get())?.checked_next_multiple_of(unit);
            stops.extend(multiples.filter_map(stop));
        }
        stops.retain(|stop| (start + 1..=end).contains(stop));
        stops.sort_unstable();
        stops.dedup();
        stops
    }

    /// The report of an operation, after the steps that it takes.
    fn end<R: Clone + Send + 'static>(&self, operation: &GroupOperation<R>) -> R {
        while self.cache.step() && !operation.is_complete() {}
        operation.wait()
    }
}

/// The least common multiple, or the largest number.
fn common_multiple(one: u64, other: u64) -> u64 {
    (one / divisor(one, other).max(1)).saturating_mul(other)
}

/// The blocks of the engine for pages.
fn ids(pages: Range<u64>) -> Vec<usize> {
    pages
        .filter_map(|page| usize::try_from(page).ok())
        .collect()
}

/// Gives the groups shares by which each has its pages.
fn with_pages(groups: Vec<CacheGroup>, facts: &[GroupFacts], pages: &[u64]) -> Vec<CacheGroup> {
    let groups = groups.into_iter().zip(facts).zip(pages);
    // Half a page more, so that rounding takes none away.
    let more =
        |facts: &GroupFacts, pages: u64| pages.saturating_sub(pages_of_a_stop(facts)) as f64 + 0.5;
    groups
        .map(|((group, facts), &pages)| group.share(more(facts, pages).min(1e6)))
        .collect()
}

fn small_settings(
    groups: Vec<CacheGroup>,
    pages: &[u64],
    policy: PolicyKind,
) -> GroupCacheSettings {
    let sum: u64 = pages.iter().sum();
    let half_pages = groups.len() as u64 * opening::ALIGNMENT / 2;
    GroupCacheSettings::new(groups)
        .host_bytes(sum * opening::ALIGNMENT + half_pages)
        .policy(policy)
        .workers(0)
}

#[cfg(test)]
mod tests;
