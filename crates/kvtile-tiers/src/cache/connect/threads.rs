//! What the threads of a connected cache do: connect, serve replies, run jobs.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    time::{Duration, Instant},
};

use kvtile_daemon_wire::{FrameHeader, FrameKind};
use kvtile_transfer::LayoutHandle;

use super::{
    BUSY_PAUSE, BoxedConnectedJob, ConnectedParts, RETRY_AFTER_MAX,
    link::LinkError,
    session::{self, DaemonSession},
};
use crate::{
    cache::{
        Priority,
        serving::{CallAnswer, CallMessage},
    },
    error::{RequestError, TierError},
    ids::check_ids,
    opening::check_identity,
    queue::{NextJob, QueueRefusal},
};

impl ConnectedParts {
    /// Whether the owner of the cache has closed it.
    pub(super) fn is_closed(&self) -> bool {
        self.state.lock().is_closed
    }

    /// The session, if the daemon is connected.
    pub(super) fn session(&self) -> Option<Arc<DaemonSession>> {
        let state = self.state.lock();
        state.session.clone()
    }

    /// The session, if a call to it may be answered soon.
    pub(super) fn answering(&self) -> Result<Arc<DaemonSession>, LinkError> {
        let session = self.session().ok_or(LinkError::Closed)?;
        match session.link.is_late() {
            true => Err(LinkError::Late {
                within: Duration::ZERO,
            }),
            false => Ok(session),
        }
    }

    /// Connects, serves the replies, and connects again, until the cache is closed.
    pub(super) fn supervise(&self) {
        let mut pause = self.settings.retry_after;
        loop {
            if let Some(session) = self.session() {
                self.events.connected(&session.link);
                let events = &mut |payload: &[u8]| self.events.came(&session, payload);
                session.link.run(events);
                self.state.lock().session = None;
                self.events.disconnected();
                log::warn!(
                    "the connection to the daemon at {} ended",
                    self.socket.display()
                );
                pause = self.settings.retry_after;
            }
            {
                let mut state = self.state.lock();
                if !state.is_closed {
                    self.changed.wait_for(&mut state, pause);
                }
                if state.is_closed {
                    return;
                }
            }
            match self.open_session() {
                Ok(session) => {
                    let mut state = self.state.lock();
                    if state.is_closed {
                        return;
                    }
                    *self.tiers.lock() = session.tiers.clone();
                    state.session = Some(Arc::new(session));
                    log::info!("connected to the daemon at {}", self.socket.display());
                }
                Err(error) => {
                    log::debug!("{error}");
                    pause = pause.saturating_mul(2).min(RETRY_AFTER_MAX);
                }
            }
        }
    }

    /// Connects again. Closing the cache ends it, also in the handshake.
    fn open_session(&self) -> Result<DaemonSession, TierError> {
        let engine = (&self.manager, &self.engine_layout);
        let session = DaemonSession::open(&self.socket, &self.settings, engine, |stream| {
            let mut state = self.state.lock();
            state.connecting = stream.try_clone().ok();
            state.end_if_closed();
        });
        self.state.lock().connecting = None;
        session
    }

    pub(super) fn work(&self) {
        loop {
            match self.queue.next(Duration::from_secs(1)) {
                NextJob::Job(job) => {
                    if self.run(job).is_err() {
                        log::error!("a job of a connected cache panicked; this is a defect");
                    }
                }
                NextJob::Idle => {}
                NextJob::Closed => return,
            }
        }
    }

    /// Runs a job that was taken from the queue. A panic drops the job, which completes it, and is the
    /// result.
    pub(super) fn run(&self, job: BoxedConnectedJob) -> std::thread::Result<()> {
        self.metrics.unqueued(job.label());
        let ran = catch_unwind(AssertUnwindSafe(|| job.run(self)));
        self.queue.done();
        ran
    }

    pub(super) fn push(&self, priority: Priority, job: BoxedConnectedJob) -> Result<(), TierError> {
        let label = job.label();
        // Counted before the push, because a worker may take the job at once.
        self.metrics.queued(label);
        let pushed = self.queue.push(priority, vec![job]);
        pushed.map_err(|(refused, jobs)| {
            drop(jobs);
            self.metrics.unqueued(label);
            TierError::Request(match refused {
                QueueRefusal::Full { waiting } => {
                    self.metrics.refused(label);
                    RequestError::Busy {
                        waiting,
                        capacity: self.settings.queue_capacity,
                    }
                }
                QueueRefusal::Closed => RequestError::Closed,
            })
        })
    }

    /// Completes all jobs that wait or are parked, as closed.
    pub(super) fn drop_jobs(&self) {
        drop(self.queue.close());
        drop(self.chains.close());
    }

    pub(super) fn check_blocks(
        &self,
        layout: Option<LayoutHandle>,
        blocks: &[usize],
    ) -> Result<LayoutHandle, TierError> {
        let (handle, count) = match layout {
            None => (self.engine, self.engine_layout.shape().num_blocks()),
            Some(handle) => {
                let layout = self.manager.layout(handle)?;
                check_identity(&self.settings.identity, &layout)?;
                (handle, layout.shape().num_blocks())
            }
        };
        check_ids(blocks, count)?;
        Ok(handle)
    }

    /// Makes a call that does I/O, and waits for its answer. The daemon makes one at a time for each
    /// client, so further ones wait here.
    pub(super) fn io_call(&self, call: &CallMessage) -> Result<CallAnswer, TierError> {
        let (begin, within) = (Instant::now(), self.settings.work_within);
        let late = || TierError::Request(RequestError::NoAnswer { within });
        let _turn = self.calls.try_lock_for(within).ok_or_else(late)?;
        loop {
            let left = within.saturating_sub(begin.elapsed());
            match self.call(call, left) {
                // An earlier call of this client, for whose answer nothing waits any more.
                Err(TierError::Request(RequestError::Busy { .. })) if !left.is_zero() => {
                    std::thread::sleep(BUSY_PAUSE);
                }
                answered => return answered,
            }
        }
    }

    /// Makes a call and waits for its answer.
    pub(super) fn call(
        &self,
        call: &CallMessage,
        within: Duration,
    ) -> Result<CallAnswer, TierError> {
        let session = self.answering()?;
        let message = session::json(call)?;
        let frame = |number| {
            FrameHeader::frame(FrameKind::Call, number, |out| {
                out.extend_from_slice(&message);
            })
        };
        let sent = match call {
            CallMessage::Clear => {
                let mut clearings = self.clearings.lock();
                *clearings += 1;
                session.link.request(frame, None)
            }
            _ => session.link.request(frame, None),
        };
        let (kind, payload) = sent?.wait(within)?;
        match kind {
            FrameKind::Answer => serde_json::from_slice(&payload)
                .map_err(|error| session::refused(error.to_string())),
            kind => Err(session::refused(format!("the daemon sent {kind:?}"))),
        }
    }
}
