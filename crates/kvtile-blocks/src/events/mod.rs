//! An ordered log of stored and removed blocks.
//!
//! Every pool and tier appends its changes to an [`EventLog`], which several may share; routers and
//! indexes read it through an [`EventSubscriber`]. Each event has a gapless sequence number, its
//! tier and its group of layers; a stored event also has the block's parent in its chain. The log
//! does not know which blocks are stored: the owners list them for an [`EventSnapshot`].
//!
//! ```text
//!  sequence   … 41 42 43 │44 45 46 47 48│ 49 …
//!               forgotten │  the ring    │ next
//!                          ▲              ▲
//!                          oldest         EventLog::next_sequence
//! ```
//!
//! **Order.** An owner changes a block and appends the event under one lock of its own; clearing a
//! tier takes all of its locks. So the events of one key, group and tier are in the order of the
//! changes, and the last one states whether the block is stored.
//!
//! **Lagging.** The log is bounded and never waits for a reader. If a subscriber falls behind the
//! ring, one poll reports how many events it missed, and the next continues at the oldest event
//! left. The subscriber's view of the tiers is then wrong until it takes a snapshot.
//!
//! **Snapshots.** An [`EventSnapshot`] is a list of the stored blocks with two sequence numbers,
//! taken before and after the listing. A reader starts from the list and applies all events from `from`
//! on; the last event of a key wins. Its state is exact once all events below `until` are applied.
//! The listing may span any number of locks, as long as each block is listed under the lock under
//! which its events are appended: if a key has an event from `from` on, that event decides; if it
//! has none, the key did not change during the listing. [`EventMirror`] implements this.

mod log;
mod mirror;
mod subscriber;
#[cfg(test)]
mod tests;
mod tier;

pub use log::EventLog;
pub use mirror::EventMirror;
pub use subscriber::{EventSubscriber, Lagged};
pub use tier::{TIER_NAME_BYTES_MAX, TierId, TierKind};

use crate::{BlockKey, GroupId};

/// A change of a block or of a tier.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventKind {
    /// The block can be found from now on.
    Stored {
        /// Its key.
        key: BlockKey,
        /// The key of the block before it in its chain and group, `None` for the first one.
        parent: Option<BlockKey>,
    },
    /// The block can no longer be found.
    Removed {
        /// Its key.
        key: BlockKey,
    },
    /// The tier has no block of the group any more.
    Cleared,
}

/// One change of one group in one tier.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event {
    /// Its sequence number: one more than that of the previous event, of any tier.
    pub sequence: u64,
    /// The tier that changed.
    pub tier: TierId,
    /// The group of layers. The same key in two groups names two blocks.
    pub group: GroupId,
    /// The change.
    pub kind: EventKind,
}

/// A block that a tier holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoredBlock {
    /// Where it is.
    pub tier: TierId,
    /// Its group.
    pub group: GroupId,
    /// Its key.
    pub key: BlockKey,
    /// The key of the block before it in its chain, `None` for the first one.
    pub parent: Option<BlockKey>,
}

/// The stored blocks, for a subscriber that starts or has lagged. [`EventLog::snapshot`] makes it;
/// the module header explains how to use it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EventSnapshot {
    /// The first event to apply on top of the list.
    pub from: u64,
    /// The state is exact once all events below this one are applied.
    pub until: u64,
    /// The blocks that the owners listed.
    pub blocks: Vec<StoredBlock>,
}
