//! What a process needs that serves its cache over groups to other processes.

use std::{ops::Range, sync::atomic::Ordering};

use kvtile_blocks::BlockKey;

use super::{GroupCache, GroupMatch, StopOptions, found::StopSearch, stops};
use crate::cache::{Cache, Match, serving::StopCountsMessage};

impl GroupCache {
    /// The cache of a group, by its place in [`groups`](Self::groups).
    #[must_use]
    pub fn cache_of(&self, group: usize) -> Option<&Cache> {
        self.caches.get(group)
    }

    /// All usable stops of a chain now, the longest first, as [`GroupMatch::stops`] has them.
    #[must_use]
    pub fn stops(&self, chain: &[BlockKey], at_most: Option<u64>) -> Vec<u64> {
        if let Some(connection) = self.shared.connection() {
            let options = StopOptions::new().at_most(at_most);
            return connection.list_stops(chain, &options.of_connection());
        }
        let Some(caches) = self.shared.open() else {
            return Vec::new();
        };
        StopSearch::new(&self.shared, &caches, chain, at_most).all()
    }

    /// Takes stops whose store begins from the stops that the cache keeps whole, and adds those whose store has
    /// ended. A stop that no lookup of the chain could find is left out.
    pub fn note_stops(&self, chain: &[BlockKey], stops: &[u64], is_stored: bool) {
        let tokens = (chain.len() as u64).saturating_mul(self.unit());
        let is_good =
            |stop: &u64| *stop > 0 && *stop <= tokens && stop.is_multiple_of(self.stop_unit());
        let stops: Vec<u64> = stops.iter().copied().filter(is_good).collect();
        match is_stored {
            true => stops::store_ended(&self.shared, chain, &stops),
            false => stops::store_begins(&self.shared, chain, &stops),
        }
    }

    /// The counters of lookups of stops.
    #[must_use]
    pub fn stop_counts(&self) -> StopCountsMessage {
        if let Some(connection) = self.shared.connection() {
            return connection.stop_counts().unwrap_or_default();
        }
        let counts = &self.shared.counts;
        StopCountsMessage {
            lookups: counts.lookups.load(Ordering::Relaxed),
            hits: counts.hits.load(Ordering::Relaxed),
            found_tokens: counts.found_tokens.load(Ordering::Relaxed),
            known_stops: self.shared.book.lock().len() as u64,
            keeper_turns: counts.keeper_turns.load(Ordering::Relaxed),
        }
    }
}

impl GroupMatch {
    /// The tokens of the spine, at least those of the stop.
    #[must_use]
    pub fn spine(&self) -> u64 {
        self.branch().unwrap_or(self.stop())
    }

    /// The pages that the stop needs of each group, with their pins; empty without a stop.
    #[must_use = "the matches pin their pages"]
    pub fn into_matches(mut self) -> Vec<(Range<u64>, Option<Match>)> {
        self.take_all()
    }
}
