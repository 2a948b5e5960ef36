//! Lookups of stops over the groups of a connection.

use std::{
    ops::Range,
    sync::Arc,
    time::{Duration, Instant},
};

use kvtile_blocks::BlockKey;
use kvtile_daemon_wire::{
    FoundStopFrame, FrameKind, KEYS_MAX, NO_TIME, STOPS_MAX, StopListFrame, StopLookupFrame,
    StopNoteFrame,
};

use super::{
    SEEK_GRACE,
    connection::{DaemonConnection, GroupSessions},
    found::{ConnectedMatch, ConnectedSeek},
    link::{LinkError, LinkReply},
};
use crate::cache::{
    LookupOptions, Match,
    serving::{CallAnswer, CallMessage, StopCountsMessage, codes},
};

/// The options of a lookup of a stop.
pub(crate) struct ConnectedStopOptions {
    /// The most tokens of the stop, if there is a limit.
    pub(crate) at_most: Option<u64>,
    /// What a lookup in each group has too.
    pub(crate) of_group: LookupOptions,
}

/// A stop that the daemon found, pinned for this client.
pub(crate) struct ConnectedStop {
    /// Tokens of the stop; 0 if there is none.
    pub(crate) stop: u64,
    /// Tokens up to which the groups with the rule full are stored.
    pub(crate) spine: u64,
    /// The pages of each group, and their pins; empty without a stop.
    pub(crate) groups: Vec<(Range<u64>, Match)>,
}

impl ConnectedStop {
    /// The stop of a reply. Every group has pins for all of its pages.
    fn of(
        sessions: &GroupSessions,
        cache: u64,
        (number, (kind, payload)): (u64, LinkReply),
    ) -> Result<ConnectedStop, LinkError> {
        if kind != FrameKind::FoundStop {
            return Err(LinkError::Closed);
        }
        let frame = FoundStopFrame::decode(&payload)?;
        let mut groups = Vec::with_capacity(frame.groups.len());
        for (session, group) in sessions.iter().zip(&frame.groups) {
            let found = ConnectedMatch::of_runs(session, cache, (number, &group.runs));
            let pages = group.first..group.end;
            if found.found_blocks() as u64 != pages.end - pages.start {
                return Err(LinkError::Closed);
            }
            groups.push((pages, Match::of_connected(found)));
        }
        let is_whole = frame.groups.len() == sessions.len();
        if !is_whole && (frame.stop > 0 || !frame.groups.is_empty()) {
            return Err(LinkError::Closed);
        }
        Ok(ConnectedStop {
            stop: frame.stop,
            spine: frame.spine,
            groups,
        })
    }
}

/// A seek of a stop that the daemon runs.
pub(crate) struct ConnectedStopSeek {
    seek: ConnectedSeek,
    sessions: GroupSessions,
}

impl ConnectedStopSeek {
    pub(crate) fn is_ready(&self) -> bool {
        self.seek.is_ready()
    }

    /// Waits for the reply, at most for the time of the seek.
    pub(crate) fn wait(&self) {
        self.seek.wait(Duration::MAX);
    }

    /// Waits for the reply, at most until `end`.
    pub(crate) fn wait_until(&self, end: Instant) {
        self.seek
            .wait(end.saturating_duration_since(Instant::now()));
    }

    /// The stop, if the daemon has answered.
    pub(crate) fn end(mut self) -> Option<ConnectedStop> {
        let (cache, reply) = (self.seek.cache, self.seek.take()?);
        ConnectedStop::of(&self.sessions, cache, reply).ok()
    }
}

impl DaemonConnection {
    fn stop_frame(
        &self,
        chain: &[BlockKey],
        options: &ConnectedStopOptions,
        within: Duration,
    ) -> StopLookupFrame {
        let (leading, _) = chain.split_at(chain.len().min(KEYS_MAX));
        let own = self.settings.recompute_tokens_per_second;
        let of_group = options.of_group;
        let of_group = of_group.recompute_tokens_per_second(of_group.rate().or(own));
        StopLookupFrame {
            at_most: options.at_most.unwrap_or(NO_TIME),
            lookup: codes::lookup_frame(leading, &of_group, within),
        }
    }

    /// The longest usable stop: one round trip. `None` if the daemon does not answer.
    pub(crate) fn find_stop(
        &self,
        chain: &[BlockKey],
        options: &ConnectedStopOptions,
    ) -> Option<ConnectedStop> {
        let found = || -> Result<ConnectedStop, LinkError> {
            let sessions = self.answering()?;
            let session = sessions.first().ok_or(LinkError::Closed)?;
            let frame = self.stop_frame(chain, options, Duration::ZERO);
            let request = |number| frame.encode(FrameKind::FindStop, number);
            let reply = session.request(request, None)?;
            let answer = reply.wait(self.settings.answer_within)?;
            ConnectedStop::of(&sessions, self.id, (reply.number, answer))
        };
        found().ok()
    }

    /// Starts a seek of a stop; `None` if the daemon does not answer.
    pub(crate) fn seek_stop(
        &self,
        chain: &[BlockKey],
        (options, within): (&ConnectedStopOptions, Duration),
    ) -> Option<ConnectedStopSeek> {
        let seek = || -> Result<ConnectedStopSeek, LinkError> {
            let sessions = self.answering()?;
            let session = sessions.first().ok_or(LinkError::Closed)?;
            let frame = self.stop_frame(chain, options, within);
            let request = |number| frame.encode(FrameKind::SeekStop, number);
            let now = Instant::now();
            let seek = ConnectedSeek {
                reply: session.request(request, None)?,
                session: Arc::clone(session),
                cache: self.id,
                end: now
                    .checked_add(within.saturating_add(SEEK_GRACE))
                    .unwrap_or(now),
                is_taken: false,
            };
            Ok(ConnectedStopSeek { seek, sessions })
        };
        seek().ok()
    }

    /// All usable stops, the longest first; none if the daemon does not answer.
    pub(crate) fn list_stops(
        &self,
        chain: &[BlockKey],
        options: &ConnectedStopOptions,
    ) -> Vec<u64> {
        let stops = || -> Result<Vec<u64>, LinkError> {
            let sessions = self.answering()?;
            let session = sessions.first().ok_or(LinkError::Closed)?;
            let frame = self.stop_frame(chain, options, Duration::ZERO);
            let request = |number| frame.encode(FrameKind::ListStops, number);
            let reply = session.request(request, None)?;
            match reply.wait(self.settings.answer_within)? {
                (FrameKind::StopList, payload) => Ok(StopListFrame::decode(&payload)?.stops),
                _ => Err(LinkError::Closed),
            }
        };
        stops().unwrap_or_default()
    }

    /// Notes stops in the daemon whose store begins or has ended.
    pub(crate) fn note_stops(&self, chain: &[BlockKey], stops: &[u64], is_stored: bool) {
        let Some(session) = self.session(0).filter(|_| !stops.is_empty()) else {
            return;
        };
        let (keys, _) = chain.split_at(chain.len().min(KEYS_MAX));
        for stops in stops.chunks(STOPS_MAX) {
            let frame = StopNoteFrame {
                is_stored,
                stops: stops.to_vec(),
                keys: codes::bytes_of(keys),
            };
            session.post(frame.encode(0));
        }
    }

    /// The counters of lookups of stops; `None` if the daemon does not answer.
    pub(crate) fn stop_counts(&self) -> Option<StopCountsMessage> {
        let within = self.settings.answer_within;
        match self.call(0, &CallMessage::StopStats, within) {
            Ok(CallAnswer::StopStats(counts)) => Some(counts),
            _ => None,
        }
    }
}
