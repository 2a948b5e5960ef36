//! Lookups: the longest stop at which every group has what its rule needs, pinned.

use std::{
    fmt,
    ops::Range,
    sync::{Arc, Weak},
    time::Duration,
};

use kvtile_blocks::{BlockKey, policy::EvictionHints, pool::OwnerId};
use kvtile_layout::{GroupPresence, GroupRule, usable_stops};

use super::{
    shared::{GroupCounts, GroupFacts, GroupsShared},
    stops,
};
use crate::{
    cache::{CacheParts, ConnectedStop, ConnectedStopOptions, LookupOptions, Match},
    error::TierError,
    rate::reading_pays,
};

/// The most stops of a lookup whose loading time is estimated.
const STOPS_WEIGHED: usize = 64;

/// Options of [`GroupCache::lookup_with`](super::GroupCache::lookup_with).
#[derive(Clone, Copy, Debug, Default)]
#[non_exhaustive]
pub struct StopOptions {
    /// The most tokens of the stop (default: those of the chain). An engine that computes the last
    /// token of a prompt itself gives the prompt's length less one.
    pub at_most: Option<u64>,
    /// The owner of the pins, named in reports of overdue pins.
    pub owner: OwnerId,
    /// How long the match may hold its pins (default: without limit).
    pub hold: Option<Duration>,
    /// Hints for the eviction policies.
    pub hints: EvictionHints,
    /// How long the pages are worth keeping, as [`LookupOptions::lifetime`].
    pub lifetime: Option<Duration>,
    /// Tokens per second at which the engine computes, a finite number above 0 (default, and in place of any
    /// other number: that of the cache's settings). A stop is left out if what it needs
    /// takes longer to load from the tiers below than its tokens beyond the longest stop in host memory take
    /// to compute.
    pub recompute_tokens_per_second: Option<f64>,
}

impl StopOptions {
    /// The defaults.
    #[must_use]
    pub fn new() -> StopOptions {
        StopOptions::default()
    }

    /// Sets [`at_most`](Self::at_most).
    #[must_use]
    pub fn at_most(mut self, tokens: impl Into<Option<u64>>) -> StopOptions {
        self.at_most = tokens.into();
        self
    }

    /// Sets [`owner`](Self::owner).
    #[must_use]
    pub fn owner(mut self, owner: OwnerId) -> StopOptions {
        self.owner = owner;
        self
    }

    /// Sets [`hold`](Self::hold).
    #[must_use]
    pub fn hold(mut self, time: impl Into<Option<Duration>>) -> StopOptions {
        self.hold = time.into();
        self
    }

    /// Sets [`hints`](Self::hints).
    #[must_use]
    pub fn hints(mut self, hints: EvictionHints) -> StopOptions {
        self.hints = hints;
        self
    }

    /// Sets [`lifetime`](Self::lifetime).
    #[must_use]
    pub fn lifetime(mut self, time: impl Into<Option<Duration>>) -> StopOptions {
        self.lifetime = time.into();
        self
    }

    /// Sets [`recompute_tokens_per_second`](Self::recompute_tokens_per_second).
    #[must_use]
    pub fn recompute_tokens_per_second(mut self, rate: impl Into<Option<f64>>) -> StopOptions {
        self.recompute_tokens_per_second = rate.into();
        self
    }

    /// The options of a lookup in one group.
    fn of_group(&self) -> LookupOptions {
        LookupOptions::new()
            .owner(self.owner)
            .hold(self.hold)
            .hints(self.hints)
            .lifetime(self.lifetime)
    }

    /// The options of a lookup in a daemon.
    pub(super) fn of_connection(&self) -> ConnectedStopOptions {
        let rate = self.recompute_tokens_per_second;
        ConnectedStopOptions {
            at_most: self.at_most,
            of_group: self.of_group().recompute_tokens_per_second(rate),
        }
    }

    /// The rate of computing, if it is one.
    fn rate(&self) -> Option<f64> {
        let rate = self.recompute_tokens_per_second;
        rate.filter(|rate| rate.is_finite() && *rate > 0.0)
    }
}

/// What a stop needs of one group.
struct GroupNeed {
    pages: Range<u64>,
    /// The pins of the pages; `None` if there are none.
    found: Option<Match>,
}

/// The longest usable stop of a request, with what it needs of each group pinned: no tier evicts it
/// while this lives. Load it, or drop it.
///
/// It does not keep its cache open. It cannot be cut to another length, because a shorter prefix may
/// not be a stop: [`back_to`](Self::back_to) looks for one.
#[must_use = "a match pins its pages until it is loaded or dropped"]
pub struct GroupMatch {
    shared: Weak<GroupsShared>,
    chain: Arc<[BlockKey]>,
    options: StopOptions,
    stop: u64,
    /// Tokens of the spine, at least those of the stop.
    spine: u64,
    needs: Vec<GroupNeed>,
}

impl fmt::Debug for GroupMatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GroupMatch")
            .field("stop", &self.stop)
            .field("spine", &self.spine)
            .finish_non_exhaustive()
    }
}

impl GroupMatch {
    /// Tokens that a load lets the engine resume after; 0 if nothing was found.
    #[must_use]
    pub fn stop(&self) -> u64 {
        self.stop
    }

    /// All usable stops of the request now, the longest first: for ranks that must agree on one, and
    /// for engines with limits of their own. Ranks intersect their sets; the minimum of their longest
    /// stops may be no stop of some of them.
    #[must_use]
    pub fn stops(&self) -> Vec<u64> {
        let shared = self.shared.upgrade();
        if let Some(connection) = shared.and_then(|shared| shared.connection()) {
            return connection.list_stops(&self.chain, &self.options.of_connection());
        }
        let Some((shared, caches)) = self.open() else {
            return Vec::new();
        };
        let search = StopSearch::new(&shared, &caches, &self.chain, self.options.at_most);
        search.all()
    }

    /// Tokens up to which the groups with [`GroupRule::Full`] are stored, where they reach beyond the
    /// stop. The engine resumes at the stop and passes this position: another request branched off
    /// there, so a stop stored there is found by the next one.
    #[must_use]
    pub fn branch(&self) -> Option<u64> {
        (self.spine > self.stop).then_some(self.spine)
    }

    /// The pages of a group that a load must bring to an engine that has the group's first `have`
    /// tokens itself. None of a draft group of which a page is missing.
    ///
    /// # Errors
    /// A group that the cache does not have.
    pub fn needs(&self, group: &str, have: u64) -> Result<Range<u64>, TierError> {
        let shared = self.shared.upgrade();
        let shared = shared.ok_or(TierError::Request(crate::RequestError::Closed))?;
        let at = shared.at(group)?;
        Ok(self.needs_of(at, shared.facts(at), have))
    }

    /// As [`needs`](Self::needs), by the number of the group.
    pub(super) fn needs_of(&self, at: usize, facts: &GroupFacts, have: u64) -> Range<u64> {
        let pages = self.needs.get(at).map_or(0..0, |need| need.pages.clone());
        (have / facts.page_size).clamp(pages.start, pages.end)..pages.end
    }

    /// The longest usable stop of at most `tokens` tokens, as a new lookup with the options of this
    /// one.
    pub fn back_to(self, tokens: u64) -> GroupMatch {
        let tokens = self.options.at_most.map_or(tokens, |most| most.min(tokens));
        let options = StopOptions {
            at_most: Some(tokens),
            ..self.options
        };
        let (shared, chain) = (Weak::clone(&self.shared), Arc::clone(&self.chain));
        // The pins of the longer stop are not needed any more.
        drop(self);
        match shared.upgrade() {
            Some(shared) => lookup(&shared, chain, &options),
            None => GroupMatch::nothing(shared, chain, options),
        }
    }

    pub(super) fn is_of(&self, shared: &Arc<GroupsShared>) -> bool {
        std::ptr::eq(self.shared.as_ptr(), Arc::as_ptr(shared))
    }

    /// The keys of the pages that the stop needs of a group.
    pub(super) fn keys_of(&self, at: usize, facts: &GroupFacts) -> Vec<BlockKey> {
        let keys = facts.keys(&self.chain, self.needs_of(at, facts, 0));
        keys.unwrap_or_default()
    }

    /// Takes the pins of the last `pages` needed pages of a group.
    pub(super) fn take(&mut self, at: usize, pages: usize) -> Option<Match> {
        let found = self.needs.get_mut(at)?.found.take()?;
        let skipped = found.blocks().saturating_sub(pages);
        Some(found.skip(skipped))
    }

    /// Takes all pins, with the pages of each group.
    pub(super) fn take_all(&mut self) -> Vec<(Range<u64>, Option<Match>)> {
        let needs = self.needs.drain(..);
        needs.map(|need| (need.pages, need.found)).collect()
    }

    pub(super) fn nothing(
        shared: Weak<GroupsShared>,
        chain: Arc<[BlockKey]>,
        options: StopOptions,
    ) -> GroupMatch {
        GroupMatch {
            shared,
            chain,
            options,
            stop: 0,
            spine: 0,
            needs: Vec::new(),
        }
    }

    /// A stop that a daemon found, if it is one of these groups.
    pub(super) fn of_daemon(
        shared: &Arc<GroupsShared>,
        (chain, options): (Arc<[BlockKey]>, StopOptions),
        there: Option<ConnectedStop>,
    ) -> GroupMatch {
        let mut found = GroupMatch::nothing(Arc::downgrade(shared), chain, options);
        let Some(there) = there else {
            return found;
        };
        let is_needed = |(facts, (pages, _)): (&GroupFacts, &(Range<u64>, Match))| {
            let needed = facts.needs(there.stop);
            *pages == needed || (pages.is_empty() && !facts.gates())
        };
        let tokens = (found.chain.len() as u64).saturating_mul(shared.unit.get());
        found.spine = there.spine.min(tokens);
        if there.stop == 0
            || there.stop > tokens
            || !shared.facts.iter().zip(&there.groups).all(is_needed)
        {
            return found;
        }
        found.stop = there.stop;
        found.spine = found.spine.max(there.stop);
        let need = |(pages, pins): (Range<u64>, Match)| GroupNeed {
            found: (!pages.is_empty()).then_some(pins),
            pages,
        };
        found.needs = there.groups.into_iter().map(need).collect();
        found
    }

    fn open(&self) -> Option<(Arc<GroupsShared>, Vec<Arc<CacheParts>>)> {
        let shared = self.shared.upgrade()?;
        let caches = shared.open()?;
        Some((shared, caches))
    }
}

/// Looks for the longest usable stop and pins what it needs.
pub(super) fn lookup(
    shared: &Arc<GroupsShared>,
    chain: Arc<[BlockKey]>,
    options: &StopOptions,
) -> GroupMatch {
    if let Some(connection) = shared.connection() {
        let there = connection.find_stop(&chain, &options.of_connection());
        return GroupMatch::of_daemon(shared, (chain, *options), there);
    }
    let mut found = GroupMatch::nothing(Arc::downgrade(shared), chain, *options);
    GroupCounts::add(&shared.counts.lookups, 1);
    let Some(caches) = shared.open() else {
        return found;
    };
    let search = StopSearch::new(shared, &caches, &found.chain, options.at_most);
    let spine = search.spine();
    let mut most = spine;
    // A page may leave between the search and the pin: the next shorter stop is tried then.
    let rate = options.rate().or(shared.recompute_tokens_per_second);
    while let Some(stop) = match rate {
        None => search.longest(most),
        Some(rate) => search.longest_that_pays(most, rate),
    } {
        if let Some(needs) = search.pin(stop, options) {
            found.stop = stop;
            found.needs = needs;
            stops::record(shared, &found.chain, stop);
            GroupCounts::add(&shared.counts.hits, 1);
            GroupCounts::add(&shared.counts.found_tokens, stop);
            break;
        }
        most = stop - shared.stop_unit.get();
    }
    found.spine = spine;
    found
}

/// A search for stops in the current contents of the caches.
pub(super) struct StopSearch<'a> {
    shared: &'a GroupsShared,
    caches: &'a [Arc<CacheParts>],
    chain: &'a [BlockKey],
    /// The most tokens of a stop.
    most: u64,
}

impl<'a> StopSearch<'a> {
    pub(super) fn new(
        shared: &'a GroupsShared,
        caches: &'a [Arc<CacheParts>],
        chain: &'a [BlockKey],
        at_most: Option<u64>,
    ) -> StopSearch<'a> {
        let tokens = (chain.len() as u64).saturating_mul(shared.unit.get());
        StopSearch {
            shared,
            caches,
            chain,
            most: at_most.map_or(tokens, |most| most.min(tokens)),
        }
    }

    fn groups(&self) -> impl Iterator<Item = (&'a GroupFacts, &'a Arc<CacheParts>)> {
        self.shared.facts.iter().zip(self.caches)
    }

    /// Tokens up to which every group with the rule full is stored, a multiple of the stops' unit. 0
    /// where no group has that rule.
    pub(super) fn spine(&self) -> u64 {
        let mut leading = self.most;
        let mut has_spine = false;
        for (facts, cache) in self.groups() {
            if !facts.is_spine() {
                continue;
            }
            has_spine = true;
            let pages = leading / facts.page_size;
            let is_missing = |page: &u64| !self.has(facts, cache, *page);
            let first_missing = (0..pages).find(is_missing);
            leading = first_missing.unwrap_or(pages) * facts.page_size.get();
        }
        match has_spine {
            true => leading - leading % self.shared.stop_unit,
            // The keys alone are the spine.
            false => self.most - self.most % self.shared.stop_unit,
        }
    }

    fn has(&self, facts: &GroupFacts, cache: &CacheParts, page: u64) -> bool {
        let key = facts.key(self.chain, page);
        key.is_some_and(|key| cache.has_block(&key))
    }

    /// The keys of those pages of a group that no lookup finds now.
    pub(super) fn absent(&self, at: usize, pages: Range<u64>) -> Vec<BlockKey> {
        let keys = self.shared.facts(at).keys(self.chain, pages);
        let keys = keys.unwrap_or_default().into_iter();
        let is_absent = |key: &BlockKey| {
            let cache = self.caches.get(at);
            cache.is_none_or(|cache| !cache.has_block(key))
        };
        keys.filter(is_absent).collect()
    }

    /// Calls `search` with the stops of at most `spine` tokens, the longest first. The groups with the
    /// rule full reach that far.
    fn with_stops<T>(
        &self,
        spine: u64,
        search: impl FnOnce(&mut dyn Iterator<Item = u64>) -> T,
    ) -> T {
        let others = self
            .groups()
            .filter(|(facts, _)| facts.gates() && facts.rule != GroupRule::Full);
        let others: Vec<(&GroupFacts, &Arc<CacheParts>)> = others.collect();
        let has: Vec<_> = others
            .iter()
            .map(|(facts, cache)| move |page| self.has(facts, cache, page))
            .collect();
        let presence: Vec<GroupPresence<'_>> = others
            .iter()
            .zip(&has)
            .map(|((facts, _), has)| GroupPresence {
                rule: facts.rule,
                page: facts.page_size,
                has,
            })
            .collect();
        search(&mut usable_stops(&presence, spine, self.shared.stop_unit))
    }

    /// All usable stops, the longest first.
    pub(super) fn all(&self) -> Vec<u64> {
        self.with_stops(self.spine(), |stops| stops.collect())
    }

    fn longest(&self, most: u64) -> Option<u64> {
        self.with_stops(most, |stops| stops.next())
    }

    /// The longest stop of at most `most` tokens that loads faster than it computes, or is in host memory.
    fn longest_that_pays(&self, most: u64, tokens_per_second: f64) -> Option<u64> {
        let gating = || self.groups().filter(|(facts, _)| facts.gates());
        let time_of = |(facts, cache): (&GroupFacts, &Arc<CacheParts>), pages: Range<u64>| {
            let keys = facts.keys(self.chain, pages);
            cache.reading_time(&keys.unwrap_or_default())
        };
        let reading = |stop: &u64| -> Duration {
            let times = gating().map(|group| time_of(group, group.0.needs(*stop)));
            times.sum()
        };
        let stops = self.with_stops(most, |stops| stops.collect::<Vec<u64>>());
        let times: Vec<Duration> = stops.iter().take(STOPS_WEIGHED).map(reading).collect();
        let weighed = || stops.iter().copied().zip(&times);
        // All stops are considered for the longest one in host memory: the leading pages of full groups once, then
        // the few pages that each stop needs of the rest.
        let is_full = |(facts, _): &(&GroupFacts, &Arc<CacheParts>)| facts.rule == GroupRule::Full;
        let leading = gating().filter(is_full).map(|group| {
            let mut pages = group.0.needs(most);
            let first = pages.find(|&page| !time_of(group, page..page + 1).is_zero());
            first.map_or(most, |page| page * group.0.page_size.get())
        });
        let leading = leading.min().unwrap_or(most);
        let is_in_host = |stop: &u64| {
            let mut rest = gating().filter(|group| !is_full(group));
            *stop <= leading && rest.all(|group| time_of(group, group.0.needs(*stop)).is_zero())
        };
        let in_host = stops.iter().copied().find(is_in_host).unwrap_or(0);
        let pays = |(stop, time): &(u64, &Duration)| {
            *stop == in_host
                || (*stop > in_host && reading_pays(**time, stop - in_host, tokens_per_second))
        };
        let found = weighed().find(pays).map(|(stop, _)| stop);
        found.or((in_host > 0).then_some(in_host))
    }

    /// Pins what a stop needs of every group; `None` if a page has left since the search. A draft group of which a page is
    /// missing needs nothing.
    fn pin(&self, stop: u64, options: &StopOptions) -> Option<Vec<GroupNeed>> {
        let options = options.of_group();
        let mut needs = Vec::with_capacity(self.shared.facts.len());
        for (facts, cache) in self.groups() {
            let pages = facts.needs(stop);
            let keys = facts.keys(self.chain, pages.clone())?;
            let found = (!keys.is_empty()).then(|| cache.find(&keys, &options));
            let is_whole = found
                .as_ref()
                .is_none_or(|found| found.blocks() == keys.len());
            match (is_whole, facts.gates()) {
                (true, _) => needs.push(GroupNeed { pages, found }),
                (false, true) => return None,
                (false, false) => needs.push(GroupNeed {
                    pages: pages.end..pages.end,
                    found: None,
                }),
            }
        }
        Some(needs)
    }
}
