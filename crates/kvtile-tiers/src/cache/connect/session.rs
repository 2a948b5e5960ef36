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
use kvtile_layout::{
    LayoutError, Shape, Word,
    identity::{Identity, LayoutIdentity},
};
use kvtile_memory::{MemoryError, SharedReadMemory};
use kvtile_transfer::{LayoutHandle, PhysicalLayout, TransferError, TransferManager};
use parking_lot::{Condvar, Mutex};

use super::{
    ConnectSettings,
    connection::ConnectOffer,
    link::{DaemonLink, LinkError, PendingReply},
};
use crate::{
    cache::serving::{HelloMessage, WelcomeGroup, WelcomeMessage},
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

/// A session about one group. All that the daemon holds for it ends with its connection, which the
/// sessions of all groups of a client share.
pub(super) struct DaemonSession {
    pub(super) link: Arc<DaemonLink>,
    /// The number of the group.
    group: u16,
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
    /// Sends a request about the group. `kept` is dropped once the daemon has answered, however late, or
    /// once the connection has ended.
    pub(super) fn request(
        &self,
        frame: impl FnOnce(u64) -> Vec<u8>,
        kept: Option<Box<dyn Send>>,
    ) -> Result<PendingReply, LinkError> {
        self.link.request(self.group, frame, kept)
    }

    /// Sends a frame about the group that has no reply.
    pub(super) fn post(&self, frame: Vec<u8>) {
        self.link.post(self.group, frame);
    }

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
    /// Returns the session of each group.
    pub(super) fn open(
        socket: &Path,
        (settings, offer): (&ConnectSettings<()>, &ConnectOffer),
        manager: &Arc<TransferManager>,
        connected: impl FnOnce(&UnixStream),
    ) -> Result<Vec<Arc<DaemonSession>>, TierError> {
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
        let welcome = greet(&stream, (settings, offer), &no_daemon)?;
        let mut pools = Vec::with_capacity(offer.groups.len());
        for ((identity, shape), group) in offer.groups.iter().zip(&welcome.groups) {
            pools.push(receive_pool(&stream, (identity, shape), group)?);
        }
        let slots = staging_slots(settings, offer, &welcome)?;
        let mut staged = Vec::with_capacity(offer.groups.len());
        for ((of, slots), (_, word)) in offer.groups.iter().zip(slots).zip(&pools) {
            staged.push(hand_staging_over(&stream, (of, word, slots), &no_daemon)?);
        }
        stream.set_read_timeout(None).map_err(no_daemon)?;
        let answer = Some(settings.answer_within);
        stream.set_write_timeout(answer).map_err(no_daemon)?;
        // The steps of the handshake have the first numbers.
        let link = DaemonLink::new(stream, 2 + offer.groups.len() as u64);
        let groups = welcome.groups.iter().zip(pools).zip(staged).zip(0..);
        let session = |(((of, (pool, _)), staging), number)| {
            let place = (Arc::clone(&link), number, of);
            DaemonSession::register(place, &welcome, (pool, staging), manager)
        };
        groups.map(session).collect()
    }

    /// The session about a group, once its memory is registered.
    fn register(
        (link, group, of): (Arc<DaemonLink>, u16, &WelcomeGroup),
        welcome: &WelcomeMessage,
        (pool, staging): (PhysicalLayout, PhysicalLayout),
        manager: &Arc<TransferManager>,
    ) -> Result<Arc<DaemonSession>, TierError> {
        let staging_blocks = staging.shape().num_blocks();
        let pool = manager.register(pool)?;
        let staging = manager.register(staging).inspect_err(|_| {
            let _ = manager.unregister(pool);
        })?;
        let free = (0..usize::try_from(staging_blocks).unwrap_or(0)).collect();
        Ok(Arc::new(DaemonSession {
            link,
            group,
            tiers: welcome.tiers.clone(),
            pool,
            pool_blocks: of.pool_blocks,
            blocks: of.blocks,
            lease: Duration::from_millis(welcome.lease_ms),
            staging: StagingSlots {
                handle: staging,
                free: Mutex::new(free),
                changed: Condvar::new(),
            },
            manager: Arc::clone(manager),
        }))
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
    (settings, offer): (&ConnectSettings<()>, &ConnectOffer),
    no_daemon: &dyn Fn(std::io::Error) -> TierError,
) -> Result<WelcomeMessage, TierError> {
    let hello = HelloMessage {
        version: WIRE_VERSION,
        blocks: offer.blocks.clone(),
        name: settings.name.clone(),
    };
    let hello = json(&hello)?;
    let frame = FrameHeader::frame(FrameKind::Hello, 1, |out| out.extend_from_slice(&hello));
    let mut socket = stream;
    socket.write_all(&frame).map_err(no_daemon)?;
    let payload = reply(stream, FrameKind::Welcome, no_daemon)?;
    let welcome: WelcomeMessage =
        serde_json::from_slice(&payload).map_err(|error| refused(error.to_string()))?;
    if welcome.groups.len() != offer.groups.len() {
        return Err(refused(format!(
            "the daemon serves {} groups, and the settings have {}",
            welcome.groups.len(),
            offer.groups.len()
        )));
    }
    for ((identity, _), group) in offer.groups.iter().zip(&welcome.groups) {
        if group.identity != identity.fingerprint() {
            return Err(refused(format!(
                "the daemon serves the identity {}, and the settings have {}",
                group.identity,
                identity.fingerprint()
            )));
        }
    }
    Ok(welcome)
}

/// Receives the host memory of a group, and returns it with the order of its blocks.
fn receive_pool(
    stream: &UnixStream,
    (identity, shape): (&Identity, &Shape),
    group: &WelcomeGroup,
) -> Result<(PhysicalLayout, Word), TierError> {
    let word = Word::parse(&group.storage_word).map_err(LayoutError::from)?;
    let memory = SharedReadMemory::receive(stream).map_err(memory_error)?;
    let shape = shape.with_num_blocks(group.blocks)?;
    let over = StorageMemory::Over(Arc::new(memory));
    let pool = opening::storage(shape, identity, Some(&word), over)?;
    let block_layout = LayoutIdentity::of_block(pool.strided()).fingerprint();
    if block_layout != group.block_layout || group.pool_blocks > group.blocks {
        return Err(refused(format!(
            "the daemon's blocks have the layout {}, and this process makes {block_layout} of its order {}; run the \
             same version of kvtile on both sides",
            group.block_layout, group.storage_word
        )));
    }
    Ok((pool, word))
}

/// The blocks of staging memory of each group: one, and an equal part of the bytes that are left.
fn staging_slots(
    settings: &ConnectSettings<()>,
    offer: &ConnectOffer,
    welcome: &WelcomeMessage,
) -> Result<Vec<u64>, TierError> {
    let stride = |(_, shape): &(Identity, Shape)| {
        let bytes = shape.block_bytes()?;
        let aligned = bytes.checked_next_multiple_of(opening::ALIGNMENT);
        aligned.ok_or(TierError::Settings(SettingsError::BlockBytes {
            block_bytes: bytes,
        }))
    };
    let strides: Vec<u64> = offer.groups.iter().map(stride).collect::<Result<_, _>>()?;
    let needed_bytes = strides.iter().copied().fold(0, u64::saturating_add);
    let bytes = settings.staging_bytes.min(welcome.staging_bytes_max);
    let Some(rest) = bytes.checked_sub(needed_bytes) else {
        return Err(TierError::Settings(SettingsError::ConnectStagingTooSmall {
            staging_bytes: bytes,
            needed_bytes,
        }));
    };
    let part = rest / (strides.len() as u64).max(1);
    Ok(strides.iter().map(|stride| 1 + part / stride).collect())
}

/// Makes staging memory of a group and sends it to the daemon.
fn hand_staging_over(
    stream: &UnixStream,
    ((identity, shape), word, blocks): (&(Identity, Shape), &Word, u64),
    no_daemon: &dyn Fn(std::io::Error) -> TierError,
) -> Result<PhysicalLayout, TierError> {
    let shape = shape.with_num_blocks(blocks)?;
    let staging = opening::storage(shape, identity, Some(word), StorageMemory::Shared)?;
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
