//! The size and behaviour of a pool, as plain data.

use crate::events::{EventLog, TierId};
use crate::policy::EvictionHints;
use crate::{BlocksError, GroupId, Tick};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// The maximum number of blocks of a pool. Each block costs about a hundred bytes of bookkeeping, so a
/// larger pool would take too much memory.
pub const POOL_BLOCKS_MAX: usize = 1 << 26;

/// The tenant that blocks are charged to, and whose quota they count against.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct TenantId(pub u32);

/// The holder of a pin, by the caller's numbering of its requests; only reports show it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct OwnerId(pub u64);

/// How registration treats a key that is registered already.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum DuplicateHandling {
    /// Pins the registered block and frees the new one.
    #[default]
    Share,
    /// Returns the whole batch with an error and registers none of it.
    Refuse,
}

/// The maximum number of blocks that a tenant may hold, cached ones included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TenantQuota {
    /// The tenant.
    pub tenant: TenantId,
    /// The maximum number of blocks.
    pub blocks: usize,
}

/// The settings of a [`BlockPool`](super::BlockPool).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct PoolSettings {
    /// The number of blocks, 1 to [`POOL_BLOCKS_MAX`]; their ids are `0..blocks`.
    pub blocks: usize,
    /// How registration treats a key that is registered already.
    pub duplicates: DuplicateHandling,
    /// Tenants with a quota. Each has its own policy; all other tenants share one, without a limit.
    pub quotas: Vec<TenantQuota>,
    /// The capacity of the queue of lookup hits for the policy, in blocks. When it is full and the
    /// policy's lock is taken, the pool drops the visit and counts it. At most `blocks`.
    pub visit_queue_blocks: usize,
}

impl Default for PoolSettings {
    fn default() -> PoolSettings {
        PoolSettings {
            blocks: 65_536,
            duplicates: DuplicateHandling::Share,
            quotas: Vec::new(),
            visit_queue_blocks: 8_192,
        }
    }
}

impl PoolSettings {
    /// The defaults.
    #[must_use]
    pub fn new() -> PoolSettings {
        PoolSettings::default()
    }

    /// Sets [`blocks`](Self::blocks).
    #[must_use]
    pub fn blocks(mut self, blocks: usize) -> PoolSettings {
        self.blocks = blocks;
        self
    }

    /// Sets [`duplicates`](Self::duplicates).
    #[must_use]
    pub fn duplicates(mut self, duplicates: DuplicateHandling) -> PoolSettings {
        self.duplicates = duplicates;
        self
    }

    /// Sets [`quotas`](Self::quotas).
    #[must_use]
    pub fn quotas(mut self, quotas: Vec<TenantQuota>) -> PoolSettings {
        self.quotas = quotas;
        self
    }

    /// Sets [`visit_queue_blocks`](Self::visit_queue_blocks).
    #[must_use]
    pub fn visit_queue_blocks(mut self, visit_queue_blocks: usize) -> PoolSettings {
        self.visit_queue_blocks = visit_queue_blocks;
        self
    }

    pub(super) fn validate(&self) -> Result<(), BlocksError> {
        if self.blocks == 0 || self.blocks > POOL_BLOCKS_MAX {
            return Err(BlocksError::PoolSize {
                blocks: self.blocks,
                blocks_max: POOL_BLOCKS_MAX,
            });
        }
        for (index, quota) in self.quotas.iter().enumerate() {
            if quota.blocks == 0 {
                return Err(BlocksError::QuotaOfNothing {
                    tenant: quota.tenant,
                });
            }
            let same = |other: &&TenantQuota| other.tenant == quota.tenant;
            if self.quotas.iter().skip(index + 1).any(|q| same(&q)) {
                return Err(BlocksError::TwoQuotas {
                    tenant: quota.tenant,
                });
            }
        }
        Ok(())
    }
}

/// Where a pool reports stored and removed blocks.
#[derive(Clone, Debug)]
pub struct EventSink {
    /// The log.
    pub log: Arc<EventLog>,
    /// The tier that the pool serves.
    pub tier: TierId,
    /// The group of layers of the pool's blocks.
    pub group: GroupId,
}

/// The tenant and time of an allocation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AllocateRequest {
    /// The tenant to charge.
    pub tenant: TenantId,
    /// The current time.
    pub now: Tick,
}

/// The holder of pins, and how long it expects to hold them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PinClaim {
    /// The owner.
    pub owner: OwnerId,
    /// Pins that last longer are reported by [`overdue`](super::BlockPool::overdue).
    pub deadline: Option<Tick>,
    /// The current time.
    pub now: Tick,
    /// Hints for the policy.
    pub hints: EvictionHints,
}
