//! Stores into a daemon: this process copies blocks to its staging memory, the daemon stores them
//! from there.

use std::{
    ops::Range,
    sync::Arc,
    time::{Duration, Instant},
};

use kvtile_blocks::BlockKey;
use kvtile_daemon_wire::{FrameKind, NumberFrame, PrefetchFrame, RefusalCode, StoredFrame};
use kvtile_transfer::{LayoutHandle, completion::Completer};

use super::{
    BUSY_PAUSE, BoxedConnectedJob, ConnectedJob, ConnectedParts,
    link::LinkError,
    session::{DaemonSession, StagedSlots},
};
use crate::{
    cache::{
        StoreOptions, StoreReport, StoreStop, requests,
        serving::{codes, store_stop_of},
    },
    error::TierError,
    metrics::Queue,
};

/// A store that waits in the queue.
pub(super) struct ConnectedStore {
    completer: Completer<StoreReport>,
    /// Its number among the stores in flight.
    number: u64,
    /// Number of clearings before it.
    clearings: u64,
    /// The chain up to its last block.
    keys: Vec<BlockKey>,
    layout: LayoutHandle,
    sources: Vec<usize>,
    options: StoreOptions,
    start: Instant,
    deadline: Option<Instant>,
    has_begun: bool,
    is_reported: bool,
    report: StoreReport,
}

impl ConnectedStore {
    pub(super) fn new(
        completer: Completer<StoreReport>,
        keys: &[BlockKey],
        (layout, sources): (LayoutHandle, &[usize]),
        options: &StoreOptions,
    ) -> ConnectedStore {
        let start = Instant::now();
        ConnectedStore {
            completer,
            number: 0,
            clearings: 0,
            keys: keys.to_vec(),
            layout,
            sources: sources.to_vec(),
            options: options.clone(),
            start,
            deadline: options.within.and_then(|within| start.checked_add(within)),
            has_begun: false,
            is_reported: false,
            report: StoreReport {
                stored: 0,
                present: 0,
                dropped: 0,
                bytes: 0,
                elapsed: Duration::ZERO,
                stopped: None,
            },
        }
    }

    /// Puts it into the queue.
    pub(super) fn enter(mut self, parts: &ConnectedParts) -> Result<(), TierError> {
        let (_, blocks) = self.keys.split_at(self.options.first.min(self.keys.len()));
        let number = parts.chains.enter(blocks.into());
        self.number = number;
        self.clearings = *parts.connection.clearings.lock();
        let priority = self.options.priority;
        let pushed = parts.push(priority, Box::new(self));
        pushed.inspect_err(|_| store_ended(parts, number))
    }

    /// Parks the job until the older store of the block before its first one ends: the daemon drops
    /// blocks whose ancestors have not come. Returns the job if there is no such store.
    fn park(mut self: Box<Self>, parts: &ConnectedParts) -> Option<Box<ConnectedStore>> {
        let parent = self.options.first.checked_sub(1);
        let Some(parent) = parent.and_then(|at| self.keys.get(at)).copied() else {
            return Some(self);
        };
        parts.queue.park();
        self.has_begun = false;
        let (number, priority) = (self.number, self.options.priority);
        let mut left = Some(self);
        parts.chains.park(number, &parent, || {
            left.take().map(|job| (priority, job as BoxedConnectedJob))
        });
        if left.is_some() {
            parts.queue.unpark();
        }
        left
    }

    fn store(&mut self, parts: &ConnectedParts) -> Result<(), StoreStop> {
        self.check_time()?;
        let session = parts.session().ok_or(StoreStop::Closed)?;
        let mut at = self.leading_present(parts, &session)?;
        self.report.present += at;
        while at < self.sources.len() {
            self.check_time()?;
            let within = self.time_left(parts.settings.work_within);
            let wanted = self.sources.len() - at;
            let slots = session.slots(wanted, within).ok_or(StoreStop::Late)?;
            let blocks = at..at + slots.slots.len();
            at = blocks.end;
            self.copy(parts, &session, (&slots, blocks.clone()))?;
            self.hand_over(parts, &session, (slots, blocks))?;
        }
        Ok(())
    }

    /// The daemon's leading blocks of this store: they need no copy.
    fn leading_present(
        &self,
        parts: &ConnectedParts,
        session: &Arc<DaemonSession>,
    ) -> Result<usize, StoreStop> {
        let (_, keys) = self.keys.split_at(self.options.first.min(self.keys.len()));
        let frame = PrefetchFrame {
            keys: codes::bytes_of(keys),
        };
        let within = self.time_left(parts.settings.answer_within);
        let reply = session
            .request(|number| frame.encode(FrameKind::Peek, number), None)
            .and_then(|reply| reply.wait(within));
        match reply.map_err(stop_of)? {
            (FrameKind::Number, payload) => {
                let frame = NumberFrame::decode(&payload).map_err(|e| stop_of(e.into()))?;
                let present = usize::try_from(frame.number).unwrap_or(usize::MAX);
                Ok(present.min(self.sources.len()))
            }
            _ => Err(StoreStop::Closed),
        }
    }

    fn check_time(&self) -> Result<(), StoreStop> {
        if self.completer.is_cancelled() {
            return Err(StoreStop::Cancelled);
        }
        match self.deadline {
            Some(deadline) if Instant::now() > deadline => Err(StoreStop::Deadline),
            _ => Ok(()),
        }
    }

    fn time_left(&self, most: Duration) -> Duration {
        let left = |end: Instant| end.saturating_duration_since(Instant::now());
        self.deadline.map_or(most, |end| left(end).min(most))
    }

    /// Copies blocks to staging memory.
    fn copy(
        &self,
        parts: &ConnectedParts,
        session: &DaemonSession,
        (slots, blocks): (&StagedSlots, Range<usize>),
    ) -> Result<(), StoreStop> {
        let sources = self.sources.get(blocks).unwrap_or_default();
        let transfer = parts.manager.execute_transfer(
            self.layout,
            sources,
            session.staging(),
            &slots.slots,
            requests::transfer_after(&self.options.after),
        );
        let copied = transfer.and_then(|transfer| transfer.wait());
        copied.map(drop).map_err(StoreStop::Transfer)
    }

    /// Lets the daemon store the blocks of some slots, and waits until it has. The slots are free
    /// again when the daemon has answered, also if that is after the end of this store.
    fn hand_over(
        &mut self,
        parts: &ConnectedParts,
        session: &Arc<DaemonSession>,
        (slots, blocks): (StagedSlots, Range<usize>),
    ) -> Result<(), StoreStop> {
        let numbers = |slot: &usize| u32::try_from(*slot).unwrap_or(u32::MAX);
        let numbers: Vec<u32> = slots.slots.iter().map(numbers).collect();
        let first = self.options.first + blocks.start;
        let (keys, _) = self
            .keys
            .split_at((first + blocks.len()).min(self.keys.len()));
        let within = self.deadline.map(|_| self.time_left(Duration::MAX));
        let mut options = self.options.clone();
        options.hints.partial_tail &= blocks.end == self.sources.len();
        let frame = codes::store_frame(keys, (first, numbers), &options, within);
        let kept = Arc::new(slots);
        loop {
            let sent = {
                let clearings = parts.connection.clearings.lock();
                if *clearings != self.clearings {
                    return Err(StoreStop::Cleared);
                }
                let kept = Some(Box::new(Arc::clone(&kept)) as Box<dyn Send>);
                session.request(|number| frame.encode(number), kept)
            };
            let within = self.time_left(parts.settings.work_within);
            match sent.and_then(|reply| reply.wait(within)) {
                Ok((FrameKind::Stored, payload)) => {
                    let frame = StoredFrame::decode(&payload).map_err(|e| stop_of(e.into()))?;
                    return self.add(&frame);
                }
                Ok(_) => return Err(StoreStop::Closed),
                Err(LinkError::Refused(refusal)) if refusal.code == RefusalCode::Busy => {
                    let waited = self.start.elapsed();
                    if waited > parts.settings.work_within {
                        return Err(StoreStop::Refused(refusal.text.into()));
                    }
                    self.check_time()?;
                    std::thread::sleep(BUSY_PAUSE);
                }
                Err(error) => return Err(stop_of(error)),
            }
        }
    }

    fn add(&mut self, frame: &StoredFrame) -> Result<(), StoreStop> {
        let count = |blocks: u32| usize::try_from(blocks).unwrap_or(usize::MAX);
        let report = &mut self.report;
        let left = self.sources.len() - report.stored - report.present;
        let stored = count(frame.stored).min(left);
        report.stored += stored;
        report.present += count(frame.present).min(left - stored);
        report.bytes += frame.bytes;
        match store_stop_of(&frame.stop) {
            Some(stop) => Err(stop),
            None => Ok(()),
        }
    }

    pub(super) fn finish(&mut self) {
        self.is_reported = true;
        let report = &mut self.report;
        report.dropped = self.sources.len() - report.stored - report.present;
        report.elapsed = self.start.elapsed();
        self.completer.finish(report.clone());
    }
}

impl ConnectedJob for ConnectedStore {
    fn label(&self) -> Queue {
        Queue::Store
    }

    fn run(self: Box<Self>, parts: &ConnectedParts) {
        let number = self.number;
        let Some(mut job) = self.park(parts) else {
            return;
        };
        // Dropping the guard resumes the stores that wait for this one, also after a panic.
        let _end = ConnectedStoreEnd { parts, number };
        job.has_begun = true;
        job.report.stopped = job.store(parts).err();
        job.finish();
    }
}

/// Ends a store when it is dropped.
struct ConnectedStoreEnd<'a> {
    parts: &'a ConnectedParts,
    number: u64,
}

impl Drop for ConnectedStoreEnd<'_> {
    fn drop(&mut self) {
        store_ended(self.parts, self.number);
    }
}

/// Ends a store, and queues the stores that were parked for it.
fn store_ended(parts: &ConnectedParts, number: u64) {
    let parked = parts.chains.leave(number);
    if parked.is_empty() {
        return;
    }
    for _ in &parked {
        parts.metrics.queued(Queue::Store);
    }
    for job in parts.queue.resume(parked) {
        parts.metrics.unqueued(job.label());
    }
}

impl Drop for ConnectedStore {
    /// Completes a store that did not begin, because the cache was closed, or that panicked.
    fn drop(&mut self) {
        if !self.is_reported {
            self.report.stopped = Some(match self.has_begun {
                false => StoreStop::Closed,
                true => StoreStop::Panicked,
            });
            self.finish();
        }
    }
}

fn stop_of(error: LinkError) -> StoreStop {
    match error {
        LinkError::Closed => StoreStop::Closed,
        LinkError::Late { .. } => StoreStop::Late,
        LinkError::Refused(refusal) => StoreStop::Refused(refusal.text.into()),
        LinkError::Wire(error) => StoreStop::Refused(error.to_string().into()),
    }
}
