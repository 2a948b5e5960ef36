//! One part of a model's folder: the follower of its folder, and its bytes in an own block.

use std::{num::NonZeroUsize, path::PathBuf, sync::Arc};

use kvtile_blocks::{
    BlockKey,
    events::{Event, EventKind, EventLog, EventSubscriber, StoredBlock},
};

use super::{cover::PartRectangle, slice::PartSlice, staging::PartStaging};
use crate::{
    disk::{DiskFollower, GROUP, PartFolderName},
    tier::{Tier, TierGroup},
};

/// Events of a part that may wait to be applied. After more of them its blocks are listed anew.
const EVENTS: NonZeroUsize = NonZeroUsize::MIN.saturating_add(4095);

/// The most events that are applied at a time.
const EVENTS_AT_A_TIME: usize = 1024;

/// A part that the tier follows.
#[derive(Debug)]
pub(super) struct FollowedPart {
    pub(super) part: PartFolderName,
    pub(super) folder: PathBuf,
    /// The identity of its blocks.
    pub(super) group: TierGroup,
    pub(super) rectangle: PartRectangle,
    pub(super) follower: DiskFollower,
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
    /// A log for the events of a follower.
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
            EventKind::Stored { key, .. } => self.stored(key),
            EventKind::Removed { key } => Some(PartChange::Removed(key)),
            EventKind::Cleared => Some(PartChange::Cleared),
        };
        events.iter().filter_map(change).collect()
    }

    fn everything(&self, subscriber: &mut EventSubscriber) -> Vec<PartChange> {
        let list = |blocks: &mut Vec<StoredBlock>| self.follower.list(blocks);
        let snapshot = self.events.snapshot(list);
        subscriber.resynchronise(&snapshot);
        let stored = snapshot.blocks.iter();
        let stored = stored.filter_map(|block| self.stored(block.key));
        std::iter::once(PartChange::Cleared).chain(stored).collect()
    }

    /// `None` if the follower does not have the block any more; an event that follows says so.
    fn stored(&self, key: BlockKey) -> Option<PartChange> {
        let hold = self.follower.hold(GROUP, std::slice::from_ref(&key))?;
        Some(PartChange::Stored(key, (hold.parent(0), hold.tenant(0))))
    }
}
