//! What an observer reads of a block store beside its counters.

use kvtile_blocks::{GroupId, events::TierId};
use kvtile_layout::identity::Identity;

use super::BlockStore;
use crate::{below::TierHealth, error::TierError};

impl BlockStore {
    /// Which operations of a tier are in a backoff after failures; `None` if the store has no such
    /// tier.
    #[must_use]
    pub fn tier_health(&self, tier: TierId) -> Option<TierHealth> {
        let below = self.parts.below.iter().find(|below| below.id == tier)?;
        Some(below.health(self.parts.clock.now()))
    }

    /// The identity of a group's blocks.
    ///
    /// # Errors
    /// A group that the store does not have.
    pub fn identity(&self, group: GroupId) -> Result<&Identity, TierError> {
        Ok(&self.parts.check_group(group)?.identity)
    }
}
