//! How large a pool is and what it does, as plain data.

use crate::events::{EventLog, TierId};
use crate::policy::Hints;
use crate::{BlocksError, GroupId, Tick};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// The most blocks of a pool: what is kept of each of them, some hundred bytes, would be too much
/// memory for more.
pub const POOL_BLOCKS_MAX: usize = 1 << 26;

/// Who blocks are charged to, and whose quota they count against.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct TenantId(pub u32);

/// Who pinned blocks, as the caller counts its requests; only reports show it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct OwnerId(pub u64);

/// What registering a key does that is registered already.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Duplicates {
    /// The registered block is pinned, the new one is freed.
    #[default]
    Share,
    /// The whole batch comes back with an error, and nothing of it is registered.
    Refuse,
}

/// How many blocks a tenant may hold, cached ones included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Quota {
    /// Whose.
    pub tenant: TenantId,
    /// Blocks.
    pub blocks: usize,
}

/// The settings of a [`BlockPool`](super::BlockPool).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PoolSettings {
    /// How many blocks there are, 1 to [`POOL_BLOCKS_MAX`]; their ids are `0..blocks`.
    pub blocks: usize,
    /// What registering a key does that is registered already.
    pub duplicates: Duplicates,
    /// Tenants with a limit. Each has its own policy; all others share one, without a limit.
    pub quotas: Vec<Quota>,
    /// How many found blocks may wait until the policy is told of them. When as many wait and the
    /// policy is busy, it is not told, which is counted. No more than there are blocks.
    pub visit_queue_blocks: usize,
}

impl Default for PoolSettings {
    fn default() -> PoolSettings {
        PoolSettings {
            blocks: 65_536,
            duplicates: Duplicates::Share,
            quotas: Vec::new(),
            visit_queue_blocks: 8_192,
        }
    }
}

impl PoolSettings {
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
            let same = |other: &&Quota| other.tenant == quota.tenant;
            if self.quotas.iter().skip(index + 1).any(|q| same(&q)) {
                return Err(BlocksError::TwoQuotas {
                    tenant: quota.tenant,
                });
            }
        }
        Ok(())
    }
}

/// Where a pool reports what it stores and removes.
#[derive(Clone, Debug)]
pub struct EventSink {
    /// The log.
    pub log: Arc<EventLog>,
    /// The tier that the pool serves.
    pub tier: TierId,
    /// The group of layers whose blocks the pool has.
    pub group: GroupId,
}

/// For whom blocks are allocated.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AllocateRequest {
    /// Who is charged.
    pub tenant: TenantId,
    /// When.
    pub now: Tick,
}

/// On whose behalf blocks are pinned, and for how long that is expected to last.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Claim {
    /// Who.
    pub owner: OwnerId,
    /// Pins that last longer are reported by [`overdue`](super::BlockPool::overdue).
    pub deadline: Option<Tick>,
    /// When.
    pub now: Tick,
    /// What the policy is told.
    pub hints: Hints,
}
