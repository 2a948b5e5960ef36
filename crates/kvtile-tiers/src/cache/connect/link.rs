//! One connection to a daemon: requests, their replies in any order, and its end.

use std::{
    collections::HashMap,
    io::{BufReader, Write},
    net::Shutdown,
    os::unix::net::UnixStream,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use kvtile_daemon_wire::{
    FoundStopFrame, FrameError, FrameHeader, FrameKind, LoadFrame, NarrowFrame, RefusalCode,
    RefusalFrame, ReleaseFrame, read_frame,
};
use parking_lot::{Condvar, Mutex};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::error::{RequestError, TierError};

/// Why a request has no reply.
#[derive(Clone, Debug)]
pub(super) enum LinkError {
    /// The connection ended.
    Closed,
    /// The daemon did not answer in time.
    Late { within: Duration },
    /// The daemon refused the request.
    Refused(RefusalFrame),
    /// The reply does not follow the protocol.
    Wire(FrameError),
}

impl From<FrameError> for LinkError {
    fn from(error: FrameError) -> LinkError {
        LinkError::Wire(error)
    }
}

impl From<LinkError> for TierError {
    fn from(error: LinkError) -> TierError {
        TierError::Request(match error {
            LinkError::Closed => RequestError::Disconnected,
            LinkError::Late { within } => RequestError::NoAnswer { within },
            LinkError::Wire(error) => RequestError::Refused {
                text: error.to_string(),
            },
            LinkError::Refused(refusal) => match refusal.code {
                RefusalCode::Busy => RequestError::Busy {
                    waiting: usize::try_from(refusal.first).unwrap_or(usize::MAX),
                    capacity: usize::try_from(refusal.second).unwrap_or(usize::MAX),
                },
                RefusalCode::Closed => RequestError::Closed,
                RefusalCode::NoSuchTier => match refusal.text.parse() {
                    Ok(tier) => RequestError::NoSuchTier { tier },
                    Err(_) => RequestError::Refused { text: refusal.text },
                },
                _ => RequestError::Refused { text: refusal.text },
            },
        })
    }
}

/// A reply of the daemon.
pub(super) type LinkReply = (FrameKind, Vec<u8>);

#[derive(Default)]
struct ReplyState {
    reply: Option<Result<LinkReply, LinkError>>,
    /// Whether the waiter was dropped.
    is_abandoned: bool,
}

/// Where a waiter finds its reply.
#[derive(Default)]
struct ReplySlot {
    state: Mutex<ReplyState>,
    changed: Condvar,
}

impl ReplySlot {
    /// Delivers the reply; false if the waiter was dropped.
    fn set(&self, reply: Result<LinkReply, LinkError>) -> bool {
        let mut state = self.state.lock();
        if state.is_abandoned {
            return false;
        }
        state.reply = Some(reply);
        drop(state);
        self.changed.notify_all();
        true
    }
}

/// A request without a reply yet.
struct UnansweredRequest {
    slot: Arc<ReplySlot>,
    /// The number of the group that it is about.
    group: u16,
    /// What the daemon may use until it has answered.
    _kept: Option<Box<dyn Send>>,
}

#[derive(Default)]
struct UnansweredRequests {
    requests: HashMap<u64, UnansweredRequest>,
    is_closed: bool,
}

/// One connection.
pub(super) struct DaemonLink {
    socket: UnixStream,
    writing: Mutex<()>,
    unanswered: Mutex<UnansweredRequests>,
    next: AtomicU64,
    /// Whether the daemon has left a request unanswered for too long, and has answered none since.
    is_late: AtomicBool,
}

/// A request that is on its way. If it is dropped, what a late reply pins is released.
pub(super) struct PendingReply {
    link: Arc<DaemonLink>,
    slot: Arc<ReplySlot>,
    /// The number of the group that it is about.
    group: u16,
    /// The number of the request.
    pub(super) number: u64,
}

impl DaemonLink {
    /// A connection over a socket on which the handshake is complete; its requests begin at `next`.
    pub(super) fn new(socket: UnixStream, next: u64) -> Arc<DaemonLink> {
        Arc::new(DaemonLink {
            socket,
            writing: Mutex::new(()),
            unanswered: Mutex::default(),
            next: AtomicU64::new(next),
            is_late: AtomicBool::new(false),
        })
    }

    /// Whether the daemon is not answering: a call would only wait.
    pub(super) fn is_late(&self) -> bool {
        self.is_late.load(Ordering::Relaxed)
    }

    pub(super) fn is_closed(&self) -> bool {
        self.unanswered.lock().is_closed
    }

    /// A number that no request has.
    pub(super) fn number(&self) -> u64 {
        self.next.fetch_add(1, Ordering::Relaxed)
    }

    /// Sends a request about a group. `kept` is dropped once the daemon has answered, however late, or once the
    /// connection has ended.
    pub(super) fn request(
        self: &Arc<Self>,
        group: u16,
        frame: impl FnOnce(u64) -> Vec<u8>,
        kept: Option<Box<dyn Send>>,
    ) -> Result<PendingReply, LinkError> {
        let number = self.number();
        let slot = Arc::new(ReplySlot::default());
        let request = UnansweredRequest {
            slot: Arc::clone(&slot),
            group,
            _kept: kept,
        };
        {
            let mut unanswered = self.unanswered.lock();
            if unanswered.is_closed {
                return Err(LinkError::Closed);
            }
            unanswered.requests.insert(number, request);
        }
        let pending = PendingReply {
            link: Arc::clone(self),
            slot,
            group,
            number,
        };
        self.send(&FrameHeader::to_group(frame(number), group))?;
        Ok(pending)
    }

    /// Sends a frame about a group that has no reply.
    pub(super) fn post(&self, group: u16, frame: Vec<u8>) {
        // Where it cannot be sent the connection ends, and with it all that the session holds.
        let _ = self.send(&FrameHeader::to_group(frame, group));
    }

    fn send(&self, frame: &[u8]) -> Result<(), LinkError> {
        let written = {
            let _writing = self.writing.lock();
            (&self.socket).write_all(frame)
        };
        written.map_err(|_| {
            // A part of the frame may have been sent, so nothing can follow it.
            self.close();
            LinkError::Closed
        })
    }

    /// Reads replies until the connection ends.
    /// Frames of events go to `events`.
    pub(super) fn run(&self, events: &mut dyn FnMut(&[u8])) {
        let mut from = BufReader::with_capacity(1 << 16, &self.socket);
        while let Ok((header, payload)) = read_frame(&mut from) {
            self.is_late.store(false, Ordering::Relaxed);
            match header.kind {
                FrameKind::Events => events(&payload),
                _ => self.answered(header, &payload),
            }
        }
        self.close();
    }

    fn answered(&self, header: FrameHeader, payload: &[u8]) {
        let request = self.unanswered.lock().requests.remove(&header.request);
        let Some(request) = request else {
            return;
        };
        let reply = match header.kind {
            FrameKind::Refused => match RefusalFrame::decode(payload) {
                Ok(refusal) => Err(LinkError::Refused(refusal)),
                Err(error) => Err(LinkError::Wire(error)),
            },
            kind => Ok((kind, payload.to_vec())),
        };
        if !request.slot.set(reply) {
            self.release_unwanted(request.group, header, payload);
        }
    }

    /// Releases what a reply pins for a waiter that was dropped.
    fn release_unwanted(&self, group: u16, header: FrameHeader, payload: &[u8]) {
        let narrow = |group| {
            let frame = NarrowFrame {
                found: header.request,
                first: 0,
                blocks: 0,
            };
            self.post(group, frame.encode(0));
        };
        match header.kind {
            FrameKind::Found => narrow(group),
            FrameKind::FoundStop => {
                let frame = FoundStopFrame::decode(payload);
                let groups = frame.map_or(0, |frame| frame.groups.len());
                (0..).take(groups).for_each(narrow);
            }
            FrameKind::Loaded
                if LoadFrame::decode(payload).is_ok_and(|frame| !frame.ids.is_empty()) =>
            {
                let frame = ReleaseFrame {
                    hold: header.request,
                    blocks: 0,
                    bytes: 0,
                    nanoseconds: 0,
                };
                self.post(group, frame.encode(0));
            }
            _ => {}
        }
    }

    /// Ends the connection: every request without a reply ends.
    pub(super) fn close(&self) {
        // An error means that it is shut down already.
        let _ = self.socket.shutdown(Shutdown::Both);
        let requests = {
            let mut unanswered = self.unanswered.lock();
            unanswered.is_closed = true;
            std::mem::take(&mut unanswered.requests)
        };
        for request in requests.into_values() {
            let _ = request.slot.set(Err(LinkError::Closed));
        }
    }

    /// Whether the daemon has ended the connection, as the kernel knows it now. The daemon shuts
    /// the socket down before it drops the pins of the session.
    pub(super) fn is_hung_up(&self) -> bool {
        let mut fds = [PollFd::new(&self.socket, PollFlags::RDHUP)];
        let now = Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        match poll(&mut fds, Some(&now)) {
            Ok(0) => false,
            // An error counts as an end: its caller must not trust what it copied.
            _ => true,
        }
    }
}

impl PendingReply {
    /// Waits for the reply, at most `within`.
    pub(super) fn wait(&self, within: Duration) -> Result<LinkReply, LinkError> {
        self.wait_ready(within);
        self.take().unwrap_or_else(|| {
            self.link.is_late.store(true, Ordering::Relaxed);
            Err(LinkError::Late { within })
        })
    }

    /// The reply, if it has come.
    pub(super) fn take(&self) -> Option<Result<LinkReply, LinkError>> {
        self.slot.state.lock().reply.take()
    }

    /// Waits until the reply has come, at most `within`, and leaves it in its place.
    pub(super) fn wait_ready(&self, within: Duration) {
        let mut state = self.slot.state.lock();
        let is_waiting = |state: &mut ReplyState| state.reply.is_none();
        self.slot
            .changed
            .wait_while_for(&mut state, is_waiting, within);
    }

    /// Whether the reply has come.
    pub(super) fn is_ready(&self) -> bool {
        self.slot.state.lock().reply.is_some()
    }
}

impl Drop for PendingReply {
    fn drop(&mut self) {
        let unread = {
            let mut state = self.slot.state.lock();
            state.is_abandoned = true;
            state.reply.take()
        };
        // A reply that came and was not taken: nothing else releases what it pins.
        if let Some(Ok((kind, payload))) = unread {
            let header = FrameHeader {
                kind,
                group: 0,
                request: self.number,
                payload_bytes: payload.len(),
            };
            self.link.release_unwanted(self.group, header, &payload);
        }
    }
}
