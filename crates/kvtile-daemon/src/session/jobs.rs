//! The requests of a client that are in progress.

use std::{
    collections::HashMap,
    future::Future,
    pin::Pin,
    sync::{Arc, mpsc::Sender},
    task::{Context, Poll, Wake, Waker},
};

use kvtile_daemon_wire::{FoundFrame, LoadFrame};
use kvtile_tiers::cache::{
    Completion, LoadReport, LoadStop, Seek, StoreReport,
    serving::{HoldReport, frame_of_load, frame_of_store, runs_of},
};
use parking_lot::Mutex;

use super::{ClientFacts, OutboxItem, pins::SessionPins};

/// A job of the cache.
pub(super) enum SessionJob {
    /// A hold of blocks of match `found` from block `first` on.
    Hold {
        completion: Completion<HoldReport>,
        found: u64,
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
    seeks: Vec<(u64, Box<Seek>)>,
}

/// The requests in progress.
pub(super) struct SessionJobs {
    running: Mutex<RunningJobs>,
    most: usize,
}

/// The end of a job.
enum EndedJob {
    Hold(HoldReport, u64, usize),
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

    pub(super) fn add_seek(&self, number: u64, seek: Box<Seek>) {
        self.running.lock().seeks.push((number, seek));
    }

    /// Ends a seek whose match the client has dropped.
    pub(super) fn end_seek(&self, number: u64) {
        let mut running = self.running.lock();
        let unwanted = running
            .seeks
            .extract_if(.., |(one, _)| *one == number)
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
        let ready: Vec<(u64, Box<Seek>)> = running
            .seeks
            .extract_if(.., |(_, seek)| seek.is_ready())
            .collect();
        drop(running);
        let mut frames = Vec::with_capacity(ready.len());
        for (number, seek) in ready {
            match seek.try_match() {
                Ok(found) => {
                    let runs = runs_of(&found, &client.tiers);
                    pins.add_match(number, found);
                    frames.push(FoundFrame { runs }.encode(number));
                }
                Err(seek) => self.add_seek(number, seek),
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
                hold_reply(client, pins, (number, found, first), report)
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

/// The end of hold `number` of match `found` from block `first` on: pins its blocks for the client, gives
/// the rest back to the match, and reports the numbers of the blocks.
pub(super) fn hold_reply(
    client: &ClientFacts,
    pins: &SessionPins,
    (number, found, first): (u64, u64, usize),
    report: HoldReport,
) -> Vec<u8> {
    let next = first + report.load.blocks;
    pins.hold_ended(found, report.take_rest().map(|rest| (next, rest)));
    let ids: Vec<u32> = report.held.ids().iter().map(|id| id.0).collect();
    let frame = frame_of_load(&report.load, &client.tiers, ids);
    let has_blocks = !frame.ids.is_empty();
    if has_blocks && !pins.add_hold(number, report.held) {
        let mut closed = report.load;
        closed.stopped = Some(LoadStop::Closed);
        closed.blocks = 0;
        let frame: LoadFrame = frame_of_load(&closed, &client.tiers, Vec::new());
        return frame.encode(number);
    }
    frame.encode(number)
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
