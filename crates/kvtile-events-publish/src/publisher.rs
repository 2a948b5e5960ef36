//! The thread that reads the log of a cache and publishes its changes.

use std::{
    net::SocketAddr,
    sync::Arc,
    thread::{self, JoinHandle},
    time::{Duration, Instant, SystemTime},
};

use kvtile_blocks::{
    BlockKey, GroupId,
    events::{Event, EventSubscriber},
};
use kvtile_events_wire::{WireBatch, WirePublisher};
use kvtile_tiers::EventSource;
use parking_lot::{Condvar, Mutex};

use crate::{
    error::PublishError,
    settings::EventPublisherSettings,
    sockets::EventSockets,
    state::{PublishedState, WireChange},
    tokens::TokenBook,
    wire::WireForm,
};

/// Most changes of one batch.
const BATCH_CHANGES: usize = 1_024;

/// What was published.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct EventPublisherStats {
    /// Batches.
    pub batches: u64,
    /// Blocks that were stored, those sent again included.
    pub stored_blocks: u64,
    /// Blocks that were removed from a kind of memory.
    pub removed_blocks: u64,
    /// How often all blocks were cleared; once at the start.
    pub clears: u64,
    /// Stored blocks that were published without token ids.
    pub without_tokens: u64,
    /// Stored blocks that were not published, as their token ids were not given.
    pub left_out: u64,
    /// How often the log had forgotten events, and a snapshot replaced them.
    pub gaps: u64,
    /// Different blocks that are published now.
    pub blocks: u64,
    /// Subscribers now.
    pub subscribers: u64,
    /// Messages that slow subscribers lost.
    pub dropped_messages: u64,
}

/// What the handle requests of the thread, and how far the thread is.
#[derive(Debug, Default)]
struct PublisherProgress {
    closing: bool,
    again: bool,
    /// The sequence number of the first event that is not published.
    position: u64,
    /// Whether the thread has ended.
    ended: bool,
    counts: EventPublisherStats,
}

#[derive(Debug)]
struct PublisherState {
    progress: Mutex<PublisherProgress>,
    changed: Condvar,
    tokens: Mutex<TokenBook>,
}

/// Publishes the events of a cache or a block store until it is closed or dropped. It keeps neither open; where
/// one is closed, `AllBlocksCleared` is the last event.
///
/// The first event is `AllBlocksCleared`, so that a router forgets what an earlier process published, then come
/// the blocks that are stored already, parents first. Where the log of the cache has forgotten events that were
/// not read, the difference between the published blocks and a snapshot is published: a subscriber sees no gap.
#[derive(Debug)]
pub struct EventPublisher {
    shared: Arc<PublisherState>,
    source: EventSource,
    wire: Arc<WirePublisher>,
    thread: Option<JoinHandle<()>>,
}

impl EventPublisher {
    /// Binds the sockets and starts to publish.
    ///
    /// # Errors
    /// [`PublishError::Wire`] for an address of another form, or one that cannot be bound;
    /// [`PublishError::Thread`].
    pub fn start(
        source: EventSource,
        settings: &EventPublisherSettings,
    ) -> Result<EventPublisher, PublishError> {
        EventPublisher::start_on(EventSockets::bind(settings)?, source)
    }

    /// Starts to publish on sockets that are bound.
    ///
    /// # Errors
    /// [`PublishError::Thread`].
    pub fn start_on(
        sockets: EventSockets,
        source: EventSource,
    ) -> Result<EventPublisher, PublishError> {
        let (wire, settings) = sockets.into_parts();
        let wire = Arc::new(wire);
        let shared = Arc::new(PublisherState {
            progress: Mutex::default(),
            changed: Condvar::new(),
            tokens: Mutex::new(TokenBook::new(settings.token_blocks)),
        });
        let work = PublisherWork {
            shared: Arc::clone(&shared),
            wire: Arc::clone(&wire),
            form: WireForm {
                hashes: settings.hashes,
                source: source.clone(),
            },
            subscriber: source.subscribe(),
            state: PublishedState::new(settings.unknown_tokens),
            topic: settings.sockets.topic,
            rank: settings.rank,
            every: settings.every,
        };
        let thread = thread::Builder::new().name("kvtile-events".to_owned());
        let thread = thread.spawn(move || work.run());
        Ok(EventPublisher {
            shared,
            source,
            wire,
            thread: Some(thread.map_err(PublishError::Thread)?),
        })
    }

    /// The address of the PUB socket.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.wire.address()
    }

    /// The address of the ROUTER socket.
    #[must_use]
    pub fn replay_address(&self) -> Option<SocketAddr> {
        self.wire.replay_address()
    }

    /// Gives the token ids of the blocks of a chain, before they are stored: `tokens` are those of `keys` from
    /// the first on, and may end with an incomplete block. Returns how many blocks have them.
    ///
    /// # Errors
    /// [`PublishError::Tokens`] for fewer tokens than the keys have, or so many that a key is missing.
    pub fn give_tokens(&self, keys: &[BlockKey], tokens: &[u32]) -> Result<usize, PublishError> {
        let page_size = self.source.page_size(GroupId(0)).unwrap_or_default();
        let pages = usize::try_from(page_size).ok().filter(|&size| size > 0);
        let pages = pages.map(|size| tokens.chunks_exact(size));
        match pages {
            Some(pages) if pages.len() == keys.len() => {
                let mut book = self.shared.tokens.lock();
                for (key, tokens) in keys.iter().zip(pages) {
                    book.give(*key, tokens);
                }
                Ok(keys.len())
            }
            _ => Err(PublishError::Tokens {
                tokens: tokens.len(),
                keys: keys.len(),
                page_size,
            }),
        }
    }

    /// Publishes all blocks once more, for subscribers that came after the past batches were dropped, and
    /// with token ids that were given after a block was stored.
    pub fn publish_again(&self) {
        self.shared.progress.lock().again = true;
        self.shared.changed.notify_all();
    }

    /// Waits until what the cache has reported before this call is published. Returns whether it is.
    #[must_use]
    pub fn catch_up(&self, within: Duration) -> bool {
        let until = self.source.next_sequence();
        let end = Instant::now().checked_add(within);
        let mut progress = self.shared.progress.lock();
        let is_done = |progress: &PublisherProgress| progress.position >= until && !progress.again;
        while !is_done(&progress) && !progress.ended {
            self.shared.changed.notify_all();
            match end {
                Some(end)
                    if self
                        .shared
                        .changed
                        .wait_until(&mut progress, end)
                        .timed_out() =>
                {
                    break;
                }
                Some(_) => {}
                None => self.shared.changed.wait(&mut progress),
            }
        }
        is_done(&progress)
    }

    /// What was published.
    #[must_use]
    pub fn stats(&self) -> EventPublisherStats {
        let mut counts = self.shared.progress.lock().counts;
        counts.subscribers = self.wire.subscribers() as u64;
        counts.dropped_messages = self.wire.dropped();
        counts
    }

    /// Publishes what is in the log and `AllBlocksCleared`, waits until subscribers have it, at most so long,
    /// and closes the sockets. Returns whether all was written.
    #[must_use]
    pub fn close(mut self, within: Duration) -> bool {
        self.stop();
        let end = Instant::now().checked_add(within);
        // The thread has ended, and no other has the sockets.
        while self.wire.waiting() > 0 && end.is_none_or(|end| Instant::now() < end) {
            thread::sleep(Duration::from_millis(5));
        }
        self.wire.waiting() == 0
    }

    fn stop(&mut self) {
        let Some(thread) = self.thread.take() else {
            return;
        };
        self.shared.progress.lock().closing = true;
        self.shared.changed.notify_all();
        if thread.join().is_err() {
            log::error!("the thread that publishes events has panicked");
        }
    }
}

impl Drop for EventPublisher {
    fn drop(&mut self) {
        self.stop();
    }
}

/// The state of the thread.
struct PublisherWork {
    shared: Arc<PublisherState>,
    wire: Arc<WirePublisher>,
    form: WireForm,
    subscriber: EventSubscriber,
    state: PublishedState,
    topic: String,
    rank: Option<u64>,
    every: Duration,
}

/// What the thread does next.
enum PublisherTurn {
    Go,
    Again,
    Close,
}

impl Drop for PublisherWork {
    /// The thread ends, also by a panic: nothing waits for it any longer.
    fn drop(&mut self) {
        self.shared.progress.lock().ended = true;
        self.shared.changed.notify_all();
    }
}

impl PublisherWork {
    fn run(mut self) {
        let cleared = self.state.clear();
        self.publish(&[cleared]);
        self.take_snapshot();
        loop {
            match self.turn() {
                PublisherTurn::Go => {}
                PublisherTurn::Again => {
                    let tokens = self.shared.tokens.lock();
                    let again = self.state.again(&|key: &BlockKey| tokens.of(key));
                    drop(tokens);
                    self.publish(&again);
                    self.shared.progress.lock().again = false;
                    self.shared.changed.notify_all();
                }
                PublisherTurn::Close => {
                    while self.read() > 0 {}
                    break;
                }
            }
            let is_open = self.form.source.is_open();
            if self.read() == 0 {
                if !is_open {
                    break;
                }
                self.wait();
            }
        }
        let cleared = self.state.clear();
        self.publish(&[cleared]);
        self.report();
    }

    fn turn(&self) -> PublisherTurn {
        let progress = self.shared.progress.lock();
        match (progress.closing, progress.again) {
            (true, _) => PublisherTurn::Close,
            (false, true) => PublisherTurn::Again,
            (false, false) => PublisherTurn::Go,
        }
    }

    /// Waits for the next turn, or for a request of the handle.
    fn wait(&self) {
        let mut progress = self.shared.progress.lock();
        if !progress.closing && !progress.again {
            let _ = self.shared.changed.wait_for(&mut progress, self.every);
        }
    }

    /// Publishes events of the log. Returns how many there were.
    fn read(&mut self) -> usize {
        let mut events: Vec<Event> = Vec::new();
        match self.subscriber.poll(&mut events, BATCH_CHANGES) {
            Ok(0) => {}
            Ok(_) => {
                let mut changes = Vec::new();
                let tokens = self.shared.tokens.lock();
                for event in &events {
                    let of_key = |key: &BlockKey| tokens.of(key);
                    self.state.apply(event, &of_key, &mut changes);
                }
                drop(tokens);
                self.publish(&changes);
            }
            Err(_) => {
                self.shared.progress.lock().counts.gaps += 1;
                self.take_snapshot();
                return 1;
            }
        }
        self.report();
        events.len()
    }

    /// Publishes the difference to the blocks of the cache. A closed cache has none.
    fn take_snapshot(&mut self) {
        let Some(snapshot) = self.form.source.snapshot() else {
            return;
        };
        self.subscriber.resynchronise(&snapshot);
        let mut changes = Vec::new();
        let tokens = self.shared.tokens.lock();
        let of_key = |key: &BlockKey| tokens.of(key);
        self.state
            .become_equal(snapshot.blocks, &of_key, &mut changes);
        drop(tokens);
        self.publish(&changes);
        self.report();
    }

    fn publish(&self, changes: &[WireChange]) {
        for changes in changes.chunks(BATCH_CHANGES) {
            let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
            let batch = WireBatch {
                time: now.unwrap_or_default().as_secs_f64(),
                events: self.form.events(changes),
                data_parallel_rank: self.rank,
            };
            self.wire.publish_on(&self.topic, &batch);
            let mut progress = self.shared.progress.lock();
            let counts = &mut progress.counts;
            counts.batches += 1;
            for change in changes {
                match change {
                    WireChange::Stored { tokens, .. } => {
                        counts.stored_blocks += 1;
                        counts.without_tokens += u64::from(tokens.is_none());
                    }
                    WireChange::Removed { .. } => counts.removed_blocks += 1,
                    WireChange::AllCleared => counts.clears += 1,
                }
            }
        }
    }

    /// Reports how far the thread is.
    fn report(&self) {
        let mut progress = self.shared.progress.lock();
        progress.counts.left_out = self.state.left_out();
        progress.counts.blocks = self.state.len() as u64;
        let position = self.subscriber.next_sequence();
        if progress.position != position {
            progress.position = position;
            drop(progress);
            self.shared.changed.notify_all();
        }
    }
}
