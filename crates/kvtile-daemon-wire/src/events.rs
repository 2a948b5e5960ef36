//! Changes of the blocks in the tiers.

use crate::{
    FrameError, FrameHeader, FrameKind, KeyBytes,
    cursor::{FieldReader, put_count},
};

/// The largest number of events in a frame.
pub const EVENTS_MAX: usize = 1 << 16;

/// Bytes of an event in a frame.
const EVENT_BYTES: usize = 39;

/// What happened to blocks of a tier.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventChange {
    /// A block was stored, after its parent if it has one.
    Stored {
        /// Its key.
        key: KeyBytes,
        /// The key of the block before it.
        parent: Option<KeyBytes>,
    },
    /// A block was removed.
    Removed {
        /// Its key.
        key: KeyBytes,
    },
    /// All blocks were removed.
    Cleared,
}

/// An event of a group in a tier.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EventRecord {
    /// Index of the tier in the daemon's list.
    pub tier: u16,
    /// The group.
    pub group: u32,
    /// The change.
    pub change: EventChange,
}

/// Events in their order.
///
/// ```text
/// reset u8, events: tier u16, group u32, change u8, key, parent (zeros where there is none)
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EventsFrame {
    /// Whether all tiers are empty before these events: the first frame, and one after events were
    /// lost. Its events list the blocks.
    pub is_reset: bool,
    /// The events.
    pub events: Vec<EventRecord>,
}

impl EventsFrame {
    /// Reads a payload.
    ///
    /// # Errors
    /// Bytes that are no events; more than [`EVENTS_MAX`].
    pub fn decode(payload: &[u8]) -> Result<EventsFrame, FrameError> {
        let mut reader = FieldReader::new(payload);
        let is_reset = reader.flag("the reset of a frame of events")?;
        let count = reader.count("events of a frame", EVENTS_MAX, EVENT_BYTES)?;
        let events: Result<Vec<EventRecord>, FrameError> =
            (0..count).map(|_| EventRecord::read(&mut reader)).collect();
        let events = events?;
        reader.end()?;
        Ok(EventsFrame { is_reset, events })
    }

    /// A whole frame.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        FrameHeader::frame(FrameKind::Events, 0, |out| {
            out.push(self.is_reset.into());
            put_count(out, self.events.len());
            for event in &self.events {
                event.put(out);
            }
        })
    }
}

impl EventRecord {
    fn read(reader: &mut FieldReader<'_>) -> Result<EventRecord, FrameError> {
        let (tier, group) = (reader.u16()?, reader.u32()?);
        let change = reader.u8()?;
        let (key, parent) = (reader.key()?, reader.key()?);
        let none = [0; 16];
        let change = match change {
            0 if parent == none => EventChange::Stored { key, parent: None },
            1 => EventChange::Stored {
                key,
                parent: Some(parent),
            },
            2 if parent == none => EventChange::Removed { key },
            3 if key == none && parent == none => EventChange::Cleared,
            value => {
                return Err(FrameError::UnknownValue {
                    what: "the change of an event",
                    value: value.into(),
                });
            }
        };
        Ok(EventRecord {
            tier,
            group,
            change,
        })
    }

    fn put(&self, out: &mut Vec<u8>) {
        let none = [0; 16];
        let (change, key, parent) = match self.change {
            EventChange::Stored { key, parent: None } => (0, key, none),
            EventChange::Stored {
                key,
                parent: Some(parent),
            } => (1, key, parent),
            EventChange::Removed { key } => (2, key, none),
            EventChange::Cleared => (3, none, none),
        };
        out.extend_from_slice(&self.tier.to_le_bytes());
        out.extend_from_slice(&self.group.to_le_bytes());
        out.push(change);
        out.extend_from_slice(&key);
        out.extend_from_slice(&parent);
    }
}
