//! A subscriber: a SUB socket that connects again, and requests of missed batches.

mod replay;

use std::{
    collections::VecDeque,
    thread,
    time::{Duration, Instant},
};

use crate::{
    error::WireError,
    event::WireBatch,
    zmtp::{Connection, Endpoint, SocketType},
};

/// Time between two attempts to connect.
const AGAIN: Duration = Duration::from_millis(200);

/// The settings of a subscriber.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SubscriberSettings {
    /// The PUB socket: `tcp://HOST:PORT`.
    pub endpoint: String,
    /// The ROUTER socket for missed batches; `None` to do without them.
    pub replay_endpoint: Option<String>,
    /// The beginning of the topics to receive; empty for all.
    pub topic: String,
    /// Time limit of a replay.
    pub replay_within: Duration,
}

impl SubscriberSettings {
    /// All topics, without replays.
    #[must_use]
    pub fn new(endpoint: &str) -> SubscriberSettings {
        SubscriberSettings {
            endpoint: endpoint.to_owned(),
            replay_endpoint: None,
            topic: String::new(),
            replay_within: Duration::from_secs(5),
        }
    }
}

/// A batch that came.
#[derive(Clone, Debug, PartialEq)]
pub struct ReceivedBatch {
    /// Its topic.
    pub topic: String,
    /// Its number.
    pub sequence: u64,
    /// The batch.
    pub batch: WireBatch,
    /// Batches between the one before it and this one that did not come.
    pub missed: u64,
    /// Whether its number does not rise: the publisher began anew.
    pub is_restart: bool,
}

/// A message: topic, number, batch in bytes.
type WireMessage = (String, u64, Vec<u8>);

/// A message that is not decoded yet.
#[derive(Debug)]
struct PendingMessage {
    message: WireMessage,
    missed: u64,
    is_restart: bool,
}

/// A subscriber.
#[derive(Debug)]
pub struct WireSubscriber {
    settings: SubscriberSettings,
    endpoint: Endpoint,
    replay_endpoint: Option<Endpoint>,
    connection: Option<Connection>,
    /// The number that follows the last batch; `None` before the first one.
    next: Option<u64>,
    pending: VecDeque<PendingMessage>,
    damaged: u64,
}

impl WireSubscriber {
    /// Connects and subscribes.
    ///
    /// # Errors
    /// [`WireError::Endpoint`], [`WireError::Socket`], and [`WireError::Peer`] where no PUB socket answers.
    pub fn connect(settings: &SubscriberSettings) -> Result<WireSubscriber, WireError> {
        let replay_endpoint = settings.replay_endpoint.as_deref();
        let mut subscriber = WireSubscriber {
            endpoint: Endpoint::parse(&settings.endpoint)?,
            replay_endpoint: replay_endpoint.map(Endpoint::parse).transpose()?,
            settings: settings.clone(),
            connection: None,
            next: None,
            pending: VecDeque::new(),
            damaged: 0,
        };
        subscriber.connection = Some(subscriber.subscribe()?);
        Ok(subscriber)
    }

    fn subscribe(&self) -> Result<Connection, WireError> {
        let mut connection = Connection::open(self.endpoint.connect()?, SocketType::Sub)?;
        let subscription = [&[1], self.settings.topic.as_bytes()].concat();
        let sent = connection.write(&[&subscription]);
        sent.map_err(|source| WireError::Socket {
            operation: "subscribe to",
            endpoint: self.endpoint.to_string(),
            source,
        })?;
        Ok(connection)
    }

    /// Messages that were no batches.
    #[must_use]
    pub fn damaged(&self) -> u64 {
        self.damaged
    }

    /// The next batch; `None` where none comes within the time. After a lost connection it connects again.
    /// With a replay endpoint, batches that the publisher still has come before the first live one, and
    /// missed ones before the one that follows them.
    pub fn next(&mut self, within: Duration) -> Option<ReceivedBatch> {
        let end = Instant::now() + within;
        loop {
            while let Some(pending) = self.pending.pop_front() {
                match decode(pending) {
                    Ok(batch) => return Some(batch),
                    Err(_) => self.damaged += 1,
                }
            }
            let left = end.checked_duration_since(Instant::now())?;
            match self.receive(left) {
                Some(message) => self.take(message),
                None if Instant::now() >= end => return None,
                None => {}
            }
        }
    }

    /// A message from the connection, which is made anew where it is lost.
    fn receive(&mut self, within: Duration) -> Option<WireMessage> {
        let Some(connection) = &mut self.connection else {
            match self.subscribe() {
                Ok(connection) => self.connection = Some(connection),
                Err(_) => thread::sleep(AGAIN.min(within)),
            }
            return None;
        };
        match connection.next(within) {
            Ok(Some(frames)) => {
                let message = message(frames);
                self.damaged += u64::from(message.is_none());
                message
            }
            Ok(None) => None,
            Err(_) => {
                self.connection = None;
                None
            }
        }
    }

    /// Adds the batch of a message, after those that were missed before it.
    fn take(&mut self, message: WireMessage) {
        let sequence = message.1;
        let is_restart = self.next.is_some_and(|next| sequence < next);
        let expected = self.next.filter(|_| !is_restart);
        let from = expected.unwrap_or_default();
        let mut messages = match sequence > from {
            true => self.missed(from, sequence),
            false => Vec::new(),
        };
        messages.push(message);
        // Before the first batch of all none is missed.
        let first = messages.first().map_or(sequence, |first| first.1);
        let mut expected = if self.next.is_none() { first } else { from };
        let mut is_restart = is_restart;
        for message in messages {
            let missed = message.1.saturating_sub(expected);
            expected = message.1.saturating_add(1);
            self.next = Some(expected);
            self.pending.push_back(PendingMessage {
                message,
                missed,
                is_restart: std::mem::take(&mut is_restart),
            });
        }
    }

    /// The batches of a range of numbers, from the publisher's past.
    fn missed(&self, from: u64, until: u64) -> Vec<WireMessage> {
        let Some(endpoint) = &self.replay_endpoint else {
            return Vec::new();
        };
        let messages = replay::request(endpoint, (from, until), self.settings.replay_within);
        let topic = self.settings.topic.as_str();
        let wanted = messages
            .into_iter()
            .filter(|message| message.0.starts_with(topic));
        wanted.collect()
    }
}

/// The batch of a message.
fn decode(pending: PendingMessage) -> Result<ReceivedBatch, WireError> {
    let (topic, sequence, payload) = pending.message;
    Ok(ReceivedBatch {
        topic,
        sequence,
        batch: WireBatch::decode(&payload)?,
        missed: pending.missed,
        is_restart: pending.is_restart,
    })
}

/// The message of three frames.
fn message(frames: Vec<Vec<u8>>) -> Option<WireMessage> {
    let [topic, sequence, payload] = <[Vec<u8>; 3]>::try_from(frames).ok()?;
    let sequence = u64::from_be_bytes(<[u8; 8]>::try_from(sequence.as_slice()).ok()?);
    Some((String::from_utf8(topic).ok()?, sequence, payload))
}
