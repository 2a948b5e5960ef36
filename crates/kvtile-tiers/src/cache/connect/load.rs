//! Loads out of a daemon's host memory: the daemon brings and pins blocks, this process copies them.
//!
//! ```text
//! daemon    hold 0 │ hold 1 │ hold 2                two holds ahead
//! here             │ copy 0 │ copy 1 │ copy 2       then each hold is released
//! ```
//!
//! The daemon takes a hold back when its lease has ended, and all of them with the connection. So
//! after each copy, before it counts, the load makes sure that the pins were still there.
//!
//! Where host memory has no room, a hold ends early, and the daemon keeps the rest of its blocks in the
//! match. The load then holds one piece at a time, and each release makes room for the next.

use std::{
    collections::VecDeque,
    ops::Range,
    sync::Arc,
    time::{Duration, Instant},
};

use kvtile_blocks::events::TierId;
use kvtile_daemon_wire::{FrameKind, HoldFrame, LoadFrame, NumberFrame, RefusalCode, ReleaseFrame};
use kvtile_transfer::{DeviceMark, LayoutHandle, completion::Completer};

use super::{
    ConnectedJob, ConnectedParts,
    found::ConnectedMatch,
    link::{LinkError, PendingReply},
    session::DaemonSession,
};
use crate::{
    cache::{
        LoadOptions, LoadReport, LoadStop, Priority, requests,
        serving::{load_stop_of, milliseconds},
    },
    metrics::{MissReason, Queue},
};

/// Blocks of tiers below host memory that one hold brings.
const HOLD_BLOCKS_MAX: usize = 64;

/// Blocks of host memory that one hold pins.
const HOST_BLOCKS_MAX: usize = 4096;

/// Holds in flight at a time.
const HOLDS_AHEAD: usize = 2;

/// A load that waits in the queue.
pub(super) struct ConnectedLoad {
    completer: Completer<LoadReport>,
    found: ConnectedMatch,
    layout: LayoutHandle,
    destinations: Vec<usize>,
    priority: Priority,
    start: Instant,
    deadline: Option<Instant>,
    /// The work of devices that comes before the copies.
    after: Vec<DeviceMark>,
    has_begun: bool,
    progress: ConnectedLoadProgress,
}

#[derive(Default)]
struct ConnectedLoadProgress {
    /// The blocks that came.
    came: Vec<bool>,
    from_host: usize,
    from_below: Vec<(TierId, usize)>,
    bytes: u64,
    stopped: Option<LoadStop>,
    is_reported: bool,
}

impl ConnectedLoadProgress {
    /// Number of leading blocks that came.
    fn leading(&self) -> usize {
        self.came.iter().take_while(|came| **came).count()
    }
}

/// A hold that the daemon has not answered yet.
struct HoldOnTheWay {
    blocks: Range<usize>,
    reply: PendingReply,
    sent: Instant,
    /// Whether the load had no other hold.
    is_alone: bool,
}

/// Blocks that the daemon pins for this load; dropping it releases them.
struct DaemonHold {
    session: Arc<DaemonSession>,
    number: u64,
    /// A time before the lease began.
    since: Instant,
    copied: (u32, u64, Duration),
}

impl Drop for DaemonHold {
    fn drop(&mut self) {
        let (blocks, bytes, time) = self.copied;
        let frame = ReleaseFrame {
            hold: self.number,
            blocks,
            bytes,
            nanoseconds: u64::try_from(time.as_nanos()).unwrap_or(u64::MAX),
        };
        self.session.post(frame.encode(0));
    }
}

impl DaemonHold {
    /// Whether the blocks are pinned still, so that all bytes copied so far are theirs.
    fn is_valid(&mut self, parts: &ConnectedParts) -> bool {
        let session = &self.session;
        if session.link.is_hung_up() {
            return false;
        }
        if self.since.elapsed() < session.lease {
            return true;
        }
        let now = Instant::now();
        let frame = NumberFrame {
            number: self.number,
        };
        let reply = session
            .request(|number| frame.encode(FrameKind::Check, number), None)
            .and_then(|reply| reply.wait(parts.settings.answer_within));
        let is_valid = match reply {
            Ok((FrameKind::Number, payload)) => {
                NumberFrame::decode(&payload).is_ok_and(|frame| frame.number == 1)
            }
            _ => false,
        };
        // The daemon has renewed the lease after `now`.
        self.since = now;
        is_valid
    }
}

impl ConnectedLoad {
    pub(super) fn new(
        completer: Completer<LoadReport>,
        found: ConnectedMatch,
        (layout, destinations): (LayoutHandle, &[usize]),
        options: &LoadOptions,
    ) -> ConnectedLoad {
        let start = Instant::now();
        ConnectedLoad {
            completer,
            found,
            layout,
            destinations: destinations.to_vec(),
            priority: options.priority,
            start,
            deadline: options.within.and_then(|within| start.checked_add(within)),
            after: options.after.clone(),
            has_begun: false,
            progress: ConnectedLoadProgress {
                came: vec![false; destinations.len()],
                ..ConnectedLoadProgress::default()
            },
        }
    }

    /// The blocks of each hold, as indices in the match.
    fn pieces(&self, pool_blocks: u64) -> VecDeque<Range<usize>> {
        let quarter = usize::try_from(pool_blocks / 4).unwrap_or(usize::MAX);
        let mut pieces = VecDeque::new();
        let mut at = 0;
        for &(tier, blocks) in self.found.runs() {
            let most = match tier == TierId::HOST {
                true => HOST_BLOCKS_MAX,
                false => HOLD_BLOCKS_MAX.min(quarter).max(1),
            };
            let end = at + blocks;
            while at < end {
                let next = end.min(at + most);
                pieces.push_back(at..next);
                at = next;
            }
        }
        pieces
    }

    fn load(&mut self, parts: &ConnectedParts) -> Result<(), LoadStop> {
        let session = self.found.session.upgrade().ok_or(LoadStop::Closed)?;
        let mut pieces = self.pieces(session.pool_blocks);
        let mut on_the_way = VecDeque::new();
        let mut ahead = HOLDS_AHEAD;
        loop {
            self.check_time(parts)?;
            while on_the_way.len() < ahead
                && let Some(blocks) = pieces.pop_front()
            {
                let hold = self.hold(&session, blocks, ahead == 1);
                on_the_way.push_back(hold.map_err(|error| self.lost(parts, error))?);
            }
            let Some(hold) = on_the_way.pop_front() else {
                return match self.progress.leading() < self.destinations.len() {
                    // The connection ended before the pieces were cut.
                    true => Err(LoadStop::Closed),
                    false => Ok(()),
                };
            };
            let (came, stop) = self.bring(parts, &session, &hold)?;
            let HoldOnTheWay {
                blocks, is_alone, ..
            } = hold;
            let left = blocks.start + came..blocks.end;
            match stop {
                Some(LoadStop::HostFull) if !left.is_empty() && (came > 0 || !is_alone) => {
                    // What was held is released, so there is room again.
                    ahead = 1;
                    pieces.push_front(left);
                }
                Some(LoadStop::HostFull) => {
                    parts.metrics.lost(MissReason::HostFull, 1);
                    return Err(LoadStop::HostFull);
                }
                Some(stop) => return Err(stop),
                None if !left.is_empty() => return Err(LoadStop::Lost),
                None => {}
            }
        }
    }

    /// Waits for a hold, copies its blocks, and releases it. Returns their number and why not all
    /// came.
    fn bring(
        &mut self,
        parts: &ConnectedParts,
        session: &Arc<DaemonSession>,
        hold: &HoldOnTheWay,
    ) -> Result<(usize, Option<LoadStop>), LoadStop> {
        let within = self.time_left(parts.settings.work_within);
        let (kind, payload) = hold
            .reply
            .wait(within)
            .map_err(|error| self.lost(parts, error))?;
        let frame = match kind {
            FrameKind::Loaded => LoadFrame::decode(&payload).map_err(|e| stop_of(e.into()))?,
            _ => return Err(LoadStop::Closed),
        };
        let mut held = DaemonHold {
            session: Arc::clone(session),
            number: hold.reply.number,
            since: hold.sent,
            copied: (0, 0, Duration::ZERO),
        };
        self.copy(parts, (&mut held, hold.blocks.start), &frame)?;
        Ok((frame.ids.len(), load_stop_of(&frame.stop)))
    }

    /// Number of blocks that have not come.
    fn missing(&self) -> u64 {
        let missing = self.progress.came.iter().filter(|came| !**came);
        missing.count() as u64
    }

    /// Counts the blocks that the daemon did not deliver.
    fn lost(&self, parts: &ConnectedParts, error: LinkError) -> LoadStop {
        let stop = stop_of(error);
        let reason = match &stop {
            LoadStop::Lost => Some(MissReason::Evicted),
            LoadStop::Late => Some(MissReason::Late),
            LoadStop::Closed if !parts.is_closed() => Some(MissReason::Late),
            _ => None,
        };
        if let Some(reason) = reason {
            parts.metrics.lost(reason, self.missing());
        }
        stop
    }

    fn check_time(&self, parts: &ConnectedParts) -> Result<(), LoadStop> {
        let is_past = self.deadline.is_some_and(|end| Instant::now() > end);
        let (reason, stop) = match (self.completer.is_cancelled(), is_past) {
            (true, _) => (MissReason::Cancelled, LoadStop::Cancelled),
            (false, true) => (MissReason::Deadline, LoadStop::Deadline),
            (false, false) => return Ok(()),
        };
        parts.metrics.lost(reason, self.missing());
        Err(stop)
    }

    fn time_left(&self, most: Duration) -> Duration {
        let left = |end: Instant| end.saturating_duration_since(Instant::now());
        self.deadline.map_or(most, |end| left(end).min(most))
    }

    fn hold(
        &self,
        session: &Arc<DaemonSession>,
        blocks: Range<usize>,
        is_alone: bool,
    ) -> Result<HoldOnTheWay, LinkError> {
        let count = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
        let within = self.deadline.map(|_| self.time_left(Duration::MAX));
        let frame = HoldFrame {
            found: self.found.number,
            first: count(self.found.first + blocks.start),
            blocks: count(blocks.len()),
            priority: self.priority as u8,
            within_ms: milliseconds(within),
        };
        let sent = Instant::now();
        let reply = session.request(|number| frame.encode(number), None)?;
        Ok(HoldOnTheWay {
            blocks,
            reply,
            sent,
            is_alone,
        })
    }

    /// Copies the blocks of a hold to their destinations from index `at` on, and reports each layer once
    /// it is certain that its bytes are those of the blocks.
    fn copy(
        &mut self,
        parts: &ConnectedParts,
        (hold, at): (&mut DaemonHold, usize),
        frame: &LoadFrame,
    ) -> Result<(), LoadStop> {
        let came = frame.ids.len();
        let there = self.destinations.get(at..at + came);
        let is_known = |id: &u32| u64::from(*id) < hold.session.blocks;
        let Some(there) = there.filter(|_| frame.ids.iter().all(is_known)) else {
            return Err(LoadStop::Refused(
                "the daemon holds blocks that it does not have".into(),
            ));
        };
        if came == 0 {
            return Ok(());
        }
        let ids: Vec<usize> = frame
            .ids
            .iter()
            .map(|id| usize::try_from(*id).unwrap_or(usize::MAX))
            .collect();
        let transfer = parts
            .manager
            .execute_transfer(
                hold.session.pool,
                &ids,
                self.layout,
                there,
                requests::transfer_after(&self.after),
            )
            .map_err(LoadStop::Transfer)?;
        for layer in 0..parts.layers {
            transfer.wait_layer(layer).map_err(LoadStop::Transfer)?;
            if !hold.is_valid(parts) {
                // The load must not end while the copy still writes the engine's blocks. Its bytes do
                // not count, so neither does its outcome.
                let _ = transfer.wait();
                parts.metrics.lost(MissReason::Evicted, self.missing());
                return Err(LoadStop::Lost);
            }
            self.completer.layer_came(layer, came);
        }
        let report = transfer.wait().map_err(LoadStop::Transfer)?;
        let blocks = u32::try_from(came).unwrap_or(u32::MAX);
        hold.copied = (blocks, report.bytes, report.elapsed);
        let progress = &mut self.progress;
        let marks = progress.came.iter_mut().skip(at).take(came);
        marks.for_each(|mark| *mark = true);
        progress.bytes += report.bytes;
        progress.from_host += usize::try_from(frame.from_host).unwrap_or(0).min(came);
        for run in &frame.from_below {
            let tier = hold.session.tiers.get(usize::from(run.tier)).copied();
            let blocks = usize::try_from(run.blocks).unwrap_or(0);
            let known = progress.from_below.iter_mut();
            match (tier, known.into_iter().find(|(one, _)| Some(*one) == tier)) {
                (_, Some((_, sum))) => *sum += blocks,
                (Some(tier), None) => progress.from_below.push((tier, blocks)),
                (None, None) => {}
            }
        }
        Ok(())
    }

    fn finish(&mut self) {
        let progress = std::mem::take(&mut self.progress);
        self.progress.is_reported = true;
        self.completer.finish(LoadReport {
            blocks: progress.leading(),
            wanted: self.destinations.len(),
            from_host: progress.from_host,
            from_below: progress.from_below,
            bytes: progress.bytes,
            elapsed: self.start.elapsed(),
            stopped: progress.stopped,
        });
    }
}

impl ConnectedJob for ConnectedLoad {
    fn label(&self) -> Queue {
        Queue::Load
    }

    fn run(mut self: Box<Self>, parts: &ConnectedParts) {
        self.has_begun = true;
        self.progress.stopped = self.load(parts).err();
        // The pins are released before the completion.
        self.found.narrow(0, 0);
        self.finish();
    }
}

impl Drop for ConnectedLoad {
    /// Completes a load that did not begin, because the cache was closed, or that panicked.
    fn drop(&mut self) {
        if !self.progress.is_reported {
            self.progress.stopped = Some(match self.has_begun {
                false => LoadStop::Closed,
                true => LoadStop::Panicked,
            });
            self.finish();
        }
    }
}

pub(super) fn stop_of(error: LinkError) -> LoadStop {
    match error {
        LinkError::Closed => LoadStop::Closed,
        LinkError::Late { .. } => LoadStop::Late,
        // The lease of the match has ended, and its blocks may be others now.
        LinkError::Refused(refusal) if refusal.code == RefusalCode::Revoked => LoadStop::Lost,
        LinkError::Refused(refusal) => LoadStop::Refused(refusal.text.into()),
        LinkError::Wire(error) => LoadStop::Refused(error.to_string().into()),
    }
}
