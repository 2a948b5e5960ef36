//! Parts that no rank writes any more, within the limit of the own part.
//!
//! ```text
//! limit    ├──────────────────────────────────────────┤
//!          │ own part ──► grows │ ◄── shrink: old parts, by the own layers and heads in them
//! ```
//!
//! After a change of the number of ranks the parts of the earlier ones serve hits until the new parts
//! take their place. A part is old if it has some of the own layers or heads, is not the own part or a
//! copy of it, and no process has its lock. The tier then takes that lock, evicts blocks in the order of
//! the policy, and returns their disk space. Readers of the part miss what was evicted. A rank
//! that starts in that moment waits for the lock, for a bounded time.

use std::{sync::Arc, time::Duration};

use kvtile_blocks::Tick;
use kvtile_layout::broken;

use super::{PartsShared, cover::PartRectangle, part::FollowedPart, refresh::PartsWatch};
use crate::{
    disk::{self, DiskSettings, DiskTier, LOCK_FILE, Manifest, PartFolderName},
    error::{FolderError, TierError},
    medium::{FolderMedium, Medium},
    tier::{Tier, TierContext},
};

/// The time between two looks at the bytes of the parts.
const LOOK_AFTER: Duration = Duration::from_millis(250);

/// One part in this many of the limit stays free until the next look.
const AHEAD_PART: u64 = 16;

/// One part in this many of the limit is freed at a time: each time opens the old parts.
const FREED_PART: u64 = 8;

/// An old part, and the bytes of it that count here.
struct OldPart {
    part: Arc<FollowedPart>,
    bytes: u64,
}

/// `freed` of every `all` bytes.
#[derive(Clone, Copy)]
struct FreedPart {
    freed: u64,
    all: u64,
}

impl PartsShared {
    /// Evicts blocks of old parts if they and the own part exceed the limit together.
    pub(super) fn bound_old_parts(&self, watch: &mut PartsWatch) {
        let now = self.context.clock.now();
        let waits = watch
            .looked_at
            .is_some_and(|at| now.saturating_sub(at) < LOOK_AFTER);
        let limit = self.settings.source.limit_bytes();
        if waits || limit == 0 {
            return;
        }
        watch.looked_at = Some(now);
        let mut old = self.old_parts();
        if self.excess(&old, limit).is_none() {
            return;
        }
        // A folder that was copied has no holes any more: its room without blocks goes first.
        let with_room: Vec<_> = old
            .iter()
            .filter(|old| watch.released.insert(old.part.part))
            .map(|old| Arc::clone(&old.part))
            .collect();
        if !with_room.is_empty() {
            for part in with_room {
                self.try_to_shrink(&part, None);
            }
            old = self.old_parts();
        }
        let Some(excess) = self.excess(&old, limit) else {
            return;
        };
        for old in old {
            self.try_to_shrink(&old.part, Some(excess));
        }
    }

    /// What the old parts are to give, if they and the own part exceed the limit together.
    fn excess(&self, old: &[OldPart], limit: u64) -> Option<FreedPart> {
        let old_bytes: u64 = old.iter().map(|old| old.bytes).sum();
        let own = PartFolderName::of(&self.layout.shape().shard());
        let own = self.settings.source.folder_of(&own);
        let own_bytes = own.map_or(0, |own| FolderMedium::new(own).kept_bytes().unwrap_or(0));
        let all = old_bytes.saturating_add(own_bytes);
        let most = limit - limit / AHEAD_PART;
        (old_bytes > 0 && all > most).then(|| FreedPart {
            freed: (all - most).saturating_add(limit / FREED_PART),
            all: old_bytes,
        })
    }

    /// The old parts, with the bytes of the own layers and heads in them.
    fn old_parts(&self) -> Vec<OldPart> {
        let shard = self.layout.shape().shard();
        let own = PartRectangle::of(&shard);
        let parts = self.state.read().parts.clone();
        let others = parts.into_iter().filter(|part| part.rectangle != own);
        let found = others.filter_map(|part| {
            let medium = FolderMedium::new(self.settings.source.folder_of(&part.part)?);
            // A lock that cannot be examined counts as held.
            let is_free = medium
                .holder(LOCK_FILE)
                .is_ok_and(|holder| holder.is_none());
            let bytes = is_free.then(|| medium.kept_bytes().unwrap_or(0))?;
            let (shared, all) = part.rectangle.shared_part(&own)?;
            let ours = u128::from(bytes) * shared / all.max(1);
            let bytes = u64::try_from(ours).unwrap_or(bytes);
            (bytes > 0).then_some(OldPart { part, bytes })
        });
        found.collect()
    }

    fn try_to_shrink(&self, part: &FollowedPart, freed: Option<FreedPart>) {
        if let Err(error) = self.shrink(part, freed) {
            log::warn!("the part {} cannot be made smaller: {error}", part.part);
        }
    }

    /// Returns the room without blocks of a part to the disk. Before that it evicts as much of the part as is to be
    /// freed, and removes the part if nothing is left of it then.
    fn shrink(&self, part: &FollowedPart, freed: Option<FreedPart>) -> Result<(), TierError> {
        let Some(folder) = self.settings.source.folder_of(&part.part) else {
            broken(format_args!("a part without a folder was counted"))
        };
        let medium = FolderMedium::new(&folder).freeing_room();
        let context = TierContext {
            groups: vec![part.group.clone()],
            events: FollowedPart::log()?,
            clock: Arc::clone(&self.context.clock),
            threads: 0,
        };
        let Some(manifest) = Manifest::read(&medium)? else {
            // Another reader has removed the part since it was counted.
            return Ok(());
        };
        let settings = DiskSettings::new(&folder, manifest.capacity_bytes());
        let tier = match DiskTier::open_on(Arc::new(medium.clone()), &settings, &context) {
            // Its rank, or another reader that makes it smaller, was faster.
            Err(TierError::Folder(FolderError::InUse { .. })) => return Ok(()),
            opened => opened?,
        };
        let Some(FreedPart { freed, all }) = freed else {
            return tier.release();
        };
        let present = tier.stats().present;
        let wanted = u128::from(present) * u128::from(freed) / u128::from(all.max(1));
        let wanted = usize::try_from(wanted)
            .unwrap_or(usize::MAX)
            .saturating_add(1);
        let evicted = tier.evict(wanted, Tick(0)) as u64;
        let synced = tier.sync().wait();
        let released = match &synced.failure {
            Some(error) => Err(error.clone()),
            None => tier.release(),
        };
        drop(tier);
        log::info!(
            "{evicted} of {present} blocks of the part {} were evicted, which no rank writes",
            part.part
        );
        if evicted < present && released.is_ok() {
            return Ok(());
        }
        // A file system that does not free parts of files frees whole ones.
        match disk::clear(&medium) {
            // Its rank has waited for the lock.
            Err(TierError::Folder(FolderError::InUse { .. })) => Ok(()),
            cleared => cleared,
        }
    }
}
