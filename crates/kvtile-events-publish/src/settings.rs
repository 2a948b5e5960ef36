//! The settings of a publisher.

use std::time::Duration;

use kvtile_events_wire::PublisherSettings;

/// The form of block hashes on the wire.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum EventHashes {
    /// A number of 64 bits: the last 8 bytes of the key, big-endian, as vLLM makes numbers of its hashes.
    #[default]
    Numbers,
    /// The 16 bytes of the key.
    Bytes,
}

/// What becomes of stored blocks whose token ids were not given.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum UnknownTokens {
    /// They are published without token ids.
    #[default]
    Publish,
    /// They are not published, but counted. For routers that hash token ids and fail without them.
    LeaveOut,
}

/// The settings of an [`EventPublisher`](crate::EventPublisher).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EventPublisherSettings {
    /// The sockets, the topic, and how many past batches are kept.
    pub sockets: PublisherSettings,
    /// The data-parallel rank of batches.
    pub rank: Option<u64>,
    /// The form of hashes.
    pub hashes: EventHashes,
    /// What becomes of blocks without token ids.
    pub unknown_tokens: UnknownTokens,
    /// Blocks whose token ids are kept until the blocks are stored; the oldest are dropped first.
    pub token_blocks: usize,
    /// How often the log is read.
    pub every: Duration,
}

impl EventPublisherSettings {
    /// Publishes on `tcp://HOST:PORT` (port 0: any free one), without replays and topic; token ids of 65,536
    /// blocks wait for their blocks; the log is read every 10 milliseconds.
    #[must_use]
    pub fn new(endpoint: &str) -> EventPublisherSettings {
        EventPublisherSettings {
            sockets: PublisherSettings::new(endpoint),
            rank: None,
            hashes: EventHashes::default(),
            unknown_tokens: UnknownTokens::default(),
            token_blocks: 65_536,
            every: Duration::from_millis(10),
        }
    }

    /// Sends past batches again on this endpoint.
    #[must_use]
    pub fn replay(mut self, endpoint: &str) -> EventPublisherSettings {
        self.sockets.replay_endpoint = Some(endpoint.to_owned());
        self
    }

    /// The topic of messages.
    #[must_use]
    pub fn topic(mut self, topic: &str) -> EventPublisherSettings {
        topic.clone_into(&mut self.sockets.topic);
        self
    }

    /// The data-parallel rank of batches.
    #[must_use]
    pub fn rank(mut self, rank: u64) -> EventPublisherSettings {
        self.rank = Some(rank);
        self
    }

    /// The form of hashes.
    #[must_use]
    pub fn hashes(mut self, hashes: EventHashes) -> EventPublisherSettings {
        self.hashes = hashes;
        self
    }

    /// What becomes of blocks whose token ids were not given.
    #[must_use]
    pub fn unknown_tokens(mut self, unknown: UnknownTokens) -> EventPublisherSettings {
        self.unknown_tokens = unknown;
        self
    }

    /// Blocks whose token ids are kept until the blocks are stored.
    #[must_use]
    pub fn token_blocks(mut self, blocks: usize) -> EventPublisherSettings {
        self.token_blocks = blocks;
        self
    }

    /// How often the log is read.
    #[must_use]
    pub fn every(mut self, every: Duration) -> EventPublisherSettings {
        self.every = every;
        self
    }
}
