//! Changes as events on the wire. Consecutive blocks of a chain are one event, as in vLLM.

use kvtile_blocks::{
    BlockKey, GroupId,
    events::{TierId, TierKind},
};
use kvtile_events_wire::{WireEvent, WireStored, WireValue};
use kvtile_tiers::EventSource;

use crate::{settings::EventHashes, state::WireChange};

/// The medium of a kind of tier. `GPU` and `CPU` are vLLM's names; the dynamo router knows all but the last
/// as its tiers of devices, hosts, disks and external stores, and takes `REMOTE` as external too.
fn medium(kind: TierKind) -> &'static str {
    match kind {
        TierKind::Device => "GPU",
        TierKind::Host => "CPU",
        TierKind::Disk => "DISK",
        TierKind::Shared => "SHARED",
        _ => "REMOTE",
    }
}

/// How events are written.
#[derive(Debug)]
pub(crate) struct WireForm {
    pub(crate) hashes: EventHashes,
    pub(crate) source: EventSource,
}

/// Blocks that one event names.
enum WireRun {
    Stored {
        tier: TierId,
        group: GroupId,
        parent: Option<BlockKey>,
        keys: Vec<BlockKey>,
        tokens: Vec<u32>,
        /// Tokens of each block; `None` where they are not known.
        known: Option<usize>,
    },
    Removed {
        kind: TierKind,
        group: GroupId,
        keys: Vec<BlockKey>,
    },
    AllCleared,
}

impl WireForm {
    /// The events of changes, in their order.
    pub(crate) fn events(&self, changes: &[WireChange]) -> Vec<WireEvent> {
        let mut runs: Vec<WireRun> = Vec::new();
        for change in changes {
            if !runs.last_mut().is_some_and(|run| run.extend(change)) {
                runs.push(WireRun::of(change));
            }
        }
        runs.into_iter().map(|run| self.event(run)).collect()
    }

    fn event(&self, run: WireRun) -> WireEvent {
        match run {
            WireRun::Stored {
                tier,
                group,
                parent,
                keys,
                tokens,
                known,
            } => {
                let page_size = self.source.page_size(group).unwrap_or_default();
                WireEvent::stored(WireStored {
                    hashes: self.hashes(&keys),
                    parent: parent.map(|parent| self.hash(&parent)),
                    token_ids: tokens,
                    block_size: known.map_or(page_size, |tokens| tokens as u64),
                    medium: medium(tier.kind()).to_owned(),
                    group: self.group(group),
                    further: vec![("tier".to_owned(), WireValue::Text(tier.to_string()))],
                })
            }
            WireRun::Removed { kind, group, keys } => {
                WireEvent::removed(self.hashes(&keys), medium(kind), self.group(group))
            }
            WireRun::AllCleared => WireEvent::all_cleared(),
        }
    }

    /// The group, where there are several.
    fn group(&self, group: GroupId) -> Option<u64> {
        (self.source.groups() > 1).then(|| u64::from(group.0))
    }

    fn hashes(&self, keys: &[BlockKey]) -> Vec<WireValue> {
        keys.iter().map(|key| self.hash(key)).collect()
    }

    fn hash(&self, key: &BlockKey) -> WireValue {
        match self.hashes {
            EventHashes::Bytes => WireValue::Bytes(key.as_bytes().to_vec()),
            EventHashes::Numbers => {
                let [.., a, b, c, d, e, f, g, h] = *key.as_bytes();
                WireValue::Number(u64::from_be_bytes([a, b, c, d, e, f, g, h]))
            }
        }
    }
}

impl WireRun {
    fn of(change: &WireChange) -> WireRun {
        match change {
            WireChange::Stored {
                tier,
                group,
                key,
                parent,
                tokens,
            } => WireRun::Stored {
                tier: *tier,
                group: *group,
                parent: *parent,
                keys: vec![*key],
                tokens: tokens
                    .iter()
                    .flat_map(|tokens| tokens.iter().copied())
                    .collect(),
                known: tokens.as_ref().map(|tokens| tokens.len()),
            },
            WireChange::Removed { kind, group, key } => WireRun::Removed {
                kind: *kind,
                group: *group,
                keys: vec![*key],
            },
            WireChange::AllCleared => WireRun::AllCleared,
        }
    }

    /// Adds a change that belongs to the same event.
    fn extend(&mut self, change: &WireChange) -> bool {
        match (self, change) {
            (
                WireRun::Stored {
                    tier,
                    group,
                    keys,
                    tokens,
                    known,
                    ..
                },
                WireChange::Stored {
                    tier: of,
                    group: within,
                    key,
                    parent,
                    tokens: more,
                },
            ) if (*tier, *group) == (*of, *within)
                && parent.is_some()
                && keys.last() == parent.as_ref()
                && *known == more.as_ref().map(|tokens| tokens.len()) =>
            {
                keys.push(*key);
                tokens.extend(more.iter().flat_map(|tokens| tokens.iter().copied()));
                true
            }
            (
                WireRun::Removed { kind, group, keys },
                WireChange::Removed {
                    kind: of,
                    group: within,
                    key,
                },
            ) if (*kind, *group) == (*of, *within) => {
                keys.push(*key);
                true
            }
            (WireRun::AllCleared, WireChange::AllCleared) => true,
            _ => false,
        }
    }
}
