//! One client.
//!
//! ```text
//! reader thread    frames ─► lookups, answered at once
//!                         ─► holds, stores, prefetches ─► the cache's queue
//! outbox thread    what has ended ─► replies; leases that have ended ─► pins are dropped
//! ```
//!
//! A session ends with its socket. It shuts the socket down before it drops its pins, so that a
//! client which finds its socket open after a copy knows that the blocks were pinned during it.

mod calls;
mod events;
mod handshake;
mod jobs;
mod pins;
mod requests;
mod stops;

use std::{
    io::{BufReader, Write},
    net::Shutdown,
    os::unix::net::UnixStream,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc,
        mpsc::{Receiver, RecvTimeoutError, Sender, channel},
    },
    thread::JoinHandle,
    time::Duration,
};

use kvtile_blocks::events::TierId;
use kvtile_daemon_wire::{
    FrameHeader, FrameKind, NumberFrame, ReadFrameError, RefusalCode, RefusalFrame, read_frame,
};
use kvtile_tiers::cache::Cache;
use kvtile_transfer::LayoutHandle;
use parking_lot::Mutex;

use crate::{DaemonError, DaemonParts, ServedCache, SessionStatus, status};
use events::SessionEvents;
use jobs::SessionJobs;
use pins::SessionPins;

/// How long a client may take for each step of the handshake, and to take a reply.
const PEER_WITHIN: Duration = Duration::from_secs(5);

/// How often the outbox looks at leases and seeks.
const LOOK_AFTER: Duration = Duration::from_millis(100);

/// How often the outbox looks at events of a client that subscribed.
const EVENTS_AFTER: Duration = Duration::from_millis(5);

/// How often the outbox looks at seeks while there are some.
const SEEK_AFTER: Duration = Duration::from_millis(1);

/// Something for the outbox.
enum OutboxItem {
    /// A job has ended.
    Ended(u64),
    /// A seek has begun.
    Seek,
    /// The client subscribes to events.
    Subscribe,
    /// The client waits for the events up to now.
    Settle(u64),
    /// The session ends.
    End,
}

/// The client after its handshake.
struct ClientFacts {
    name: String,
    process: i32,
    cache: Arc<ServedCache>,
    tiers: Vec<TierId>,
    /// The staging memory of each group.
    staging: Vec<LayoutHandle>,
}

/// What a request is about: one group of the client's cache.
#[derive(Clone, Copy)]
struct GroupOfClient<'a> {
    client: &'a ClientFacts,
    /// Its number.
    number: u16,
    cache: &'a Cache,
    block_bytes: u64,
    staging: LayoutHandle,
}

impl ClientFacts {
    /// A group by its number.
    fn group(&self, number: u16) -> Option<GroupOfClient<'_>> {
        let at = usize::from(number);
        Some(GroupOfClient {
            client: self,
            number,
            cache: self.cache.cache_of(at)?,
            block_bytes: self.cache.groups().get(at)?.block_bytes(),
            staging: *self.staging.get(at)?,
        })
    }
}

/// One client.
pub(crate) struct Session {
    number: u64,
    socket: UnixStream,
    writing: Mutex<()>,
    /// `None` before the handshake.
    client: Mutex<Option<Arc<ClientFacts>>>,
    pins: SessionPins,
    jobs: SessionJobs,
    outbox: Sender<OutboxItem>,
}

/// Why a session ends.
enum SessionEnd {
    /// The client closed the socket, or it failed.
    Gone,
    /// The client does not follow the protocol.
    Refused(u64, RefusalFrame),
}

impl From<ReadFrameError> for SessionEnd {
    fn from(error: ReadFrameError) -> SessionEnd {
        match error {
            ReadFrameError::Wire(error) => protocol(0, error.to_string()),
            _ => SessionEnd::Gone,
        }
    }
}

fn protocol(request: u64, text: String) -> SessionEnd {
    SessionEnd::Refused(request, RefusalFrame::new(RefusalCode::Protocol, text))
}

/// Starts a session on a thread of its own.
pub(crate) fn start(
    parts: &Arc<DaemonParts>,
    socket: UnixStream,
    number: u64,
) -> Result<(Arc<Session>, JoinHandle<()>), DaemonError> {
    let path = &parts.settings.socket;
    let failed = DaemonError::socket("serve a client of", path);
    socket.set_nonblocking(false).map_err(&failed)?;
    socket
        .set_write_timeout(Some(PEER_WITHIN))
        .map_err(&failed)?;
    socket
        .set_read_timeout(Some(PEER_WITHIN))
        .map_err(&failed)?;
    let (outbox, inbox) = channel();
    let session = Arc::new(Session {
        number,
        socket,
        writing: Mutex::new(()),
        client: Mutex::new(None),
        pins: SessionPins::new(parts.settings.requests_max),
        jobs: SessionJobs::new(parts.settings.requests_max),
        outbox,
    });
    let (ours, shared) = (Arc::clone(&session), Arc::clone(parts));
    let thread = std::thread::Builder::new()
        .name(format!("kvtile-session-{number}"))
        .spawn(move || ours.run(&shared, inbox))
        .map_err(DaemonError::thread)?;
    Ok((session, thread))
}

/// Refuses a client before it has a session.
pub(crate) fn refuse(mut socket: &UnixStream, refusal: &RefusalFrame) {
    // The client may have ended.
    let _ = socket.set_nonblocking(true);
    let _ = socket.write_all(&refusal.encode(1));
}

impl Session {
    /// Serves the client until its socket ends. A panic ends the session, as the end of the socket does.
    fn run(self: Arc<Self>, parts: &Arc<DaemonParts>, inbox: Receiver<OutboxItem>) {
        let greeted = self.unless_it_panics(|| handshake::shake_hands(&self, parts));
        let client = match greeted {
            Some(Ok(Some(client))) => Arc::new(client),
            Some(Ok(None) | Err(SessionEnd::Gone)) | None => return self.shut_down(),
            Some(Err(SessionEnd::Refused(request, refusal))) => {
                log::warn!("client {}: {}", self.number, refusal.text);
                self.send(&refusal.encode(request));
                return self.shut_down();
            }
        };
        *self.client.lock() = Some(Arc::clone(&client));
        let ours = Arc::clone(&self);
        let (theirs, leases) = (Arc::clone(&client), parts.settings.clone());
        let leases = (leases.lease, leases.match_lease);
        let outbox = std::thread::Builder::new()
            .name(format!("kvtile-outbox-{}", self.number))
            .spawn(move || {
                ours.unless_it_panics(|| ours.serve_outbox(&theirs, leases, &inbox));
            });
        match outbox {
            Ok(outbox) => {
                self.unless_it_panics(|| self.serve_requests(&client));
                self.shut_down();
                let _ = self.outbox.send(OutboxItem::End);
                let _ = outbox.join();
            }
            Err(error) => log::warn!("client {}: {error}", self.number),
        }
        self.end(&client);
    }

    /// Does a part of the session's work. A panic, which the process reports by itself, shuts the socket down: the
    /// client then connects again, where a socket that stayed open would let it wait for ever.
    fn unless_it_panics<T>(&self, work: impl FnOnce() -> T) -> Option<T> {
        let done = catch_unwind(AssertUnwindSafe(work));
        done.inspect_err(|_| {
            log::error!("client {}: its session ends with a panic", self.number);
            self.shut_down();
        })
        .ok()
    }

    fn serve_requests(self: &Arc<Self>, client: &Arc<ClientFacts>) {
        let mut from = BufReader::with_capacity(1 << 16, &self.socket);
        loop {
            let served = read_frame(&mut from)
                .map_err(SessionEnd::from)
                .and_then(|(header, payload)| requests::serve(self, client, header, &payload));
            match served {
                Ok(()) => {}
                Err(SessionEnd::Gone) => return,
                Err(SessionEnd::Refused(request, refusal)) => {
                    log::warn!("client {}: {}", self.number, refusal.text);
                    self.send(&refusal.encode(request));
                    return;
                }
            }
        }
    }

    /// Sends a frame. A client that does not take it loses its session.
    fn send(&self, frame: &[u8]) {
        let written = {
            let _writing = self.writing.lock();
            (&self.socket).write_all(frame)
        };
        if written.is_err() {
            self.shut_down();
        }
    }

    fn refuse(&self, request: u64, refusal: &RefusalFrame) {
        self.send(&refusal.encode(request));
    }

    fn send_json(&self, request: u64, kind: FrameKind, message: &impl serde::Serialize) {
        match serde_json::to_vec(message) {
            Ok(json) => self.send(&FrameHeader::frame(kind, request, |out| {
                out.extend_from_slice(&json);
            })),
            Err(error) => {
                let refusal = RefusalFrame::new(RefusalCode::Failed, error.to_string());
                self.refuse(request, &refusal);
            }
        }
    }

    /// Ends the socket; the reader then ends the session.
    pub(crate) fn shut_down(&self) {
        // An error means that it is shut down already.
        let _ = self.socket.shutdown(Shutdown::Both);
    }

    /// Replies to what has ended, and takes back what is held for too long.
    fn serve_outbox(
        &self,
        client: &ClientFacts,
        (lease, match_lease): (Duration, Duration),
        inbox: &Receiver<OutboxItem>,
    ) {
        let mut events = SessionEvents::default();
        let patience = LOOK_AFTER.min(lease / 4).max(Duration::from_millis(1));
        loop {
            let wait = match (self.jobs.has_seeks(), events.is_subscribed()) {
                (true, _) => SEEK_AFTER,
                (false, true) => patience.min(EVENTS_AFTER),
                (false, false) => patience,
            };
            match inbox.recv_timeout(wait) {
                Ok(OutboxItem::Ended(number)) => {
                    if let Some(frame) = self.jobs.reply(client, &self.pins, number) {
                        self.send(&frame);
                    }
                }
                Ok(OutboxItem::Seek) | Err(RecvTimeoutError::Timeout) => {
                    for frame in self.jobs.ready_seeks(client, &self.pins) {
                        self.send(&frame);
                    }
                    let (holds, matches) = self.pins.take_back(lease, match_lease);
                    if holds + matches > 0 {
                        log::warn!(
                            "client {} ({}): the leases of {holds} holds and {matches} matches have ended",
                            self.number,
                            client.name
                        );
                    }
                }
                Ok(OutboxItem::Subscribe) => {
                    for frame in events.begin(client) {
                        self.send(&frame);
                    }
                }
                Ok(OutboxItem::Settle(number)) => {
                    for frame in events.all_changes(client) {
                        self.send(&frame);
                    }
                    let reply = NumberFrame { number: 0 };
                    self.send(&reply.encode(FrameKind::Number, number));
                }
                Ok(OutboxItem::End) | Err(RecvTimeoutError::Disconnected) => return,
            }
            for frame in events.changes(client) {
                self.send(&frame);
            }
        }
    }

    /// Drops all that the client held, after its socket was shut down.
    fn end(&self, client: &ClientFacts) {
        self.pins.end();
        self.jobs.end();
        *self.client.lock() = None;
        for staging in &client.staging {
            if let Err(error) = client.cache.unregister(*staging) {
                log::warn!("staging memory of client {}: {error}", self.number);
            }
        }
    }

    pub(crate) fn status(&self) -> Option<SessionStatus> {
        let client = self.client.lock().clone()?;
        let (matches, holds) = self.pins.count();
        Some(SessionStatus {
            session: self.number,
            name: client.name.clone(),
            process: client.process,
            cache: client.cache.name(),
            matches,
            holds,
            in_progress: self.jobs.count(),
        })
    }

    fn send_status(&self, parts: &DaemonParts, request: u64) {
        self.send_json(request, FrameKind::Answer, &status::of(parts));
    }
}
