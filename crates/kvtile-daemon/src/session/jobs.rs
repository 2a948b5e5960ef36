//! The requests of a client that are in progress.

use std::{
    collections::HashMap,
    future::Future,
    pin::Pin,
    sync::{Arc, mpsc::Sender},
    task::{Context, Poll, Wake, Waker},
};

use kvtile_daemon_wire::{FoundFrame, FoundGroup, FoundStopFrame, LoadFrame};
use kvtile_tiers::{
    cache::{
        Completion, LoadReport, LoadStop, Match, Seek, StoreReport,
        serving::{HoldReport, frame_of_load, frame_of_store, runs_of},
    },
    groups::{GroupMatch, GroupSeek},
};
use parking_lot::Mutex;

use super::{
    ClientFacts, OutboxItem,
    pins::{PinName, SessionPins},
};

/// A job of the cache.
pub(super) enum SessionJob {
    /// A hold of blocks of match `found` from block `first` on.
    Hold {
        completion: Completion<HoldReport>,
        found: PinName,
        first: usize,
    },
    Store(Completion<StoreReport>),
    Prefetch(Completion<LoadReport>),
    /// A call that a thread of its own makes. Nothing is to be polled.
    Call,
}

/// Notifies the outbox of the end of a job.
struct JobWaker {
    number: u64,
    outbox: Sender<OutboxItem>,
}

impl Wake for JobWaker {
    fn wake(self: Arc<Self>) {
        // The outbox may have ended with the session.
        let _ = self.outbox.send(OutboxItem::Ended(self.number));
    }
}

#[derive(Default)]
struct RunningJobs {
    jobs: HashMap<u64, SessionJob>,
    seeks: Vec<(PinName, SessionSeek)>,
}

/// A seek in progress.
pub(super) enum SessionSeek {
    /// Of blocks of one group.
    Blocks(Box<Seek>),
    /// Of a stop over all groups.
    Stop(Box<GroupSeek>),
}

impl SessionSeek {
    fn is_ready(&mut self) -> bool {
        match self {
            SessionSeek::Blocks(seek) => seek.is_ready(),
            SessionSeek::Stop(seek) => seek.is_ready(),
        }
    }

    /// The reply with the pins of the match, or the seek if it is not ready.
    fn reply(
        self,
        name: PinName,
        (client, pins): (&ClientFacts, &SessionPins),
    ) -> Result<Vec<u8>, SessionSeek> {
        match self {
            SessionSeek::Blocks(seek) => match seek.try_match() {
                Ok(found) => Ok(found_reply(client, pins, (name, found))),
                Err(seek) => Err(SessionSeek::Blocks(seek)),
            },
            SessionSeek::Stop(seek) => match seek.try_match() {
                Ok(found) => Ok(found_stop_reply(client, pins, (name.1, found))),
                Err(seek) => Err(SessionSeek::Stop(seek)),
            },
        }
    }
}

/// Pins a match for the client, and reports its blocks.
pub(super) fn found_reply(
    client: &ClientFacts,
    pins: &SessionPins,
    (name, found): (PinName, Match),
) -> Vec<u8> {
    let runs = runs_of(&found, &client.tiers);
    pins.add_match(name, found);
    FoundFrame { runs }.encode(name.1)
}

/// Pins what a stop needs for the client, as a match of each group, and reports its pages.
pub(super) fn found_stop_reply(
    client: &ClientFacts,
    pins: &SessionPins,
    (number, found): (u64, GroupMatch),
) -> Vec<u8> {
    let (stop, spine) = (found.stop(), found.spine());
    let mut groups = Vec::new();
    for ((pages, found), group) in found.into_matches().into_iter().zip(0..) {
        let runs = found.as_ref().map(|found| runs_of(found, &client.tiers));
        groups.push(FoundGroup {
            first: pages.start,
            end: pages.end,
            runs: runs.unwrap_or_default(),
        });
        if let Some(found) = found {
            pins.add_match((group, number), found);
        }
    }
    let frame = FoundStopFrame {
        stop,
        spine,
        groups,
    };
    frame.encode(number)
}

/// The requests in progress.
pub(super) struct SessionJobs {
    running: Mutex<RunningJobs>,
    most: usize,
}

/// The end of a job.
enum EndedJob {
    Hold(HoldReport, PinName, usize),
    Store(StoreReport),
    Prefetch(LoadReport),
}

impl SessionJobs {
    pub(super) fn new(most: usize) -> SessionJobs {
        SessionJobs {
            running: Mutex::default(),
            most,
        }
    }

    /// The number of requests in progress, if there is no room for another one.
    pub(super) fn is_full(&self) -> Option<(usize, usize)> {
        let count = self.count();
        (count >= self.most).then_some((count, self.most))
    }

    pub(super) fn count(&self) -> usize {
        let running = self.running.lock();
        running.jobs.len() + running.seeks.len()
    }

    /// Adds a job, whose end the outbox gets. A number that is in use is the client's mistake.
    pub(super) fn add(&self, number: u64, job: SessionJob, outbox: &Sender<OutboxItem>) {
        let outbox = outbox.clone();
        let waker = Waker::from(Arc::new(JobWaker { number, outbox }));
        let mut running = self.running.lock();
        running.jobs.insert(number, job);
        let ended = running
            .jobs
            .get_mut(&number)
            .and_then(|job| poll(job, &waker));
        drop(running);
        if ended.is_some() {
            // The outbox polls it again; a completion keeps its end.
            waker.wake();
        }
    }

    /// Marks a call as made.
    pub(super) fn called(&self, number: u64) {
        self.running.lock().jobs.remove(&number);
    }

    /// Whether a call is being made.
    pub(super) fn has_call(&self) -> bool {
        let running = self.running.lock();
        let mut jobs = running.jobs.values();
        jobs.any(|job| matches!(job, SessionJob::Call))
    }

    pub(super) fn add_seek(&self, name: PinName, seek: SessionSeek) {
        self.running.lock().seeks.push((name, seek));
    }

    /// Ends a seek whose match the client has dropped.
    pub(super) fn end_seek(&self, name: PinName) {
        let mut running = self.running.lock();
        let unwanted = running
            .seeks
            .extract_if(.., |(one, _)| *one == name)
            .collect::<Vec<_>>();
        drop(running);
        drop(unwanted);
    }

    pub(super) fn has_seeks(&self) -> bool {
        !self.running.lock().seeks.is_empty()
    }

    /// The replies to the seeks that are ready.
    pub(super) fn ready_seeks(&self, client: &ClientFacts, pins: &SessionPins) -> Vec<Vec<u8>> {
        let mut running = self.running.lock();
        let ready: Vec<(PinName, SessionSeek)> = running
            .seeks
            .extract_if(.., |(_, seek)| seek.is_ready())
            .collect();
        drop(running);
        let mut frames = Vec::with_capacity(ready.len());
        for (name, seek) in ready {
            match seek.reply(name, (client, pins)) {
                Ok(frame) => frames.push(frame),
                Err(seek) => self.add_seek(name, seek),
            }
        }
        frames
    }

    /// The reply to a job that has ended.
    pub(super) fn reply(
        &self,
        client: &ClientFacts,
        pins: &SessionPins,
        number: u64,
    ) -> Option<Vec<u8>> {
        let mut running = self.running.lock();
        let ended = poll(running.jobs.get_mut(&number)?, Waker::noop())?;
        let job = running.jobs.remove(&number);
        drop(running);
        drop(job);
        Some(match ended {
            EndedJob::Hold(report, found, first) => {
                hold_reply(client, pins, ((found.0, number), found, first), report)
            }
            EndedJob::Store(report) => frame_of_store(&report).encode(number),
            EndedJob::Prefetch(report) => {
                frame_of_load(&report, &client.tiers, Vec::new()).encode(number)
            }
        })
    }

    /// Ends with the session: holds are cancelled, stores end, since they read staging memory.
    pub(super) fn end(&self) {
        let (jobs, seeks) = {
            let mut running = self.running.lock();
            (
                std::mem::take(&mut running.jobs),
                std::mem::take(&mut running.seeks),
            )
        };
        drop(seeks);
        for job in jobs.values() {
            match job {
                SessionJob::Hold { completion, .. } => completion.cancel(),
                SessionJob::Prefetch(completion) => completion.cancel(),
                SessionJob::Store(completion) => completion.cancel(),
                SessionJob::Call => {}
            }
        }
        for job in jobs.into_values() {
            if let SessionJob::Store(completion) = job {
                let _ = completion.wait();
            }
        }
    }
}

/// The end of hold `name` of match `found` from block `first` on: pins its blocks for the client, gives
/// the rest back to the match, and reports the numbers of the blocks.
pub(super) fn hold_reply(
    client: &ClientFacts,
    pins: &SessionPins,
    (name, found, first): (PinName, PinName, usize),
    report: HoldReport,
) -> Vec<u8> {
    let next = first + report.load.blocks;
    pins.hold_ended(found, report.take_rest().map(|rest| (next, rest)));
    let ids: Vec<u32> = report.held.ids().iter().map(|id| id.0).collect();
    let frame = frame_of_load(&report.load, &client.tiers, ids);
    let has_blocks = !frame.ids.is_empty();
    if has_blocks && !pins.add_hold(name, report.held) {
        let mut closed = report.load;
        closed.stopped = Some(LoadStop::Closed);
        closed.blocks = 0;
        let frame: LoadFrame = frame_of_load(&closed, &client.tiers, Vec::new());
        return frame.encode(name.1);
    }
    frame.encode(name.1)
}

/// The end of a job, if it has come; else `waker` is woken when it comes.
fn poll(job: &mut SessionJob, waker: &Waker) -> Option<EndedJob> {
    fn ended<T: Clone + Unpin>(
        completion: &mut Completion<T>,
        context: &mut Context<'_>,
    ) -> Option<T> {
        match Pin::new(completion).poll(context) {
            Poll::Ready(end) => Some(end),
            Poll::Pending => None,
        }
    }
    let context = &mut Context::from_waker(waker);
    match job {
        SessionJob::Hold {
            completion,
            found,
            first,
        } => {
            let (found, first) = (*found, *first);
            ended(completion, context).map(|report| EndedJob::Hold(report, found, first))
        }
        SessionJob::Store(completion) => ended(completion, context).map(EndedJob::Store),
        SessionJob::Prefetch(completion) => ended(completion, context).map(EndedJob::Prefetch),
        SessionJob::Call => None,
    }
}
