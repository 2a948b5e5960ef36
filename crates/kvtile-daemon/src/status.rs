//! What a daemon has, for people.

use std::{io::Write, os::unix::net::UnixStream, path::Path, sync::Arc, time::Duration};

use kvtile_blocks::events::TierId;
use kvtile_daemon_wire::{FrameHeader, FrameKind, read_frame};
use kvtile_tiers::{cache::Cache, metrics::CacheStats};
use serde::{Deserialize, Serialize};

use crate::{DaemonError, DaemonParts, ServedCache};

/// A client of a daemon.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionStatus {
    /// Its number.
    pub session: u64,
    /// The name that it gave.
    pub name: String,
    /// Its process.
    pub process: i32,
    /// The name of its cache.
    pub cache: String,
    /// Its matches.
    pub matches: usize,
    /// Its holds.
    pub holds: usize,
    /// Its requests in progress.
    pub in_progress: usize,
}

/// A cache of a daemon, or one group of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CacheStatus {
    /// The model, the start of the identity's fingerprint, and the group if it has groups.
    pub name: String,
    /// The model's revision.
    pub revision: String,
    /// Bytes of one block.
    pub block_bytes: u64,
    /// Its tiers in lookup order.
    pub tiers: Vec<TierId>,
    /// Its counters.
    pub stats: CacheStats,
}

/// What a daemon has.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DaemonStatus {
    /// Its process.
    pub process: u32,
    /// Its version.
    pub version: String,
    /// Its clients.
    pub sessions: Vec<SessionStatus>,
    /// Its caches.
    pub caches: Vec<CacheStatus>,
}

impl DaemonStatus {
    /// The status of the daemon at `socket`.
    ///
    /// # Errors
    /// No daemon at the socket, or none that answers within `within`.
    pub fn of(socket: &Path, within: Duration) -> Result<DaemonStatus, DaemonError> {
        let failed = DaemonError::socket("reach the daemon at", socket);
        let mut stream = UnixStream::connect(socket).map_err(&failed)?;
        stream.set_read_timeout(Some(within)).map_err(&failed)?;
        stream.set_write_timeout(Some(within)).map_err(&failed)?;
        let frame = FrameHeader::frame(FrameKind::Status, 1, |_| {});
        stream.write_all(&frame).map_err(&failed)?;
        let no_status = |what: String| DaemonError::NoStatus {
            socket: socket.display().to_string(),
            what,
        };
        let (header, payload) =
            read_frame(&mut stream).map_err(|error| no_status(error.to_string()))?;
        match header.kind {
            FrameKind::Answer => {
                serde_json::from_slice(&payload).map_err(|error| no_status(error.to_string()))
            }
            kind => Err(no_status(format!("{kind:?}"))),
        }
    }
}

pub(crate) fn of(parts: &DaemonParts) -> DaemonStatus {
    let caches = parts.caches.open();
    let of_group = |name: &str, group: Option<&str>, cache: &Cache| CacheStatus {
        name: ServedCache::full_name(name, group),
        revision: cache.identity().revision().to_owned(),
        block_bytes: cache.block_bytes(),
        tiers: cache.tiers(),
        stats: cache.stats(),
    };
    let of_groups = |(name, cache): &(String, Arc<ServedCache>)| {
        let groups = cache
            .caches()
            .map(|(group, cache)| of_group(name, group, cache));
        groups.collect::<Vec<CacheStatus>>()
    };
    let sessions = parts.sessions.lock();
    let sessions = sessions.iter();
    DaemonStatus {
        process: std::process::id(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        sessions: sessions
            .filter_map(|running| running.session.status())
            .collect(),
        caches: caches.iter().flat_map(of_groups).collect(),
    }
}
