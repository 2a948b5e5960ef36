//! A lookup, load or store that a cache refuses or cannot complete.

use std::{io, sync::Arc, time::Duration};

use kvtile_blocks::events::TierId;
use thiserror::Error;

/// A lookup, load or store that a cache refuses or cannot complete.
#[derive(Clone, Debug, Error)]
#[non_exhaustive]
pub enum RequestError {
    /// More destinations than blocks in the match.
    #[error("{destinations} destinations for a match of {blocks} blocks")]
    TooManyDestinations {
        /// Destination ids that were given.
        destinations: usize,
        /// Blocks of the match.
        blocks: usize,
    },
    /// A match that another cache returned.
    #[error("the match was found in another cache; look its keys up in this one")]
    OtherCache,
    /// Fewer keys than blocks to store.
    #[error(
        "{blocks} blocks from block {first} of the chain on, and only {keys} keys; give the keys \
         of the whole chain"
    )]
    TooFewKeys {
        /// Number of keys that were given.
        keys: usize,
        /// Index of the first block to store.
        first: usize,
        /// Number of blocks to store.
        blocks: usize,
    },
    /// A block id outside the engine's layout, or outside the other layout that was given.
    #[error("engine block {block} is not one of its {blocks}")]
    EngineBlockOutOfRange {
        /// The id.
        block: usize,
        /// Number of blocks of the layout.
        blocks: u64,
    },
    /// The same engine block twice in one list.
    #[error("engine block {block} is twice in one list")]
    EngineBlockTwice {
        /// The id.
        block: usize,
    },
    /// The queue is full. No job was queued; continue without the cache.
    #[error(
        "{waiting} of {capacity} jobs wait already; compute the blocks instead, or try again later"
    )]
    Busy {
        /// Jobs in the queue.
        waiting: usize,
        /// Capacity of the queue.
        capacity: usize,
    },
    /// The cache is closed.
    #[error("the cache is closed")]
    Closed,
    /// A tier that the cache does not have.
    #[error("this cache has no {tier} tier")]
    NoSuchTier {
        /// The tier.
        tier: TierId,
    },
    /// A component panicked: a medium, a clock, or kvtile itself. The process's log has the panic
    /// message.
    #[error("{what} panicked; the operation counts as failed")]
    Panicked {
        /// The component.
        what: &'static str,
    },
    /// The system refused to start a thread.
    #[error("cannot start a thread for the cache")]
    Thread {
        /// The system's error.
        source: Arc<io::Error>,
    },
    /// A tier did not complete an operation in time. The cache does not use the tier until a
    /// backoff has passed.
    #[error("the {tier} tier did not {operation} within {} ms", within.as_millis())]
    Late {
        /// The tier.
        tier: TierId,
        /// The operation.
        operation: &'static str,
        /// How long the cache waited.
        within: Duration,
    },
    /// A group that a block store does not have.
    #[error("this store has no group {group}; its groups are {groups}")]
    NoSuchStoreGroup {
        /// The group.
        group: String,
        /// The names of its groups.
        groups: String,
    },
    /// A group that a cache over groups does not have.
    #[error("this cache has no group {group:?}; its groups are {groups}")]
    NoSuchCacheGroup {
        /// The group.
        group: String,
        /// The names of its groups.
        groups: String,
    },
    /// A group twice in one load or store over groups.
    #[error("group {group:?} is twice in one request; give each group once")]
    GroupTwiceInRequest {
        /// The group.
        group: String,
    },
    /// Blocks of a group without a layout, neither the call's nor the cache's.
    #[error(
        "the blocks of group {group:?} have no layout: the cache was opened without one for it; give the call the \
         layout of the blocks"
    )]
    NoLayout {
        /// The group.
        group: String,
    },
    /// Another number of blocks than a stop needs of a group.
    #[error(
        "{blocks} blocks for group {group:?}, and the stop at {stop} tokens needs its pages {first} to {end} \
         (exclusive): give one block for each, or the tokens that the engine has itself"
    )]
    StopPages {
        /// The group.
        group: String,
        /// The stop, in tokens.
        stop: u64,
        /// The first needed page.
        first: u64,
        /// The end of the needed pages.
        end: u64,
        /// Blocks that were given.
        blocks: usize,
    },
    /// A position that cannot be a stop.
    #[error(
        "a request of {tokens} tokens has no stop at {stop}; stops are the multiples of {unit} from {unit} to {tokens}"
    )]
    NoStop {
        /// The position, in tokens.
        stop: u64,
        /// The distance of possible stops, in tokens.
        unit: u64,
        /// Tokens of the keys that were given.
        tokens: u64,
    },
    /// Blocks of a group that no lookup finds without a stop.
    #[error(
        "blocks of group {group:?} without a stop would never be found; give the stop that they belong to"
    )]
    NoStopGiven {
        /// The group.
        group: String,
    },
    /// Lists of one job with different lengths.
    #[error("{keys} keys and {found} {list}; give one for each key")]
    UnequalLists {
        /// Number of keys.
        keys: usize,
        /// The other list.
        list: &'static str,
        /// Its length.
        found: usize,
    },
    /// Rows that another block store registered.
    #[error("the rows are registered with another store; register them with this one")]
    OtherStore,
    /// Rows that were released.
    #[error("the rows were released; register the memory again")]
    RowsReleased,
    /// A store into a block store that only reads.
    #[error("this store only reads its folder; store the blocks in the process that writes it")]
    ReadOnlyStore,
    /// Work of a device to wait for, in a call whose layout is not in memory of a device.
    #[error(
        "the layout is not in memory of a device, so a load or a store of it cannot start after work of one; leave out `after`"
    )]
    NoDeviceToWait,
    /// A call that only the process with the tiers can answer.
    #[error("this cache is connected to a daemon, which {what}")]
    Connected {
        /// What the daemon does.
        what: &'static str,
    },
    /// No daemon at the socket.
    #[error(
        "no daemon answers at {socket}: {source}; start one with `kvtile serve --socket {socket}`"
    )]
    NoDaemon {
        /// The socket.
        socket: String,
        /// The system's error.
        source: Arc<io::Error>,
    },
    /// The connection to the daemon has ended. The cache connects again by itself.
    #[error(
        "the connection to the daemon has ended; compute the blocks instead, or try again later"
    )]
    Disconnected,
    /// The daemon did not answer in time.
    #[error("the daemon did not answer within {} ms; compute the blocks instead", within.as_millis())]
    NoAnswer {
        /// How long the call waited.
        within: Duration,
    },
    /// The daemon, or the handshake with it, refused the request.
    #[error("{text}")]
    Refused {
        /// The message.
        text: String,
    },
}
