//! The changes of the tiers, for clients that subscribe.

use kvtile_blocks::events::{Event, EventKind, EventSubscriber, StoredBlock, TierId};
use kvtile_daemon_wire::{EVENTS_MAX, EventChange, EventRecord, EventsFrame};

use kvtile_tiers::cache::EVENT_CAPACITY_MAX;

use super::ClientFacts;

/// What a client has been sent.
#[derive(Default)]
pub(super) struct SessionEvents {
    subscriber: Option<EventSubscriber>,
}

impl SessionEvents {
    pub(super) fn is_subscribed(&self) -> bool {
        self.subscriber.is_some()
    }

    /// Begins, or begins again: the blocks of all tiers.
    pub(super) fn begin(&mut self, client: &ClientFacts) -> Vec<Vec<u8>> {
        let cache = &client.cache;
        let mut subscriber = cache.subscribe();
        let snapshot = cache.snapshot();
        subscriber.resynchronise(&snapshot);
        self.subscriber = Some(subscriber);
        let record = |block: &StoredBlock| {
            let kind = EventKind::Stored {
                key: block.key,
                parent: block.parent,
            };
            record(client, (block.tier, block.group.0), kind)
        };
        let events: Vec<EventRecord> = snapshot.blocks.iter().filter_map(record).collect();
        frames(&events, true)
    }

    /// The changes since the last call, as many as the log can have.
    pub(super) fn all_changes(&mut self, client: &ClientFacts) -> Vec<Vec<u8>> {
        let mut all = Vec::new();
        for _ in 0..=EVENT_CAPACITY_MAX / EVENTS_MAX {
            let mut frames = self.changes(client);
            if frames.is_empty() {
                break;
            }
            all.append(&mut frames);
        }
        all
    }

    /// The changes since the last call.
    pub(super) fn changes(&mut self, client: &ClientFacts) -> Vec<Vec<u8>> {
        let Some(subscriber) = &mut self.subscriber else {
            return Vec::new();
        };
        let mut events: Vec<Event> = Vec::new();
        match subscriber.poll(&mut events, EVENTS_MAX) {
            Ok(0) => Vec::new(),
            Ok(_) => {
                let record =
                    |event: &Event| record(client, (event.tier, event.group.0), event.kind);
                let events: Vec<EventRecord> = events.iter().filter_map(record).collect();
                frames(&events, false)
            }
            // Events were overwritten before they were sent.
            Err(_) => self.begin(client),
        }
    }
}

fn record(
    client: &ClientFacts,
    (tier, group): (TierId, u32),
    kind: EventKind,
) -> Option<EventRecord> {
    let tier = client.tiers.iter().position(|one| *one == tier)?;
    let change = match kind {
        EventKind::Stored { key, parent } => EventChange::Stored {
            key: *key.as_bytes(),
            parent: parent.map(|parent| *parent.as_bytes()),
        },
        EventKind::Removed { key } => EventChange::Removed {
            key: *key.as_bytes(),
        },
        EventKind::Cleared => EventChange::Cleared,
    };
    Some(EventRecord {
        tier: u16::try_from(tier).ok()?,
        group,
        change,
    })
}

fn frames(events: &[EventRecord], is_reset: bool) -> Vec<Vec<u8>> {
    let frame = |events: &[EventRecord], is_reset| {
        EventsFrame {
            is_reset,
            events: events.to_vec(),
        }
        .encode()
    };
    if events.is_empty() {
        return vec![frame(&[], is_reset)];
    }
    let chunks = events.chunks(EVENTS_MAX).enumerate();
    chunks
        .map(|(index, events)| frame(events, is_reset && index == 0))
        .collect()
}
