//! When a tier that only reads folders refreshes its index: after a lookup that finds it old, and
//! for each query.
//!
//! ```text
//! lookup, index older than refresh_after ──┐ at most one is queued
//! ask ─────────────────────────────────────┴─► refresh ──► the answers of all asks before it
//! ```

use std::{sync::Arc, time::Duration};

use kvtile_blocks::{BlockKey, GroupId};
use kvtile_transfer::completion::{Completer, Completion};
use parking_lot::Mutex;

use super::tier::{DiskThreads, given_up};
use crate::{clock::Clock, error::TierError, tier::TierAnswer};

/// Lookups leave a pause of this many times the length of a refresh before the next, so that
/// refreshes of a large folder take at most a tenth of a processor. Asks do not wait for it.
const PAUSE_FACTOR: u32 = 9;

/// An index that refreshes bring up to the disk.
pub(crate) trait RefreshedIndex: Send + Sync + 'static {
    /// What a refresh is, for the error of a query that it did not answer.
    const WHAT: &'static str;

    fn pace(&self) -> &RefreshPace;

    fn clock(&self) -> &dyn Clock;

    /// The age at which a lookup starts a refresh.
    fn refresh_after(&self) -> Duration;

    /// Brings the index up to the disk, for queries of these keys.
    fn refresh(&self, asked: &[&[BlockKey]]) -> Result<(), TierError>;

    /// The number of leading blocks of `keys` in the index of a group.
    fn leading(&self, group: GroupId, keys: &[BlockKey]) -> usize;
}

/// When to refresh.
#[derive(Default)]
pub(crate) struct RefreshPace(Mutex<RefreshPaceState>);

#[derive(Default)]
struct RefreshPaceState {
    /// When the last refresh began.
    began: Option<Duration>,
    /// How long it took.
    took: Duration,
    /// Whether a refresh is queued that has not begun.
    is_queued: bool,
    is_running: bool,
    /// The queries that the next refresh answers.
    asks: Vec<RefreshAsk>,
}

impl RefreshPace {
    /// The opening was a refresh.
    pub(crate) fn opened(&self, now: Duration) {
        self.0.lock().began = Some(now);
    }
}

/// A query that waits for a refresh.
struct RefreshAsk {
    group: GroupId,
    keys: Box<[BlockKey]>,
    completer: Completer<TierAnswer>,
    what: &'static str,
}

impl Drop for RefreshAsk {
    /// Ends a query whose refresh panicked or never began. An earlier answer takes precedence.
    fn drop(&mut self) {
        self.completer.finish(TierAnswer {
            leading: 0,
            failure: Some(given_up(self.what)),
        });
    }
}

/// Queues a refresh if the index is old.
pub(crate) fn refresh_if_old<I: RefreshedIndex>(index: &Arc<I>, threads: &DiskThreads) {
    let now = index.clock().now();
    {
        let mut pace = index.pace().0.lock();
        let pause = pace.took.saturating_mul(PAUSE_FACTOR);
        let pause = pause.max(index.refresh_after());
        let is_fresh = |began: Duration| now.saturating_sub(began) < pause;
        if pace.is_queued || pace.is_running || pace.began.is_some_and(is_fresh) {
            return;
        }
        pace.is_queued = true;
    }
    queue(index, threads);
}

/// Queues a refresh that answers a query, unless one is queued already.
pub(crate) fn ask<I: RefreshedIndex>(
    index: &Arc<I>,
    threads: &DiskThreads,
    (group, keys): (GroupId, &[BlockKey]),
) -> Completion<TierAnswer> {
    let completer = Completer::new(0, 0);
    let completion = completer.completion();
    let ask = RefreshAsk {
        group,
        keys: keys.into(),
        completer,
        what: I::WHAT,
    };
    let is_queued = {
        let mut pace = index.pace().0.lock();
        pace.asks.push(ask);
        std::mem::replace(&mut pace.is_queued, true)
    };
    if !is_queued {
        queue(index, threads);
    }
    completion
}

fn queue<I: RefreshedIndex>(index: &Arc<I>, threads: &DiskThreads) {
    let index = Arc::clone(index);
    threads.run(move || {
        let turn = RefreshTurn::begin(&*index);
        let asked: Vec<&[BlockKey]> = turn.asks.iter().map(|ask| &*ask.keys).collect();
        let refreshed = index.refresh(&asked);
        turn.answer(refreshed.err());
    });
}

/// A refresh that runs, with the queries that it answers.
struct RefreshTurn<'a, I: RefreshedIndex> {
    index: &'a I,
    began: Duration,
    asks: Vec<RefreshAsk>,
}

impl<'a, I: RefreshedIndex> RefreshTurn<'a, I> {
    fn begin(index: &'a I) -> RefreshTurn<'a, I> {
        let began = index.clock().now();
        let mut pace = index.pace().0.lock();
        pace.is_queued = false;
        pace.is_running = true;
        pace.began = Some(began);
        let asks = std::mem::take(&mut pace.asks);
        drop(pace);
        RefreshTurn { index, began, asks }
    }

    fn answer(mut self, failure: Option<TierError>) {
        for ask in std::mem::take(&mut self.asks) {
            ask.completer.finish(TierAnswer {
                leading: self.index.leading(ask.group, &ask.keys),
                failure: failure.clone(),
            });
        }
    }
}

impl<I: RefreshedIndex> Drop for RefreshTurn<'_, I> {
    fn drop(&mut self) {
        let took = self.index.clock().now().saturating_sub(self.began);
        let mut pace = self.index.pace().0.lock();
        pace.is_running = false;
        pace.took = took;
    }
}
