//! Tiers that read other bundles of the same store, with the threads, the breakers, the limits and the counters of one tier.

use std::sync::{Arc, atomic::AtomicBool};

use kvtile_blocks::events::EventLog;
use kvtile_tiers::{TierError, tier::TierGroup};
use parking_lot::Mutex;

use super::{
    SharedTier, SharedTierError, group_bundles, known::KnownBlocks, parts::SharedTierParts,
};
use crate::store::{SharedStore, SharedStoreError, ValueName};

impl SharedTier {
    /// The name of the announcement of the part that the blocks of `group` are; `None` for blocks that are no part.
    pub(crate) fn announcement_of(&self, group: &TierGroup) -> Option<ValueName> {
        let hub = &self.parts;
        let group = group_bundles(&hub.settings, *hub.abilities.best_bytes.end(), group).ok()?;
        group.announcement.map(|one| one.name().clone())
    }

    /// Runs a listing of the store, unless the store is left alone after failures.
    pub(crate) fn list_with<T>(
        &self,
        list: impl FnOnce(&dyn SharedStore) -> Result<T, SharedStoreError>,
    ) -> Result<T, TierError> {
        let hub = &self.parts;
        if !hub.reads.allows(hub.clock.now()) {
            return Err(hub.paused());
        }
        match list(&*hub.store) {
            Ok(listed) => {
                // Not its time: a listing takes longer than the calls whose number follows the latency.
                hub.reads.succeeded(hub.clock.now());
                Ok(listed)
            }
            Err(error) => {
                hub.read_failed(&error);
                Err(hub.store_error(error))
            }
        }
    }

    /// A tier that reads the bundles of `group` and appends its changes to `events`. It writes nothing.
    pub(crate) fn reader(
        self: &Arc<Self>,
        group: &TierGroup,
        events: &Arc<EventLog>,
    ) -> Result<SharedTier, SharedTierError> {
        let hub = &self.parts;
        let group = group_bundles(&hub.settings, *hub.abilities.best_bytes.end(), group)?;
        let known_max = hub.settings.known_blocks_max;
        Ok(SharedTier {
            parts: Arc::new(SharedTierParts {
                id: hub.id,
                store: Arc::clone(&hub.store),
                abilities: hub.abilities.clone(),
                settings: hub.settings.clone(),
                groups: vec![group],
                known: KnownBlocks::new(hub.id, Arc::clone(events), known_max),
                room: Arc::clone(&hub.room),
                open: Default::default(),
                uploads: Default::default(),
                removals: Arc::default(),
                fetches: Mutex::default(),
                threads: Arc::clone(&hub.threads),
                alarm: hub.alarm.clone(),
                pace: Arc::clone(&hub.pace),
                reads: Arc::clone(&hub.reads),
                writes: Arc::clone(&hub.writes),
                counts: Arc::clone(&hub.counts),
                clock: Arc::clone(&hub.clock),
                is_closing: AtomicBool::new(false),
            }),
            stager: None,
            hub: Some(Arc::clone(self)),
        })
    }
}
