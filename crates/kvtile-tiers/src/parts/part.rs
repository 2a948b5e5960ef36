//! One part of a model: the tier that reads it, and its bytes in an own block.

use std::{num::NonZeroUsize, sync::Arc};

use kvtile_blocks::{
    BlockKey,
    events::{Event, EventKind, EventLog, EventSubscriber, StoredBlock},
};

use super::{cover::PartRectangle, slice::PartSlice, staging::PartStaging};
use crate::{
    disk::{DiskFollower, FollowCondition, GROUP, PartFolderName},
    tier::Tier,
};

/// Events of a part that may wait to be applied. After more of them its blocks are listed anew.
const EVENTS: NonZeroUsize = NonZeroUsize::MIN.saturating_add(4095);

/// The most events that are applied at a time.
const EVENTS_AT_A_TIME: usize = 1024;

/// A part that the tier reads.
#[derive(Debug)]
pub(super) struct FollowedPart {
    pub(super) part: PartFolderName,
    pub(super) rectangle: PartRectangle,
    pub(super) tier: Arc<dyn Tier>,
    pub(super) slice: PartSlice,
    pub(super) staging: Arc<PartStaging>,
    pub(super) events: Arc<EventLog>,
}

/// A change of a part's blocks.
pub(super) enum PartChange {
    Stored(BlockKey, (Option<BlockKey>, u32)),
    Removed(BlockKey),
    Cleared,
}

impl FollowedPart {
    /// A log for the events of a part's tier.
    pub(super) fn log() -> Result<Arc<EventLog>, kvtile_blocks::BlocksError> {
        Ok(Arc::new(EventLog::new(EVENTS)?))
    }

    /// The blocks that the part has now, and a reader of later changes.
    pub(super) fn begin(&self) -> (EventSubscriber, Vec<PartChange>) {
        let mut subscriber = self.events.subscribe();
        let all = self.everything(&mut subscriber);
        (subscriber, all)
    }

    /// The changes since the last call.
    pub(super) fn news(&self, subscriber: &mut EventSubscriber) -> Vec<PartChange> {
        let mut events: Vec<Event> = Vec::new();
        loop {
            match subscriber.poll(&mut events, EVENTS_AT_A_TIME) {
                Ok(0) => break,
                Ok(_) => {}
                Err(_) => return self.everything(subscriber),
            }
        }
        let change = |event: &Event| match event.kind {
            EventKind::Stored { key, parent } => self.stored(key, parent),
            EventKind::Removed { key } => PartChange::Removed(key),
            EventKind::Cleared => PartChange::Cleared,
        };
        events.iter().map(change).collect()
    }

    fn everything(&self, subscriber: &mut EventSubscriber) -> Vec<PartChange> {
        let list = |blocks: &mut Vec<StoredBlock>| self.tier.list(blocks);
        let snapshot = self.events.snapshot(list);
        subscriber.resynchronise(&snapshot);
        let stored = snapshot.blocks.iter();
        let stored = stored.map(|block| self.stored(block.key, block.parent));
        std::iter::once(PartChange::Cleared).chain(stored).collect()
    }

    /// The tenant is that of the part's tier, if it finds the block now. If it has removed the block, an event follows.
    fn stored(&self, key: BlockKey, parent: Option<BlockKey>) -> PartChange {
        let hold = self.tier.hold(GROUP, std::slice::from_ref(&key));
        PartChange::Stored(key, (parent, hold.map_or(0, |hold| hold.tenant(0))))
    }

    /// Whether the part can be read.
    pub(super) fn condition(&self) -> FollowCondition {
        let follower = self.tier.as_any().downcast_ref::<DiskFollower>();
        follower.map_or(FollowCondition::Followed, DiskFollower::condition)
    }
}
