//! A session with a daemon: the handshake, host memory mapped for reading, and staging memory.

use std::{
    io::Write,
    os::unix::net::UnixStream,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use kvtile_blocks::events::TierId;
use kvtile_daemon_wire::{
    FrameHeader, FrameKind, NumberFrame, ReadFrameError, RefusalFrame, WIRE_VERSION, read_frame,
};
use kvtile_layout::{LayoutError, Word, identity::LayoutIdentity};
use kvtile_memory::{MemoryError, SharedReadMemory};
use kvtile_transfer::{LayoutHandle, PhysicalLayout, TransferError, TransferManager};
use parking_lot::{Condvar, Mutex};

use super::{ConnectSettings, link::DaemonLink};
use crate::{
    cache::serving::{HelloMessage, WelcomeMessage},
    error::{RequestError, SettingsError, TierError},
    opening::{self, StorageMemory},
};

/// Staging memory: blocks that the client writes and the daemon stores from.
struct StagingSlots {
    handle: LayoutHandle,
    free: Mutex<Vec<usize>>,
    changed: Condvar,
}

/// Slots of staging memory; dropping them frees them.
pub(super) struct StagedSlots {
    session: Arc<DaemonSession>,
    pub(super) slots: Vec<usize>,
}

/// A session. All that the daemon holds for it ends with its connection.
pub(super) struct DaemonSession {
    pub(super) link: Arc<DaemonLink>,
    pub(super) tiers: Vec<TierId>,
    /// Host memory of the daemon, mapped for reading.
    pub(super) pool: LayoutHandle,
    pub(super) pool_blocks: u64,
    /// Blocks of `pool`, spare blocks included.
    pub(super) blocks: u64,
    /// How long a hold is valid.
    pub(super) lease: Duration,
    staging: StagingSlots,
    manager: Arc<TransferManager>,
}

impl DaemonSession {
    pub(super) fn staging(&self) -> LayoutHandle {
        self.staging.handle
    }

    /// Takes up to `wanted` slots, at least one; `None` if none is free within the time.
    pub(super) fn slots(self: &Arc<Self>, wanted: usize, within: Duration) -> Option<StagedSlots> {
        let begin = Instant::now();
        let mut free = self.staging.free.lock();
        while free.is_empty() {
            let left = within.saturating_sub(begin.elapsed());
            if left.is_zero() || self.link.is_closed() {
                return None;
            }
            let left = left.min(Duration::from_millis(100));
            self.staging.changed.wait_for(&mut free, left);
        }
        let keep = free.len() - free.len().min(wanted.max(1));
        let slots = free.split_off(keep);
        drop(free);
        Some(StagedSlots {
            session: Arc::clone(self),
            slots,
        })
    }

    /// Connects to the daemon and shakes hands, each step within the time of a job: the first client of
    /// an identity waits until its cache is open. `connected` gets the socket before the handshake.
    pub(super) fn open(
        socket: &Path,
        settings: &ConnectSettings,
        (manager, engine): (&Arc<TransferManager>, &PhysicalLayout),
        connected: impl FnOnce(&UnixStream),
    ) -> Result<DaemonSession, TierError> {
        let path = socket.display().to_string();
        let no_daemon = |source| {
            TierError::Request(RequestError::NoDaemon {
                socket: path.clone(),
                source: Arc::new(source),
            })
        };
        let stream = UnixStream::connect(socket).map_err(no_daemon)?;
        check_peer(&stream, &path)?;
        connected(&stream);
        let within = Some(settings.work_within);
        stream.set_read_timeout(within).map_err(no_daemon)?;
        stream.set_write_timeout(within).map_err(no_daemon)?;
        let (word, welcome) = greet(&stream, settings, engine, &no_daemon)?;
        let memory = SharedReadMemory::receive(&stream).map_err(memory_error)?;
        let shape = engine.shape().with_num_blocks(welcome.blocks)?;
        let over = StorageMemory::Over(Arc::new(memory));
        let pool = opening::storage(shape, &settings.identity, Some(&word), over)?;
        let block_layout = LayoutIdentity::of_block(pool.strided()).fingerprint();
        if block_layout != welcome.block_layout || welcome.pool_blocks > welcome.blocks {
            return Err(refused(format!(
                "the daemon's blocks have the layout {}, and this process makes {block_layout} of its order {}; \
                 run the same version of kvtile on both sides",
                welcome.block_layout, welcome.storage_word
            )));
        }
        let staging = hand_staging_over(&stream, settings, (engine, &word), &welcome, &no_daemon)?;
        stream.set_read_timeout(None).map_err(no_daemon)?;
        let answer = Some(settings.answer_within);
        stream.set_write_timeout(answer).map_err(no_daemon)?;
        let staging_blocks = staging.shape().num_blocks();
        let pool = manager.register(pool)?;
        let staging = manager.register(staging).inspect_err(|_| {
            let _ = manager.unregister(pool);
        })?;
        let free = (0..usize::try_from(staging_blocks).unwrap_or(0)).collect();
        Ok(DaemonSession {
            link: DaemonLink::new(stream, 3),
            tiers: welcome.tiers,
            pool,
            pool_blocks: welcome.pool_blocks,
            blocks: welcome.blocks,
            lease: Duration::from_millis(welcome.lease_ms),
            staging: StagingSlots {
                handle: staging,
                free: Mutex::new(free),
                changed: Condvar::new(),
            },
            manager: Arc::clone(manager),
        })
    }
}

impl Drop for DaemonSession {
    fn drop(&mut self) {
        self.link.close();
        for handle in [self.pool, self.staging.handle] {
            if let Err(error) = self.manager.unregister(handle) {
                log::warn!("memory of a daemon that is gone is still in use: {error}");
            }
        }
    }
}

impl Drop for StagedSlots {
    fn drop(&mut self) {
        let mut free = self.session.staging.free.lock();
        free.append(&mut self.slots);
        drop(free);
        self.session.staging.changed.notify_one();
    }
}

/// Refuses a daemon of another user: it would get the blocks of this one.
fn check_peer(stream: &UnixStream, socket: &str) -> Result<(), TierError> {
    let peer = rustix::net::sockopt::socket_peercred(stream).map_err(|errno| {
        TierError::Request(RequestError::NoDaemon {
            socket: socket.to_owned(),
            source: Arc::new(errno.into()),
        })
    })?;
    let (theirs, ours) = (peer.uid.as_raw(), rustix::process::geteuid().as_raw());
    match theirs == ours {
        true => Ok(()),
        false => Err(refused(format!(
            "the daemon at {socket} runs as user {theirs} and this process as user {ours}; run both as one user"
        ))),
    }
}

/// Sends the hello and reads the welcome.
fn greet(
    stream: &UnixStream,
    settings: &ConnectSettings,
    engine: &PhysicalLayout,
    no_daemon: &dyn Fn(std::io::Error) -> TierError,
) -> Result<(Word, WelcomeMessage), TierError> {
    let hello = HelloMessage {
        version: WIRE_VERSION,
        identity: settings.identity.clone(),
        shape: engine.shape().with_num_blocks(1)?,
        name: settings.name.clone(),
    };
    let hello = json(&hello)?;
    let frame = FrameHeader::frame(FrameKind::Hello, 1, |out| out.extend_from_slice(&hello));
    let mut socket = stream;
    socket.write_all(&frame).map_err(no_daemon)?;
    let payload = reply(stream, FrameKind::Welcome, no_daemon)?;
    let welcome: WelcomeMessage =
        serde_json::from_slice(&payload).map_err(|error| refused(error.to_string()))?;
    let word = Word::parse(&welcome.storage_word).map_err(LayoutError::from)?;
    if welcome.identity != settings.identity.fingerprint() {
        return Err(refused(format!(
            "the daemon serves the identity {}, and the settings have {}",
            welcome.identity,
            settings.identity.fingerprint()
        )));
    }
    Ok((word, welcome))
}

/// Makes staging memory and sends it to the daemon.
fn hand_staging_over(
    stream: &UnixStream,
    settings: &ConnectSettings,
    (engine, word): (&PhysicalLayout, &Word),
    welcome: &WelcomeMessage,
    no_daemon: &dyn Fn(std::io::Error) -> TierError,
) -> Result<PhysicalLayout, TierError> {
    let stride = engine
        .shape()
        .block_bytes()?
        .next_multiple_of(opening::ALIGNMENT);
    let blocks = (settings.staging_bytes / stride).min(welcome.staging_blocks_max);
    if blocks == 0 {
        return Err(TierError::Settings(SettingsError::ConnectStagingTooSmall {
            staging_bytes: settings.staging_bytes,
            needed_bytes: stride,
        }));
    }
    let shape = engine.shape().with_num_blocks(blocks)?;
    let staging = opening::storage(shape, &settings.identity, Some(word), StorageMemory::Shared)?;
    let frame = NumberFrame { number: blocks }.encode(FrameKind::Staging, 2);
    let mut socket = stream;
    socket.write_all(&frame).map_err(no_daemon)?;
    if let Some(memory) = staging.shared_memory() {
        memory.send(stream).map_err(memory_error)?;
    }
    reply(stream, FrameKind::Number, no_daemon)?;
    Ok(staging)
}

/// Reads the reply of a step of the handshake.
fn reply(
    stream: &UnixStream,
    wanted: FrameKind,
    no_daemon: &dyn Fn(std::io::Error) -> TierError,
) -> Result<Vec<u8>, TierError> {
    let mut socket = stream;
    let (header, payload) = match read_frame(&mut socket) {
        Ok(frame) => frame,
        Err(ReadFrameError::Io(error)) => return Err(no_daemon(error)),
        Err(error) => return Err(refused(error.to_string())),
    };
    match header.kind {
        kind if kind == wanted => Ok(payload),
        FrameKind::Refused => {
            let refusal = RefusalFrame::decode(&payload);
            let text = refusal.map_or_else(|error| error.to_string(), |refusal| refusal.text);
            Err(refused(text))
        }
        kind => Err(refused(format!(
            "the daemon sent {kind:?} where {wanted:?} is due"
        ))),
    }
}

pub(super) fn json(message: &impl serde::Serialize) -> Result<Vec<u8>, TierError> {
    serde_json::to_vec(message).map_err(|error| refused(error.to_string()))
}

pub(super) fn refused(text: String) -> TierError {
    TierError::Request(RequestError::Refused { text })
}

fn memory_error(error: MemoryError) -> TierError {
    TierError::Transfer(TransferError::from(error))
}
