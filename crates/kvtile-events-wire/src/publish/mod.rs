//! A publisher: a PUB socket, and a ROUTER socket that sends past batches again.
//!
//! Each subscriber has a thread that reads its subscriptions, a queue, and a thread that writes. A subscriber
//! that does not take its messages loses those that find its queue full, as with every PUB socket; it sees the
//! gap in the numbers and requests them.

mod past;
mod peers;

use std::{
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use self::{
    past::{PastBatches, PastMessage},
    peers::PublisherPeers,
};
use crate::{error::WireError, event::WireBatch, zmtp::Endpoint};

/// How long a thread waits before it looks whether the publisher closes.
const TURN: Duration = Duration::from_millis(20);

/// The settings of a publisher.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PublisherSettings {
    /// Where the PUB socket listens: `tcp://HOST:PORT`, `tcp://*:PORT`; port 0 for any free one.
    pub endpoint: String,
    /// Where the ROUTER socket listens; `None` for no replays.
    pub replay_endpoint: Option<String>,
    /// The topic of messages.
    pub topic: String,
    /// Past batches that are kept for replays.
    pub past_batches: usize,
    /// Bytes of past batches that are kept.
    pub past_bytes: usize,
    /// Messages that wait for one subscriber; their bytes are bounded by `past_bytes`.
    pub queue_messages: usize,
    /// The most connections of each socket. A further connection is closed at once.
    pub peers_max: usize,
}

impl PublisherSettings {
    /// The defaults of vLLM: 10,000 past batches, no topic, no replays.
    #[must_use]
    pub fn new(endpoint: &str) -> PublisherSettings {
        PublisherSettings {
            endpoint: endpoint.to_owned(),
            replay_endpoint: None,
            topic: String::new(),
            past_batches: 10_000,
            past_bytes: 256 << 20,
            queue_messages: 10_000,
            peers_max: 64,
        }
    }

    /// The settings of the publisher with this number: its ports are higher by the number, as those of vLLM's
    /// data-parallel ranks are. Port 0 stays any free one.
    ///
    /// # Errors
    /// [`WireError::Endpoint`] for an address of another form, or a port above 65,535.
    pub fn numbered(&self, number: u16) -> Result<PublisherSettings, WireError> {
        let higher = |endpoint: &str| {
            let higher = Endpoint::parse(endpoint)?.higher(number);
            higher.ok_or_else(|| WireError::Endpoint {
                endpoint: format!("{endpoint} + {number}"),
            })
        };
        let replay = self.replay_endpoint.as_deref().map(higher).transpose()?;
        Ok(PublisherSettings {
            endpoint: higher(&self.endpoint)?.to_string(),
            replay_endpoint: replay.map(|endpoint| endpoint.to_string()),
            ..self.clone()
        })
    }
}

/// What the threads of a publisher share.
#[derive(Debug)]
struct PublisherParts {
    settings: PublisherSettings,
    past: Mutex<PastBatches>,
    peers: PublisherPeers,
    is_closing: AtomicBool,
    dropped: AtomicU64,
}

impl PublisherParts {
    /// No code that holds the lock panics between two changes that belong together.
    fn past(&self) -> MutexGuard<'_, PastBatches> {
        self.past.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_closing(&self) -> bool {
        self.is_closing.load(Ordering::Acquire)
    }
}

/// A publisher of batches. Dropping it closes its sockets at once.
#[derive(Debug)]
pub struct WirePublisher {
    parts: Arc<PublisherParts>,
    address: SocketAddr,
    replay_address: Option<SocketAddr>,
}

impl WirePublisher {
    /// Binds the sockets and starts their threads.
    ///
    /// # Errors
    /// [`WireError::Endpoint`], [`WireError::Socket`].
    pub fn bind(settings: &PublisherSettings) -> Result<WirePublisher, WireError> {
        let (listener, address) = Endpoint::parse(&settings.endpoint)?.bind()?;
        let replay = settings.replay_endpoint.as_deref();
        let replay = replay
            .map(|text| Endpoint::parse(text)?.bind())
            .transpose()?;
        let parts = Arc::new(PublisherParts {
            past: Mutex::new(PastBatches::new(settings.past_batches, settings.past_bytes)),
            peers: PublisherPeers::default(),
            is_closing: AtomicBool::new(false),
            dropped: AtomicU64::new(0),
            settings: settings.clone(),
        });
        accept(listener, &settings.endpoint, &parts, peers::serve)?;
        let mut replay_address = None;
        if let (Some((listener, address)), Some(text)) = (replay, &settings.replay_endpoint) {
            replay_address = Some(address);
            accept(listener, text, &parts, past::serve)?;
        }
        Ok(WirePublisher {
            parts,
            address,
            replay_address,
        })
    }

    /// The address of the PUB socket.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The address of the ROUTER socket.
    #[must_use]
    pub fn replay_address(&self) -> Option<SocketAddr> {
        self.replay_address
    }

    /// Subscribers with at least one subscription.
    #[must_use]
    pub fn subscribers(&self) -> usize {
        self.parts.peers.subscribed()
    }

    /// Messages that found the queue of a subscriber full.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.parts.dropped.load(Ordering::Relaxed)
    }

    /// Publishes a batch with the next sequence number, from 0 on, and returns the number.
    pub fn publish(&self, batch: &WireBatch) -> u64 {
        self.publish_on(&self.parts.settings.topic, batch)
    }

    /// As [`publish`](Self::publish), with a topic of its own.
    pub fn publish_on(&self, topic: &str, batch: &WireBatch) -> u64 {
        let payload = batch.encode();
        let mut past = self.parts.past();
        let sequence = past.next();
        self.send(&mut past, topic.to_owned(), sequence, payload);
        sequence
    }

    /// Publishes a batch with a topic and a number of its own. A number that does not rise is that of a
    /// publisher which began anew: the past batches are dropped.
    pub fn publish_as(&self, topic: &str, sequence: u64, batch: &WireBatch) {
        let payload = batch.encode();
        let mut past = self.parts.past();
        if sequence < past.next() {
            past.clear();
        }
        self.send(&mut past, topic.to_owned(), sequence, payload);
    }

    /// Queues a message. The lock on the past keeps the order of messages equal for all.
    fn send(&self, past: &mut PastBatches, topic: String, sequence: u64, payload: Vec<u8>) {
        let message = Arc::new(PastMessage {
            topic,
            sequence,
            payload,
        });
        past.push(Arc::clone(&message));
        let bytes_max = self.parts.settings.past_bytes;
        let dropped = self.parts.peers.send(&message, bytes_max);
        self.parts.dropped.fetch_add(dropped, Ordering::Relaxed);
    }

    /// Waits until all messages are written, at most so long, and closes. Returns whether all were.
    #[must_use]
    pub fn close(self, within: Duration) -> bool {
        let end = Instant::now() + within;
        while self.waiting() > 0 && Instant::now() < end {
            thread::sleep(TURN);
        }
        self.waiting() == 0
    }

    /// Bytes of messages that are queued for subscribers and not written.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.parts.peers.waiting()
    }
}

impl Drop for WirePublisher {
    fn drop(&mut self) {
        self.parts.is_closing.store(true, Ordering::Release);
        self.parts.peers.close();
    }
}

/// Starts a thread that accepts connections and serves each on a thread of its own.
fn accept(
    listener: TcpListener,
    endpoint: &str,
    parts: &Arc<PublisherParts>,
    serve: fn(&Arc<PublisherParts>, TcpStream),
) -> Result<(), WireError> {
    let failed = |source| WireError::Socket {
        operation: "listen on",
        endpoint: endpoint.to_owned(),
        source,
    };
    listener.set_nonblocking(true).map_err(failed)?;
    let parts = Arc::clone(parts);
    let open = Arc::new(AtomicUsize::new(0));
    let run = move || {
        while !parts.is_closing() {
            let Ok((stream, _)) = listener.accept() else {
                thread::sleep(TURN);
                continue;
            };
            // The flag of the listener is not that of the connection on every system.
            if stream.set_nonblocking(false).is_err() {
                continue;
            }
            if open.load(Ordering::Acquire) >= parts.settings.peers_max {
                continue;
            }
            open.fetch_add(1, Ordering::AcqRel);
            let (parts, served) = (Arc::clone(&parts), Arc::clone(&open));
            let thread = thread::Builder::new().name("kvtile-events".to_owned());
            let thread = thread.spawn(move || {
                serve(&parts, stream);
                served.fetch_sub(1, Ordering::AcqRel);
            });
            if thread.is_err() {
                // The connection is closed, and the peer tries again.
                open.fetch_sub(1, Ordering::AcqRel);
            }
        }
    };
    let thread = thread::Builder::new().name("kvtile-events".to_owned());
    thread.spawn(run).map(drop).map_err(failed)
}
