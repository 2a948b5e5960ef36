//! The handshake: hello, host memory, staging memory.

use std::sync::Arc;

use kvtile_daemon_wire::{
    FrameKind, NumberFrame, RefusalCode, RefusalFrame, WIRE_VERSION, read_frame,
};
use kvtile_memory::SharedReadMemory;
use kvtile_tiers::{
    cache::{
        Cache,
        serving::{HelloMessage, HelloVersion, WelcomeGroup, WelcomeMessage},
    },
    tier::STORAGE_WORD,
};
use kvtile_transfer::LayoutHandle;

use super::{ClientFacts, Session, SessionEnd, protocol};
use crate::{DaemonParts, ServedCache, caches::ServedGroup};

/// The longest hello.
const HELLO_BYTES_MAX: usize = 1 << 20;

fn refused(request: u64, text: impl std::fmt::Display) -> SessionEnd {
    let refusal = RefusalFrame::new(RefusalCode::Settings, text.to_string());
    SessionEnd::Refused(request, refusal)
}

/// Shakes hands; `None` for a client that only reads the status.
pub(super) fn shake_hands(
    session: &Session,
    parts: &Arc<DaemonParts>,
) -> Result<Option<ClientFacts>, SessionEnd> {
    let mut socket = &session.socket;
    let (header, payload) = read_frame(&mut socket)?;
    let request = header.request;
    match header.kind {
        FrameKind::Hello => {}
        FrameKind::Status => {
            session.send_status(parts, request);
            return Ok(None);
        }
        kind => return Err(protocol(request, format!("{kind:?} before a hello"))),
    }
    let hello = hello_of(request, &payload)?;
    let cache = parts
        .caches
        .get(&hello.blocks)
        .map_err(|error| refused(request, error))?;
    let tiers = cache.cache().tiers();
    let group = |group: &ServedGroup| WelcomeGroup {
        identity: group.identity.fingerprint(),
        blocks: group.host.shape().num_blocks(),
        pool_blocks: group.pool_blocks,
        storage_word: STORAGE_WORD.to_owned(),
        block_layout: group.block_layout,
    };
    let welcome = WelcomeMessage {
        session: session.number,
        groups: cache.groups().iter().map(group).collect(),
        tiers: tiers.clone(),
        lease_ms: u64::try_from(parts.settings.lease.as_millis()).unwrap_or(u64::MAX),
        staging_bytes_max: parts.settings.staging_bytes_max,
    };
    session.send_json(request, FrameKind::Welcome, &welcome);
    for group in cache.groups() {
        let memory = group.host.shared_memory();
        let memory = memory.ok_or_else(|| refused(request, "host memory is not shared"))?;
        memory.send(&session.socket).map_err(|_| SessionEnd::Gone)?;
    }
    let staging = all_staging(session, &cache, parts.settings.staging_bytes_max)?;
    let process = rustix::net::sockopt::socket_peercred(&session.socket)
        .map_or(0, |peer| peer.pid.as_raw_nonzero().get());
    let no_limit = session.socket.set_read_timeout(None);
    no_limit.map_err(|_| SessionEnd::Gone)?;
    Ok(Some(ClientFacts {
        name: hello.name,
        process,
        cache,
        tiers,
        staging,
    }))
}

fn hello_of(request: u64, payload: &[u8]) -> Result<HelloMessage, SessionEnd> {
    if payload.len() > HELLO_BYTES_MAX {
        let text = format!("a hello of {} bytes", payload.len());
        return Err(protocol(request, text));
    }
    // A hello of another version may have other fields.
    let version: HelloVersion = serde_json::from_slice(payload)
        .map_err(|error| protocol(request, format!("the hello is none: {error}")))?;
    if version.version != WIRE_VERSION {
        return Err(SessionEnd::Refused(
            request,
            RefusalFrame {
                code: RefusalCode::Version,
                first: WIRE_VERSION.into(),
                second: version.version.into(),
                text: format!(
                    "the daemon has version {WIRE_VERSION} of the protocol, and this process version {}; run the \
                     same version of kvtile on both sides",
                    version.version
                ),
            },
        ));
    }
    let hello: HelloMessage = serde_json::from_slice(payload)
        .map_err(|error| protocol(request, format!("the hello is none: {error}")))?;
    match hello.name.len() {
        0..=256 => Ok(hello),
        length => Err(protocol(request, format!("a name of {length} bytes"))),
    }
}

/// Receives the client's staging memory of each group, of at most `bytes_max` bytes.
fn all_staging(
    session: &Session,
    cache: &ServedCache,
    bytes_max: u64,
) -> Result<Vec<LayoutHandle>, SessionEnd> {
    let mut left = bytes_max;
    let mut staging = Vec::with_capacity(cache.groups().len());
    for (at, group) in cache.groups().iter().enumerate() {
        let received = cache.cache_of(at).map_or_else(
            || Err(refused(0, format!("group {at} has no cache"))),
            |of_group| staging_of(session, (of_group, group), &mut left),
        );
        match received {
            Ok(handle) => staging.push(handle),
            Err(end) => {
                for handle in staging {
                    if let Err(error) = cache.unregister(handle) {
                        log::warn!("staging memory of client {}: {error}", session.number);
                    }
                }
                return Err(end);
            }
        }
    }
    Ok(staging)
}

/// Receives the client's staging memory of a group, maps it for reading, and registers it with the cache. `left` are
/// the bytes that its staging memory may still have.
fn staging_of(
    session: &Session,
    (cache, group): (&Cache, &ServedGroup),
    left: &mut u64,
) -> Result<LayoutHandle, SessionEnd> {
    let mut socket = &session.socket;
    let (header, payload) = read_frame(&mut socket)?;
    let request = header.request;
    if header.kind != FrameKind::Staging {
        let text = format!("{:?} where staging memory is due", header.kind);
        return Err(protocol(request, text));
    }
    let frame =
        NumberFrame::decode(&payload).map_err(|error| protocol(request, error.to_string()))?;
    let blocks = frame.number;
    let blocks_max = *left / group.stride_bytes;
    if blocks == 0 || blocks > blocks_max {
        return Err(refused(
            request,
            format!("staging memory of {blocks} blocks; the daemon takes 1 to {blocks_max}"),
        ));
    }
    *left -= blocks * group.stride_bytes;
    let memory = SharedReadMemory::receive(&session.socket)
        .map_err(|error| protocol(request, error.to_string()))?;
    let handle = cache
        .register_storage(Arc::new(memory), blocks)
        .map_err(|error| refused(request, error))?;
    let reply = NumberFrame { number: blocks };
    session.send(&reply.encode(FrameKind::Number, request));
    Ok(handle)
}
