//! The connection that the groups of one client share: one session with the daemon, made again after its
//! end by a thread.

use std::{
    net::Shutdown,
    os::unix::net::UnixStream,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use kvtile_blocks::events::{EventSnapshot, EventSubscriber, TierId};
use kvtile_daemon_wire::{FrameHeader, FrameKind};
use kvtile_layout::{Shape, identity::Identity};
use kvtile_transfer::TransferManager;
use parking_lot::{Condvar, Mutex};

use super::{
    BUSY_PAUSE, ConnectSettings, RETRY_AFTER_MAX,
    events::ConnectedEvents,
    link::LinkError,
    session::{self, DaemonSession},
};
use crate::{
    cache::serving::{CallAnswer, CallMessage, HelloBlocks},
    error::{RequestError, TierError},
    source::EventSource,
};

/// What a client requests of the daemon.
pub(crate) struct ConnectOffer {
    /// Its form in the hello.
    pub(crate) blocks: HelloBlocks,
    /// The identity of each group, and the shape of one of its blocks.
    pub(crate) groups: Vec<(Identity, Shape)>,
}

/// The sessions of all groups.
pub(super) type GroupSessions = Arc<[Arc<DaemonSession>]>;

/// The state of the connection.
#[derive(Default)]
struct ConnectionState {
    sessions: Option<GroupSessions>,
    /// The socket of a handshake that is in progress.
    connecting: Option<UnixStream>,
    is_closed: bool,
}

impl ConnectionState {
    /// Ends the handshake of a cache that is closed.
    fn end_if_closed(&self) {
        if let Some(socket) = self.connecting.as_ref().filter(|_| self.is_closed) {
            // An error means that it has ended already.
            let _ = socket.shutdown(Shutdown::Both);
        }
    }
}

/// The connection of a client.
pub(crate) struct DaemonConnection {
    /// The number of this client in the process.
    pub(super) id: u64,
    socket: PathBuf,
    pub(super) settings: ConnectSettings<()>,
    offer: ConnectOffer,
    manager: Arc<TransferManager>,
    state: Mutex<ConnectionState>,
    changed: Condvar,
    /// Number of clearings of this client. Its lock orders stores and clearings on the socket.
    pub(super) clearings: Mutex<u64>,
    /// Held by the one call that does I/O in the daemon.
    calls: Mutex<()>,
    events: Arc<ConnectedEvents>,
    /// The tiers of the daemon, as the last session reported them.
    tiers: Mutex<Vec<TierId>>,
    thread: Mutex<Option<JoinHandle<()>>>,
    /// Lives as long as the connection.
    owner: Arc<()>,
}

impl DaemonConnection {
    /// Connects, and starts the thread that serves replies and connects again.
    pub(crate) fn open(
        socket: &Path,
        settings: ConnectSettings<()>,
        offer: ConnectOffer,
        manager: Arc<TransferManager>,
    ) -> Result<Arc<DaemonConnection>, TierError> {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        settings.check()?;
        let sessions = DaemonSession::open(socket, (&settings, &offer), &manager, |_| {})?;
        let tiers = sessions.first().map(|session| session.tiers.clone());
        let connection = Arc::new(DaemonConnection {
            id: NEXT.fetch_add(1, Ordering::Relaxed),
            socket: socket.to_path_buf(),
            settings,
            offer,
            manager,
            state: Mutex::new(ConnectionState {
                sessions: Some(sessions.into()),
                ..ConnectionState::default()
            }),
            changed: Condvar::new(),
            clearings: Mutex::new(0),
            calls: Mutex::new(()),
            events: Arc::new(ConnectedEvents::new()?),
            tiers: Mutex::new(tiers.unwrap_or_default()),
            thread: Mutex::new(None),
            owner: Arc::new(()),
        });
        let served = Arc::clone(&connection);
        let thread = std::thread::Builder::new().name("kvtile-connect".to_owned());
        let thread = thread.spawn(move || served.supervise());
        *connection.thread.lock() = Some(thread.map_err(TierError::thread)?);
        Ok(connection)
    }

    /// Whether the owner of the cache has closed it.
    pub(super) fn is_closed(&self) -> bool {
        self.state.lock().is_closed
    }

    /// Whether calls reach the daemon.
    pub(crate) fn is_connected(&self) -> bool {
        let session = self.session(0);
        session.is_some_and(|session| !session.link.is_closed() && !session.link.is_late())
    }

    pub(crate) fn tiers(&self) -> Vec<TierId> {
        self.tiers.lock().clone()
    }

    /// The events of the daemon's tiers from now on.
    pub(crate) fn subscribe(&self) -> EventSubscriber {
        self.events.subscribe(self.session(0).as_ref())
    }

    /// The events and snapshots, for a reader that must not keep the cache open.
    pub(crate) fn event_source(&self, page_sizes: impl IntoIterator<Item = u64>) -> EventSource {
        let session = self.session(0);
        ConnectedEvents::source(&self.events, session.as_ref(), &self.owner, page_sizes)
    }

    /// The blocks that the daemon has now.
    pub(crate) fn snapshot(&self) -> EventSnapshot {
        let within = self.settings.answer_within;
        self.events.snapshot(self.session(0).as_ref(), within)
    }

    /// The sessions of all groups, if the daemon is connected.
    fn sessions(&self) -> Option<GroupSessions> {
        self.state.lock().sessions.clone()
    }

    /// The session of a group, if the daemon is connected.
    pub(super) fn session(&self, group: u16) -> Option<Arc<DaemonSession>> {
        let sessions = self.sessions()?;
        sessions.get(usize::from(group)).cloned()
    }

    /// The sessions of all groups, if a call to them may be answered soon.
    pub(super) fn answering(&self) -> Result<GroupSessions, LinkError> {
        let sessions = self.sessions().ok_or(LinkError::Closed)?;
        match sessions.first() {
            Some(session) if session.link.is_late() => Err(LinkError::Late {
                within: Duration::ZERO,
            }),
            Some(_) => Ok(sessions),
            None => Err(LinkError::Closed),
        }
    }

    /// Connects, serves the replies, and connects again, until the cache is closed.
    fn supervise(&self) {
        let mut pause = self.settings.retry_after;
        loop {
            let session = self.session(0);
            if let Some(session) = session {
                let served = || {
                    self.events.connected(&session.link);
                    let events = &mut |payload: &[u8]| self.events.came(&session, payload);
                    session.link.run(events);
                };
                if catch_unwind(AssertUnwindSafe(served)).is_err() {
                    log::error!("a frame of the daemon caused a panic; the connection ends");
                    session.link.close();
                }
                self.state.lock().sessions = None;
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
            let opened = catch_unwind(AssertUnwindSafe(|| self.open_sessions()));
            let opened = opened.unwrap_or_else(|_| {
                let text = "the handshake panicked";
                Err(session::refused(text.to_owned()))
            });
            match opened {
                Ok(sessions) => {
                    let mut state = self.state.lock();
                    if state.is_closed {
                        return;
                    }
                    let tiers = sessions.first().map(|session| session.tiers.clone());
                    *self.tiers.lock() = tiers.unwrap_or_default();
                    state.sessions = Some(sessions.into());
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
    fn open_sessions(&self) -> Result<Vec<Arc<DaemonSession>>, TierError> {
        let hello = (&self.settings, &self.offer);
        let sessions = DaemonSession::open(&self.socket, hello, &self.manager, |stream| {
            let mut state = self.state.lock();
            state.connecting = stream.try_clone().ok();
            state.end_if_closed();
        });
        self.state.lock().connecting = None;
        sessions
    }

    /// Makes a call about a group that does I/O, and waits for its answer. The daemon makes one at a time
    /// for each client, so further ones wait here.
    pub(super) fn io_call(&self, group: u16, call: &CallMessage) -> Result<CallAnswer, TierError> {
        let (begin, within) = (Instant::now(), self.settings.work_within);
        let late = || TierError::Request(RequestError::NoAnswer { within });
        let _turn = self.calls.try_lock_for(within).ok_or_else(late)?;
        loop {
            let left = within.saturating_sub(begin.elapsed());
            match self.call(group, call, left) {
                // An earlier call of this client, for whose answer nothing waits any more.
                Err(TierError::Request(RequestError::Busy { .. })) if !left.is_zero() => {
                    std::thread::sleep(BUSY_PAUSE);
                }
                answered => return answered,
            }
        }
    }

    /// Makes a call about a group and waits for its answer.
    pub(super) fn call(
        &self,
        group: u16,
        call: &CallMessage,
        within: Duration,
    ) -> Result<CallAnswer, TierError> {
        let sessions = self.answering()?;
        let session = sessions.get(usize::from(group)).ok_or(LinkError::Closed)?;
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
                session.request(frame, None)
            }
            _ => session.request(frame, None),
        };
        let (kind, payload) = sent?.wait(within)?;
        match kind {
            FrameKind::Answer => serde_json::from_slice(&payload)
                .map_err(|error| session::refused(error.to_string())),
            kind => Err(session::refused(format!("the daemon sent {kind:?}"))),
        }
    }

    /// Ends the connection: the daemon drops all that it holds for this client.
    pub(crate) fn close(&self) {
        let sessions = {
            let mut state = self.state.lock();
            state.is_closed = true;
            state.end_if_closed();
            state.sessions.clone()
        };
        self.changed.notify_all();
        if let Some(session) = sessions.as_ref().and_then(|sessions| sessions.first()) {
            session.link.close();
        }
        let thread = self.thread.lock().take();
        // A thread cannot wait for itself.
        if let Some(thread) = thread
            && thread.thread().id() != std::thread::current().id()
        {
            let _ = thread.join();
        }
        self.state.lock().sessions = None;
    }
}
