//! The stops that the cache knows, so that their pages live and die together although each group has a
//! pool and policies of its own.
//!
//! - **Written together.** When a page of a stop reaches a durable tier, the other pages of the stop
//!   follow, and the spine with its ancestors. So a crash leaves whole stops.
//! - **Gone together.** When a page of a stop, or the end of its spine, is in no place any more, nothing
//!   can resume there: the pages that no other known stop needs are removed. The spine stays, because
//!   longer stops and new ones use it.
//!
//! The book learns of stops when a store of them has ended and when a lookup finds them, and of pages from
//! the event log. It is a help: what it does not know ages by the policies alone.

use std::{
    collections::{HashMap, HashSet},
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Weak, atomic::Ordering},
};

use kvtile_blocks::{
    BlockKey,
    events::{Event, EventKind, EventSubscriber, TierId},
};
use kvtile_layout::GroupRule;

use super::shared::GroupsShared;
use crate::cache::CacheParts;

/// The most stops that the book has; more are not recorded.
const STOPS_MAX: usize = 1 << 20;

/// The most events that are read at a time.
const EVENTS_MAX: usize = 1 << 12;

/// A page: the number of its group, and its key.
type StopPage = (usize, BlockKey);

/// What a stop needs.
struct KnownStop {
    /// The last page of each group with the rule full. Its ancestors stay with it.
    spine: Vec<StopPage>,
    /// The pages of the other groups.
    pages: Vec<StopPage>,
}

/// The stops that are known to be stored.
#[derive(Default)]
pub(super) struct StopBook {
    /// By the key of the chain where the stop ends.
    stops: HashMap<BlockKey, KnownStop>,
    /// The stops that need a page, by their keys.
    by_page: HashMap<StopPage, HashSet<BlockKey>>,
}

impl StopBook {
    fn add(&mut self, key: BlockKey, stop: KnownStop) {
        if self.stops.contains_key(&key) || self.stops.len() >= STOPS_MAX {
            return;
        }
        for page in stop.spine.iter().chain(&stop.pages) {
            self.by_page.entry(*page).or_default().insert(key);
        }
        self.stops.insert(key, stop);
    }

    fn remove(&mut self, key: &BlockKey) -> Option<KnownStop> {
        let stop = self.stops.remove(key)?;
        for page in stop.spine.iter().chain(&stop.pages) {
            if let Some(stops) = self.by_page.get_mut(page) {
                stops.remove(key);
                if stops.is_empty() {
                    self.by_page.remove(page);
                }
            }
        }
        Some(stop)
    }

    /// The stops that need a page.
    fn of_page(&self, page: &StopPage) -> Vec<BlockKey> {
        let stops = self.by_page.get(page);
        stops.map_or_else(Vec::new, |stops| stops.iter().copied().collect())
    }

    /// Number of stops.
    pub(super) fn len(&self) -> usize {
        self.stops.len()
    }
}

/// The key by which the book has a stop of a chain.
fn key_of(shared: &GroupsShared, chain: &[BlockKey], stop: u64) -> Option<BlockKey> {
    let units = usize::try_from(stop / shared.unit).ok()?;
    chain.get(units.checked_sub(1)?).copied()
}

/// Takes the stops of a store that begins from the book, which a daemon has for its clients.
pub(super) fn store_begins(shared: &GroupsShared, chain: &[BlockKey], stops: &[u64]) {
    if let Some(connection) = shared.connection() {
        return connection.note_stops(chain, stops, false);
    }
    stops.iter().for_each(|stop| forget(shared, chain, *stop));
}

/// Adds the stops of a store that has ended to the book, which a daemon has for its clients.
pub(super) fn store_ended(shared: &GroupsShared, chain: &[BlockKey], stops: &[u64]) {
    if let Some(connection) = shared.connection() {
        return connection.note_stops(chain, stops, true);
    }
    stops.iter().for_each(|stop| record(shared, chain, *stop));
}

/// Takes a stop that is about to be stored from the book. Otherwise the loss of one of its pages before the store would
/// remove, while the store runs, the pages that it finds present. The end of the store records it again.
fn forget(shared: &GroupsShared, chain: &[BlockKey], stop: u64) {
    if let Some(key) = key_of(shared, chain, stop) {
        shared.book.lock().remove(&key);
    }
}

/// Adds a stop of a chain to the book, if all of it is stored.
pub(super) fn record(shared: &GroupsShared, chain: &[BlockKey], stop: u64) {
    let Some(key) = key_of(shared, chain, stop) else {
        return;
    };
    if shared.book.lock().stops.contains_key(&key) {
        return;
    }
    let Some(caches) = shared.open() else {
        return;
    };
    let mut known = KnownStop {
        spine: Vec::new(),
        pages: Vec::new(),
    };
    let groups = shared.facts.iter().enumerate();
    for (at, facts) in groups.filter(|(_, facts)| facts.gates()) {
        let pages = facts.needs(stop);
        let is_spine = facts.rule == GroupRule::Full;
        let wanted = match is_spine {
            true => pages.end.saturating_sub(1)..pages.end,
            false => pages,
        };
        let Some(keys) = facts.keys(chain, wanted) else {
            return;
        };
        let keys = keys.into_iter().map(|key| (at, key));
        match is_spine {
            true => known.spine.extend(keys),
            false => known.pages.extend(keys),
        }
    }
    let is_kept =
        |(at, key): &StopPage| caches.get(*at).is_some_and(|cache| cache.keeps_block(key));
    // A store may bring one group of a stop before another store brings the rest. If the book had the stop then, it
    // would remove these pages as those of a stop that has lost some.
    if known.pages.iter().chain(&known.spine).all(is_kept) {
        shared.book.lock().add(key, known);
    }
}

/// Reads the events of the cache and keeps the stops whole.
pub(super) struct StopKeeper {
    shared: Weak<GroupsShared>,
    events: EventSubscriber,
    read: Vec<Event>,
}

impl StopKeeper {
    pub(super) fn new(shared: &Arc<GroupsShared>, events: EventSubscriber) -> StopKeeper {
        StopKeeper {
            shared: Arc::downgrade(shared),
            events,
            read: Vec::new(),
        }
    }

    /// Follows the events until the cache closes and ends the waits for them. After a panic it goes on with later
    /// events: a stop whose events were not followed is a miss, or stays until its pages age.
    pub(super) fn serve(mut self) {
        let is_open = |keeper: &StopKeeper| {
            keeper
                .shared
                .upgrade()
                .is_some_and(|shared| shared.open().is_some())
        };
        while self.events.wait() && is_open(&self) {
            while catch_unwind(AssertUnwindSafe(|| self.step())).unwrap_or_else(|_| {
                log::error!("the thread that keeps stops whole panicked; it goes on");
                false
            }) {}
        }
    }

    /// Follows new events; false if there is none.
    pub(super) fn step(&mut self) -> bool {
        let Some(shared) = self.shared.upgrade() else {
            return false;
        };
        let Some(caches) = shared.open() else {
            return false;
        };
        self.read.clear();
        shared.counts.keeper_turns.fetch_add(1, Ordering::Relaxed);
        let turn = KeeperTurn {
            shared: &shared,
            caches: &caches,
        };
        match self.events.poll(&mut self.read, EVENTS_MAX) {
            Ok(0) => false,
            Ok(_) => {
                turn.follow(&self.read);
                true
            }
            Err(_) => {
                turn.review();
                true
            }
        }
    }
}

/// The caches while events are followed.
struct KeeperTurn<'a> {
    shared: &'a GroupsShared,
    caches: &'a [Arc<CacheParts>],
}

impl KeeperTurn<'_> {
    fn follow(&self, events: &[Event]) {
        let mut stored: HashSet<StopPage> = HashSet::new();
        let mut removed: HashSet<StopPage> = HashSet::new();
        for event in events {
            let Ok(at) = usize::try_from(event.group.0) else {
                continue;
            };
            match event.kind {
                EventKind::Stored { key, .. } if self.is_durable(event.tier) => {
                    stored.insert((at, key));
                }
                EventKind::Removed { key } => {
                    removed.insert((at, key));
                }
                EventKind::Cleared => return self.review(),
                EventKind::Stored { .. } => {}
            }
        }
        for page in removed {
            if !self.is_kept(&page) {
                self.end_stops_of(&page);
            }
        }
        for page in stored {
            self.write_stops_of(&page);
        }
    }

    /// Ends the stops of which a page is in no place any more.
    fn review(&self) {
        let pages: Vec<StopPage> = self.shared.book.lock().by_page.keys().copied().collect();
        for page in pages {
            if !self.is_kept(&page) {
                self.end_stops_of(&page);
            }
        }
    }

    fn is_durable(&self, tier: TierId) -> bool {
        let mut tiers = self.shared.tiers.iter();
        tiers.any(|one| one.id() == tier && one.abilities().is_durable)
    }

    fn is_kept(&self, (at, key): &StopPage) -> bool {
        let cache = self.caches.get(*at);
        cache.is_some_and(|cache| cache.keeps_block(key))
    }

    /// Removes what only the stops of a lost page needed.
    fn end_stops_of(&self, page: &StopPage) {
        let mut orphans: HashMap<usize, Vec<BlockKey>> = HashMap::new();
        let mut book = self.shared.book.lock();
        for stop in book.of_page(page) {
            let Some(ended) = book.remove(&stop) else {
                continue;
            };
            for of_stop in ended.pages {
                if !book.by_page.contains_key(&of_stop) {
                    let (at, key) = of_stop;
                    orphans.entry(at).or_default().push(key);
                }
            }
        }
        drop(book);
        for (at, keys) in orphans {
            if let Some(cache) = self.caches.get(at) {
                cache.remove_blocks(&keys);
            }
        }
    }

    /// Queues the other pages of the stops of a page that became durable.
    fn write_stops_of(&self, page: &StopPage) {
        let mut due: HashMap<usize, Vec<BlockKey>> = HashMap::new();
        let book = self.shared.book.lock();
        for stop in book.of_page(page) {
            if let Some(known) = book.stops.get(&stop) {
                for &(at, key) in known.pages.iter().chain(&known.spine) {
                    due.entry(at).or_default().push(key);
                }
            }
        }
        drop(book);
        for (at, keys) in due {
            if let Some(cache) = self.caches.get(at) {
                cache.write_soon(&keys);
            }
        }
    }
}
