//! A panic on a thread of the daemon ends a session or a call, and no client waits for it.

use std::{
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use kvtile_blocks::events::TierId;
use kvtile_daemon::Daemon;
use kvtile_tiers::{
    RequestError, TierError,
    cache::{Cache, CacheSettings, Clock, SystemClock},
};
use parking_lot::Mutex;

use super::common::{Node, chain, eventually, is_idle, load, store};

/// Less than a client waits for an answer.
const SOON: Duration = Duration::from_secs(10);

/// A clock that panics on the threads with this beginning of their names.
#[derive(Default)]
struct ThreadPanicClock {
    clock: SystemClock,
    threads: Mutex<Option<&'static str>>,
}

impl Clock for ThreadPanicClock {
    fn now(&self) -> Duration {
        let thread = thread::current();
        let name = thread.name().unwrap_or_default();
        let is_meant = self
            .threads
            .lock()
            .is_some_and(|start| name.starts_with(start));
        assert!(!is_meant, "the clock panics for the test");
        self.clock.now()
    }
}

fn daemon_with_clock(node: &Node) -> (Daemon, Arc<ThreadPanicClock>) {
    let clock = Arc::new(ThreadPanicClock::default());
    let ours = Arc::clone(&clock);
    let maker = move |settings: CacheSettings| {
        let clock = Arc::clone(&ours);
        Ok(Cache::builder(settings).clock(clock))
    };
    let daemon = Daemon::start_with(node.settings(16), Arc::new(maker)).unwrap();
    (daemon, clock)
}

#[test]
fn a_request_that_panics_ends_the_session_and_the_client_connects_again() {
    let node = Node::new();
    let (daemon, clock) = daemon_with_clock(&node);
    let cache = node.connect();
    let keys = chain(1, 4);
    assert_eq!(store(&cache, &keys, 0).stored, 4);
    for round in 0..3 {
        *clock.threads.lock() = Some("kvtile-session-");
        let begin = Instant::now();
        assert_eq!(cache.lookup(&keys).blocks(), 0, "round {round}");
        assert!(
            begin.elapsed() < SOON,
            "the client waits for a panicked session"
        );
        *clock.threads.lock() = None;
        eventually("the client connects again", || cache.is_connected());
        assert_eq!(load(&cache, &keys, 8).blocks, 4);
    }
    eventually("one session, idle", || {
        is_idle(&daemon) && daemon.status().sessions.len() == 1
    });
}

#[test]
fn a_call_that_panics_is_refused_and_the_next_one_is_made() {
    let node = Node::new();
    let (daemon, clock) = daemon_with_clock(&node);
    let cache = node.connect();
    let keys = chain(1, 4);
    assert_eq!(store(&cache, &keys, 0).stored, 4);
    *clock.threads.lock() = Some("kvtile-call-");
    let begin = Instant::now();
    let refused = cache.evict(TierId::HOST, 1).unwrap_err();
    assert!(
        matches!(&refused, TierError::Request(RequestError::Refused { text }) if text.contains("panicked")),
        "{refused}"
    );
    assert!(begin.elapsed() < SOON);
    *clock.threads.lock() = None;
    assert_eq!(cache.evict(TierId::HOST, 1).unwrap(), 1);
    assert_eq!(load(&cache, &keys, 8).blocks, 3);
    eventually("the daemon is idle", || is_idle(&daemon));
}
