//! The events of the daemon's tiers, as events of a log of this process.
//!
//! The first subscription or snapshot requests them from the daemon. After a connection has ended all
//! tiers are empty, and the next connection begins with the blocks that the daemon has then.

use std::{
    num::NonZeroUsize,
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use kvtile_blocks::{
    BlockKey, GroupId,
    events::{
        Event, EventKind, EventLog, EventMirror, EventSnapshot, EventSubscriber, StoredBlock,
        TierId,
    },
};
use kvtile_daemon_wire::{EventChange, EventsFrame, FrameHeader, FrameKind};
use kvtile_layout::broken;
use parking_lot::{Condvar, Mutex};

use super::{link::DaemonLink, session::DaemonSession};
use crate::{
    error::TierError,
    source::{EventSource, ListStoredBlocks},
};

/// Events that the log keeps for subscribers that lag.
const CAPACITY: NonZeroUsize = NonZeroUsize::MIN.saturating_add((1 << 16) - 1);

/// Events that are applied at a time, far fewer than the log keeps.
const CHUNK: usize = 1 << 12;

/// What the events so far have left.
struct EventState {
    /// The tiers and groups that events have named.
    seen: Vec<(TierId, GroupId)>,
    mirror: EventMirror,
    reader: EventSubscriber,
    /// Whether the blocks of the current connection have come.
    has_come: bool,
}

/// The events of a connected cache.
pub(super) struct ConnectedEvents {
    log: Arc<EventLog>,
    is_wanted: AtomicBool,
    state: Mutex<EventState>,
    changed: Condvar,
}

impl ConnectedEvents {
    pub(super) fn new() -> Result<ConnectedEvents, TierError> {
        let log = Arc::new(EventLog::new(CAPACITY)?);
        Ok(ConnectedEvents {
            state: Mutex::new(EventState {
                seen: Vec::new(),
                mirror: EventMirror::new(),
                reader: log.subscribe(),
                has_come: false,
            }),
            log,
            is_wanted: AtomicBool::new(false),
            changed: Condvar::new(),
        })
    }

    /// Requests the events from the daemon of a new connection, if this cache has a subscriber.
    pub(super) fn connected(&self, link: &DaemonLink) {
        if self.is_wanted.load(Ordering::Acquire) {
            link.post(0, FrameHeader::frame(FrameKind::Subscribe, 0, |_| {}));
        }
    }

    /// The connection has ended, and with it the blocks.
    pub(super) fn disconnected(&self) {
        let mut state = self.state.lock();
        state.has_come = false;
        self.empty(&mut state);
    }

    /// Applies a frame of events.
    pub(super) fn came(&self, session: &DaemonSession, payload: &[u8]) {
        let frame = match EventsFrame::decode(payload) {
            Ok(frame) => frame,
            Err(error) => {
                // Without these events the blocks would be wrong. The next connection begins anew.
                log::error!("events of the daemon: {error}; the connection is closed");
                session.link.close();
                return;
            }
        };
        let mut state = self.state.lock();
        if frame.is_reset {
            self.empty(&mut state);
        }
        for event in &frame.events {
            let Some(&tier) = session.tiers.get(usize::from(event.tier)) else {
                continue;
            };
            let key = BlockKey::from_bytes;
            let kind = match event.change {
                EventChange::Stored { key: of, parent } => EventKind::Stored {
                    key: key(of),
                    parent: parent.map(key),
                },
                EventChange::Removed { key: of } => EventKind::Removed { key: key(of) },
                EventChange::Cleared => EventKind::Cleared,
            };
            let place = (tier, GroupId(event.group));
            if !state.seen.contains(&place) {
                state.seen.push(place);
            }
            self.log.append(place.0, place.1, [kind]);
            if self.log.next_sequence() - state.reader.next_sequence() >= CHUNK as u64 {
                mirror(&mut state);
            }
        }
        mirror(&mut state);
        state.has_come = true;
        drop(state);
        self.changed.notify_all();
    }

    fn empty(&self, state: &mut EventState) {
        for (tier, group) in std::mem::take(&mut state.seen) {
            self.log.cleared(tier, group);
        }
        mirror(state);
    }

    fn want(&self, session: Option<&Arc<DaemonSession>>) {
        if !self.is_wanted.swap(true, Ordering::AcqRel)
            && let Some(session) = session
        {
            self.connected(&session.link);
        }
    }

    pub(super) fn subscribe(&self, session: Option<&Arc<DaemonSession>>) -> EventSubscriber {
        let subscriber = self.log.subscribe();
        self.want(session);
        subscriber
    }

    /// The events for a reader that must not keep the cache open.
    pub(super) fn source(
        this: &Arc<Self>,
        session: Option<&Arc<DaemonSession>>,
        owner: &Arc<()>,
        page_sizes: impl IntoIterator<Item = u64>,
    ) -> EventSource {
        this.want(session);
        let list: Weak<ConnectedEvents> = Arc::downgrade(this);
        EventSource::new(&this.log, list, owner, page_sizes)
    }

    /// The blocks that the daemon has now; those that it has reported so far if it does not answer within
    /// `within`.
    pub(super) fn snapshot(
        &self,
        session: Option<&Arc<DaemonSession>>,
        within: Duration,
    ) -> EventSnapshot {
        self.want(session);
        if let Some(session) = session {
            let frame = |number| FrameHeader::frame(FrameKind::Settle, number, |_| {});
            let reply = session.link.request(0, frame, None);
            // Without an answer the events so far are all that there is.
            let _ = reply.and_then(|reply| reply.wait(within));
        }
        let mut state = self.state.lock();
        if session.is_some_and(|session| !session.link.is_closed()) {
            let is_waiting = |state: &mut EventState| !state.has_come;
            self.changed.wait_while_for(&mut state, is_waiting, within);
        }
        self.log.snapshot(|blocks| state.list(blocks))
    }
}

impl ListStoredBlocks for ConnectedEvents {
    fn list_stored(&self, blocks: &mut Vec<StoredBlock>) {
        self.state.lock().list(blocks);
    }
}

impl EventState {
    fn list(&self, blocks: &mut Vec<StoredBlock>) {
        for &(tier, group) in &self.seen {
            let stored = self.mirror.blocks(tier, group);
            blocks.extend(stored.map(|(key, parent)| StoredBlock {
                tier,
                group,
                key,
                parent,
            }));
        }
    }
}

/// Applies the new events of the log to the mirror. Only this module appends to the log, and it calls
/// this before the log can drop an event.
fn mirror(state: &mut EventState) {
    let mut events: Vec<Event> = Vec::new();
    loop {
        match state.reader.poll(&mut events, CHUNK) {
            Ok(0) => return,
            Ok(_) => {}
            Err(lagged) => broken(format_args!("the mirror of the daemon's events: {lagged}")),
        }
        for event in events.drain(..) {
            assert!(
                state.mirror.apply(&event),
                "event {} is missing in the mirror",
                event.sequence
            );
        }
    }
}
