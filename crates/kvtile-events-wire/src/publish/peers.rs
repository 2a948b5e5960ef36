//! The subscribers of a publisher.

use std::{
    net::TcpStream,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering},
        mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel},
    },
    thread,
};

use super::{PublisherParts, TURN, past::PastMessage};
use crate::zmtp::{Connection, SocketType};

/// Most subscriptions of one subscriber.
const TOPICS_MAX: usize = 1_000;

/// A subscriber.
#[derive(Debug)]
struct PublisherPeer {
    number: u64,
    /// Beginnings of the topics that it receives.
    topics: Vec<Vec<u8>>,
    queue: SyncSender<Arc<PastMessage>>,
    /// Bytes of messages that are queued and not written.
    waiting: Arc<AtomicUsize>,
    connection: Connection,
}

/// The subscribers.
#[derive(Debug, Default)]
pub(super) struct PublisherPeers {
    peers: Mutex<Vec<PublisherPeer>>,
    numbers: AtomicU64,
}

impl PublisherPeers {
    /// Each change of the list is one step.
    fn lock(&self) -> MutexGuard<'_, Vec<PublisherPeer>> {
        self.peers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn subscribed(&self) -> usize {
        let peers = self.lock();
        peers.iter().filter(|peer| !peer.topics.is_empty()).count()
    }

    /// Bytes of messages that are queued and not written.
    pub(super) fn waiting(&self) -> usize {
        let peers = self.lock();
        let waiting = peers
            .iter()
            .map(|peer| peer.waiting.load(Ordering::Acquire));
        waiting.sum()
    }

    /// Queues a message for the subscribers of its topic. Returns for how many there was no room.
    pub(super) fn send(&self, message: &Arc<PastMessage>, bytes_max: usize) -> u64 {
        let mut dropped = 0;
        for peer in self.lock().iter() {
            let topic = message.topic.as_bytes();
            if !peer.topics.iter().any(|start| topic.starts_with(start)) {
                continue;
            }
            let bytes = message.payload.len();
            let waiting = peer.waiting.fetch_add(bytes, Ordering::AcqRel);
            let is_full = waiting > 0 && waiting.saturating_add(bytes) > bytes_max;
            if is_full || peer.queue.try_send(Arc::clone(message)).is_err() {
                peer.waiting.fetch_sub(bytes, Ordering::AcqRel);
                dropped += 1;
            }
        }
        dropped
    }

    /// Adds or ends a subscription: a message of 1 or 0 and the beginning of a topic.
    fn subscribe(&self, number: u64, message: &[u8]) {
        let mut peers = self.lock();
        let peer = peers.iter_mut().find(|peer| peer.number == number);
        let (Some(peer), Some((&what, topic))) = (peer, message.split_first()) else {
            return;
        };
        match what {
            1 if peer.topics.len() < TOPICS_MAX => peer.topics.push(topic.to_vec()),
            0 => {
                // Each subscription ends once.
                if let Some(at) = peer.topics.iter().position(|known| known == topic) {
                    peer.topics.swap_remove(at);
                }
            }
            _ => {}
        }
    }

    fn remove(&self, number: u64) {
        self.lock().retain(|peer| peer.number != number);
    }

    /// Ends all connections.
    pub(super) fn close(&self) {
        for peer in self.lock().drain(..) {
            peer.connection.shut();
        }
    }
}

/// Serves a subscriber until it closes.
pub(super) fn serve(parts: &Arc<PublisherParts>, stream: TcpStream) {
    let Ok(mut reading) = Connection::open(stream, SocketType::Pub) else {
        return;
    };
    let Some(number) = admit(parts, &reading) else {
        return;
    };
    while !parts.is_closing() {
        match reading.next(TURN) {
            Ok(Some(frames)) => {
                if let [message] = frames.as_slice() {
                    parts.peers.subscribe(number, message);
                }
            }
            Ok(None) => {}
            Err(_) => break,
        }
    }
    parts.peers.remove(number);
    reading.shut();
}

/// Adds a subscriber and starts the thread that writes to it. `None` where the system has no thread.
fn admit(parts: &Arc<PublisherParts>, connection: &Connection) -> Option<u64> {
    let (queue, messages) = sync_channel(parts.settings.queue_messages);
    let writing = connection.split().ok()?;
    let kept = connection.split().ok()?;
    let waiting = Arc::new(AtomicUsize::new(0));
    let number = parts.peers.numbers.fetch_add(1, Ordering::Relaxed);
    let mut peers = parts.peers.lock();
    let unwritten = Arc::clone(&waiting);
    let shared = Arc::clone(parts);
    let writer = thread::Builder::new().name("kvtile-events".to_owned());
    writer
        .spawn(move || write(&shared, writing, &messages, &unwritten))
        .ok()?;
    peers.push(PublisherPeer {
        number,
        topics: Vec::new(),
        queue,
        waiting,
        connection: kept,
    });
    Some(number)
}

/// Writes queued messages until the subscriber is removed or does not take one in time.
fn write(
    parts: &PublisherParts,
    mut connection: Connection,
    messages: &Receiver<Arc<PastMessage>>,
    unwritten: &AtomicUsize,
) {
    while !parts.is_closing() {
        let message = match messages.recv_timeout(TURN) {
            Ok(message) => message,
            Err(RecvTimeoutError::Timeout) => continue,
            Err(RecvTimeoutError::Disconnected) => break,
        };
        let sequence = message.sequence.to_be_bytes();
        let written = connection.write(&[message.topic.as_bytes(), &sequence, &message.payload]);
        unwritten.fetch_sub(message.payload.len(), Ordering::AcqRel);
        if written.is_err() {
            // Part of a message may be written, so nothing can follow it.
            connection.shut();
            break;
        }
    }
}
