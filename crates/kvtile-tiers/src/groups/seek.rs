//! Lookups that query tiers which answer over a network, for stops.
//!
//! ```text
//! wave 1     the pages of the groups with the rule full: how far the spine reaches
//! wave 2     for the longest stops in it: the pages of the group that needs fewest, mostly the states
//! wave 3 …   for those that are still possible: the pages of one group more
//! ```
//!
//! A wave is one query to each tier and group. The seek ends when the longest stop that is still possible
//! has all of its pages, or when none is possible. States are few and windows are long, so most stops are
//! ruled out by one page each.

use std::{
    collections::{BTreeMap, HashSet},
    fmt,
    sync::{Arc, Weak},
    time::{Duration, Instant},
};

use kvtile_blocks::BlockKey;
use kvtile_layout::GroupRule;

use super::{
    found::{self, GroupMatch, StopOptions, StopSearch},
    shared::GroupsShared,
};
use crate::cache::{CacheParts, ConnectedStopSeek, SoughtAnswers};

/// About the most pages of a wave, apart from the first one.
const WAVE_PAGES: usize = 256;

/// A lookup that waits for the answers of tiers. [`GroupCache::seek`](super::GroupCache::seek) starts it.
///
/// It is ready once the longest stop is known, or once its time has passed. Then its match has the pages of
/// the tiers that have answered. It pins no page before that. Dropping it costs nothing: answers that arrive
/// later serve other lookups.
pub struct GroupSeek {
    shared: Weak<GroupsShared>,
    chain: Arc<[BlockKey]>,
    options: StopOptions,
    /// The queries of the current wave, by the number of the group.
    under_way: Vec<(usize, SoughtAnswers)>,
    /// The pages of the other groups that a query was about.
    asked: HashSet<(usize, BlockKey)>,
    end: Instant,
    is_done: bool,
    /// The seek of a connected cache.
    there: Option<ConnectedStopSeek>,
}

impl fmt::Debug for GroupSeek {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GroupSeek")
            .field("keys", &self.chain.len())
            .field("asked", &self.asked.len())
            .field("is_done", &self.is_done)
            .finish_non_exhaustive()
    }
}

impl GroupSeek {
    /// Starts the first queries.
    pub(super) fn begin(
        shared: &Arc<GroupsShared>,
        chain: Arc<[BlockKey]>,
        (within, options): (Duration, &StopOptions),
    ) -> GroupSeek {
        let begin = Instant::now();
        let mut seek = GroupSeek {
            shared: Arc::downgrade(shared),
            chain,
            options: *options,
            under_way: Vec::new(),
            asked: HashSet::new(),
            end: begin.checked_add(within).unwrap_or(begin),
            is_done: false,
            there: None,
        };
        if let Some(connection) = shared.connection() {
            seek.there = connection.seek_stop(&seek.chain, (&options.of_connection(), within));
            seek.is_done = seek.there.is_none();
            return seek;
        }
        match shared.open() {
            Some(caches) if caches.iter().any(|cache| cache.has_late_answers()) => {
                seek.ask_spine(shared, &caches);
                seek.advance();
            }
            _ => seek.is_done = true,
        }
        seek
    }

    /// Whether the match would come at once. It begins the next queries where the last ones have been
    /// answered.
    #[must_use]
    pub fn is_ready(&mut self) -> bool {
        if let Some(there) = &self.there {
            // It has a limit of its own.
            return there.is_ready();
        }
        self.advance();
        self.is_done || Instant::now() >= self.end
    }

    /// The match, if it is ready. It never blocks.
    ///
    /// # Errors
    /// The seek itself, if it is not ready yet.
    pub fn try_match(mut self) -> Result<GroupMatch, Box<GroupSeek>> {
        match self.is_ready() {
            true => Ok(self.finish()),
            false => Err(Box::new(self)),
        }
    }

    /// Waits until the match is ready, at most for the rest of the time of the seek.
    pub fn wait(mut self) -> GroupMatch {
        if let Some(there) = &self.there {
            there.wait();
        }
        while !self.is_ready() {
            self.wait_until(self.end);
        }
        self.finish()
    }

    /// Waits until the match is ready, at most for `timeout`; false if it is not.
    #[must_use]
    pub fn wait_timeout(&mut self, timeout: Duration) -> bool {
        let end = Instant::now().checked_add(timeout).unwrap_or(self.end);
        while !self.is_ready() && Instant::now() < end {
            match &self.there {
                Some(there) => there.wait_until(end),
                None => self.wait_until(end.min(self.end)),
            }
        }
        self.is_ready()
    }

    fn wait_until(&self, end: Instant) {
        for (_, answers) in &self.under_way {
            answers.wait_until(end);
        }
    }

    /// Begins the next wave once the current one has been answered.
    fn advance(&mut self) {
        let Some(shared) = self.shared.upgrade() else {
            self.is_done = true;
            return;
        };
        let Some(caches) = shared.open() else {
            self.is_done = true;
            return;
        };
        while !self.is_done {
            if self.under_way.iter().any(|(_, of)| of.waits_for() > 0) {
                return;
            }
            self.record(&caches);
            let search = StopSearch::new(&shared, &caches, &self.chain, self.options.at_most);
            let wave = wave(&shared, &search, &mut self.asked);
            self.is_done = wave.is_empty();
            for (at, keys) in wave {
                self.ask(&caches, at, &keys);
            }
        }
    }

    fn ask_spine(&mut self, shared: &GroupsShared, caches: &[Arc<CacheParts>]) {
        let tokens = (self.chain.len() as u64).saturating_mul(shared.unit.get());
        let most = self.options.at_most.map_or(tokens, |most| most.min(tokens));
        for (at, facts) in shared.facts.iter().enumerate() {
            let pages = 0..most / facts.page_size;
            if facts.is_spine()
                && let Some(keys) = facts.keys(&self.chain, pages)
            {
                self.ask(caches, at, &keys);
            }
        }
    }

    fn ask(&mut self, caches: &[Arc<CacheParts>], at: usize, keys: &[BlockKey]) {
        if let Some(cache) = caches.get(at) {
            self.under_way.push((at, cache.ask(keys)));
        }
    }

    /// Records what the tiers did in the current wave, and ends it.
    fn record(&mut self, caches: &[Arc<CacheParts>]) {
        for (at, answers) in self.under_way.drain(..) {
            if let Some(cache) = caches.get(at) {
                answers.record(cache);
            }
        }
    }

    fn finish(mut self) -> GroupMatch {
        let Some(shared) = self.shared.upgrade() else {
            return GroupMatch::nothing(self.shared, self.chain, self.options);
        };
        if let Some(there) = self.there.take() {
            let found = (self.chain, self.options);
            return GroupMatch::of_daemon(&shared, found, there.end());
        }
        if shared.connection().is_some() {
            return GroupMatch::nothing(self.shared, self.chain, self.options);
        }
        if let Some(caches) = shared.open() {
            self.record(&caches);
        }
        found::lookup(&shared, self.chain, &self.options)
    }
}

/// What is missing of a stop.
enum MissingPages {
    /// Nothing: it is usable.
    Nothing,
    /// Pages of a group of which no query was about.
    Unasked(usize, Vec<BlockKey>),
    /// A page that a query was about.
    Absent,
}

/// The pages of the next wave, by group; they count as asked from now on. Empty if no query could find a
/// longer stop.
fn wave(
    shared: &GroupsShared,
    search: &StopSearch<'_>,
    asked: &mut HashSet<(usize, BlockKey)>,
) -> BTreeMap<usize, Vec<BlockKey>> {
    let mut pages: BTreeMap<usize, Vec<BlockKey>> = BTreeMap::new();
    let mut count = 0;
    let mut stop = search.spine();
    while stop > 0 && count < WAVE_PAGES {
        match missing(shared, search, (stop, asked)) {
            MissingPages::Nothing => {
                // What a draft model has of the stop comes along.
                let drafts = shared.facts.iter().enumerate();
                for (at, facts) in drafts.filter(|(_, facts)| !facts.gates()) {
                    let absent = search.absent(at, facts.needs(stop)).into_iter();
                    let unasked = absent.filter(|key| asked.insert((at, *key)));
                    let unasked: Vec<BlockKey> = unasked.collect();
                    if !unasked.is_empty() {
                        pages.entry(at).or_default().extend(unasked);
                    }
                }
                break;
            }
            // A page of a longer stop may be in this wave: the next wave looks again.
            MissingPages::Absent => {}
            MissingPages::Unasked(at, keys) => {
                count += keys.len();
                asked.extend(keys.iter().map(|key| (at, *key)));
                pages.entry(at).or_default().extend(keys);
            }
        }
        stop = stop.saturating_sub(shared.stop_unit.get());
    }
    pages
}

fn missing(
    shared: &GroupsShared,
    search: &StopSearch<'_>,
    (stop, asked): (u64, &HashSet<(usize, BlockKey)>),
) -> MissingPages {
    let others = shared.facts.iter().enumerate();
    let others = others.filter(|(_, facts)| facts.gates() && facts.rule != GroupRule::Full);
    let mut others: Vec<_> = others.map(|(at, facts)| (at, facts.needs(stop))).collect();
    others.sort_by_key(|(_, pages)| pages.end - pages.start);
    let mut unasked = None;
    for (at, pages) in others {
        let absent = search.absent(at, pages);
        if absent.iter().any(|key| asked.contains(&(at, *key))) {
            return MissingPages::Absent;
        }
        if unasked.is_none() && !absent.is_empty() {
            unasked = Some((at, absent));
        }
    }
    match unasked {
        Some((at, keys)) => MissingPages::Unasked(at, keys),
        None => MissingPages::Nothing,
    }
}
