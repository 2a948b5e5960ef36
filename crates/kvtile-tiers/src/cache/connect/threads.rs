//! What the threads of a connected cache do: connect, serve replies, run jobs.

use std::{sync::Arc, time::Duration};

use kvtile_daemon_wire::{FrameHeader, FrameKind};
use kvtile_transfer::LayoutHandle;

use super::{
    ConnectedJob, ConnectedParts, RETRY_AFTER_MAX,
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

    pub(super) fn open_session(&self) -> Result<DaemonSession, TierError> {
        DaemonSession::open(
            &self.socket,
            &self.settings,
            (&self.manager, &self.engine_layout),
        )
    }

    pub(super) fn work(&self) {
        loop {
            match self.queue.next(Duration::from_secs(1)) {
                NextJob::Job(job) => {
                    let run = std::panic::AssertUnwindSafe(|| job.run(self));
                    if std::panic::catch_unwind(run).is_err() {
                        log::error!("a job of a connected cache panicked; this is a defect");
                    }
                    self.queue.done();
                }
                NextJob::Idle => {}
                NextJob::Closed => return,
            }
        }
    }

    pub(super) fn push(
        &self,
        priority: Priority,
        job: Box<dyn ConnectedJob>,
    ) -> Result<(), TierError> {
        self.queue
            .push(priority, vec![job])
            .map_err(|(refused, jobs)| {
                drop(jobs);
                TierError::Request(match refused {
                    QueueRefusal::Full { waiting } => RequestError::Busy {
                        waiting,
                        capacity: self.settings.queue_capacity,
                    },
                    QueueRefusal::Closed => RequestError::Closed,
                })
            })
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
        let (kind, payload) = session.link.request(frame, None)?.wait(within)?;
        match kind {
            FrameKind::Answer => serde_json::from_slice(&payload)
                .map_err(|error| session::refused(error.to_string())),
            kind => Err(session::refused(format!("the daemon sent {kind:?}"))),
        }
    }
}
