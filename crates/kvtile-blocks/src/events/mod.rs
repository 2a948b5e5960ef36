//! What was stored and removed, in order.
//!
//! Every pool and tier appends its changes to an [`EventLog`], which several may share; routers and
//! indexes read it through a [`Subscriber`]. Each event has a sequence number without gaps, the tier
//! and the group of layers it happened in, and, where a block was stored, the block before it in its chain. The log does not
//! know what is stored: the owners list that for a [`Snapshot`].
//!
//! ```text
//!  sequence   … 41 42 43 │44 45 46 47 48│ 49 …
//!               forgotten │  the ring    │ next
//!                          ▲              ▲
//!                          oldest         EventLog::next_sequence
//! ```
//!
//! **Order.** An owner changes a block and appends the event under one lock of its own; emptying a
//! tier takes all of its locks. So the events of one key of a group in one tier are in the order in which they
//! happened, and the last of them says whether the block is there.
//!
//! **Lagging.** The log is bounded and never waits for a reader. A subscriber that fell behind the
//! ring is told how many events it missed, once, and goes on at the oldest event that is left. What
//! it believes about the tiers is then wrong until it takes a snapshot.
//!
//! **Snapshots.** A [`Snapshot`] is a list of what is stored with two sequence numbers, taken before
//! and after the listing. Whoever starts from the list and applies all events from `from` on, the
//! last event of a key winning, has the exact state as soon as the events below `until` are applied.
//! It does not matter under how many locks the listing was made, as long as each block is listed
//! under the lock under which its events are appended: if a key has an event from `from` on, that
//! event decides, and if it has none, it did not change while the list was made. [`Mirror`] does
//! this.

mod log;
mod mirror;
mod subscriber;
#[cfg(test)]
mod tests;
mod tier;

pub use log::EventLog;
pub use mirror::Mirror;
pub use subscriber::{Lagged, Subscriber};
pub use tier::{TIER_NAME_BYTES_MAX, TierId, TierKind};

use crate::{BlockKey, GroupId};

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventKind {
    /// A block can be found from now on.
    Stored {
        /// Its key.
        key: BlockKey,
        /// The key of the block before it in its chain and group, `None` for the first one.
        parent: Option<BlockKey>,
    },
    /// A block cannot be found any more.
    Removed {
        /// Its key.
        key: BlockKey,
    },
    /// The tier has no block of the group.
    Cleared,
}

/// One change of one group in one tier.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event {
    /// Its place in the log: one more than that of the event before it, whichever tier that was.
    pub sequence: u64,
    /// Where it happened.
    pub tier: TierId,
    /// The group of layers that it happened to: equal keys of two groups are two blocks.
    pub group: GroupId,
    /// What happened.
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

/// What is stored, for a subscriber that starts or lagged. [`EventLog::snapshot`] makes it, and the
/// module's header says what it means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// The first event to apply on top of the list.
    pub from: u64,
    /// The state is exact once all events below this one are applied.
    pub until: u64,
    /// What the owners listed.
    pub blocks: Vec<StoredBlock>,
}
