//! The node daemon: it owns host memory, a disk and other tiers, and serves them to all processes of
//! one user on one node over a Unix socket. [`Cache::connect`](kvtile_tiers::cache::Cache::connect)
//! is the other side.
//!
//! | module | contents |
//! | --- | --- |
//! | `settings` | what the daemon may use, and its limits |
//! | `caches` | one cache for each identity, opened by the first client that has it |
//! | `listen` | the socket: its lock, its mode, the peers that may connect |
//! | `session` | one client: its matches, its holds, its jobs; all of them end with its socket |
//! | `status` | what the daemon has, for people |
//!
//! Clients are not trusted with anything but reading: they map host memory for reading, and the
//! daemon copies what they store out of their staging memory. A client may send any bytes, stop, or
//! die at any moment; its session ends, and its pins with it.

#![forbid(unsafe_code)]

mod caches;
mod error;
mod listen;
mod session;
mod settings;
mod status;

use std::{
    io::PipeWriter,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
};

use kvtile_tiers::{
    TierError,
    cache::{Cache, CacheBuilder, CacheSettings, FlushReport},
    groups::{GroupCache, GroupCacheBuilder, GroupCacheSettings},
};
use parking_lot::Mutex;

pub use caches::ServedCache;
pub use error::DaemonError;
pub use settings::{DaemonDisk, DaemonSettings};
pub use status::{CacheStatus, DaemonStatus, SessionStatus};

use caches::ServedCaches;
use listen::DaemonSocket;
use session::Session;

/// Makes the builders of the caches, from the settings that the daemon has for them. They may have further tiers
/// and other components; the daemon opens the caches. A function makes those without groups.
pub trait CacheMaker: Send + Sync {
    /// The builder of the cache of an identity.
    ///
    /// # Errors
    /// A component that cannot be made.
    fn cache(&self, settings: CacheSettings) -> Result<CacheBuilder, TierError>;

    /// The builder of the cache of a model with groups; with host memory and a disk alone unless another one is
    /// made.
    ///
    /// # Errors
    /// A component that cannot be made.
    fn groups(&self, settings: GroupCacheSettings) -> Result<GroupCacheBuilder, TierError> {
        Ok(GroupCache::builder(settings))
    }

    /// A cache has opened, before its first client gets it. `name` is unique among the caches of the daemon. By
    /// default nothing happens.
    ///
    /// # Errors
    /// The cache closes again, and the client is refused with the error.
    fn opened(&self, name: &str, cache: &ServedCache) -> Result<(), TierError> {
        let _ = (name, cache);
        Ok(())
    }
}

impl<F> CacheMaker for F
where
    F: Fn(CacheSettings) -> Result<CacheBuilder, TierError> + Send + Sync,
{
    fn cache(&self, settings: CacheSettings) -> Result<CacheBuilder, TierError> {
        self(settings)
    }
}

/// What the threads of the daemon share.
struct DaemonParts {
    settings: DaemonSettings,
    caches: ServedCaches,
    sessions: Mutex<Vec<RunningSession>>,
    is_stopping: AtomicBool,
}

/// A session with its thread.
struct RunningSession {
    session: Arc<Session>,
    thread: JoinHandle<()>,
}

/// A running daemon. Dropping it stops it as [`Daemon::stop`] does.
pub struct Daemon {
    parts: Arc<DaemonParts>,
    /// The thread that listens, and the end of a pipe that wakes it when it is closed.
    listener: Option<(JoinHandle<()>, PipeWriter)>,
}

/// The caches of a daemon, by their names.
#[derive(Clone)]
pub struct OpenCaches {
    parts: std::sync::Weak<DaemonParts>,
}

impl std::fmt::Debug for OpenCaches {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("OpenCaches").finish_non_exhaustive()
    }
}

impl OpenCaches {
    /// The caches that are open now; none once the daemon has stopped.
    #[must_use]
    pub fn list(&self) -> Vec<(String, Arc<ServedCache>)> {
        let parts = self.parts.upgrade();
        parts.map(|parts| parts.caches.open()).unwrap_or_default()
    }
}

impl std::fmt::Debug for Daemon {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Daemon")
            .field("settings", &self.parts.settings)
            .finish_non_exhaustive()
    }
}

impl Daemon {
    /// Starts a daemon with host memory and a disk.
    ///
    /// # Errors
    /// Settings out of range; a socket that another daemon serves, or that cannot be made.
    pub fn start(settings: DaemonSettings) -> Result<Daemon, DaemonError> {
        let maker = |settings: CacheSettings| Ok(Cache::builder(settings));
        Daemon::start_with(settings, Arc::new(maker))
    }

    /// As [`start`](Self::start), with further tiers and other components of each cache.
    ///
    /// # Errors
    /// As for [`start`](Self::start).
    pub fn start_with(
        settings: DaemonSettings,
        maker: Arc<dyn CacheMaker>,
    ) -> Result<Daemon, DaemonError> {
        settings.check()?;
        let socket = DaemonSocket::bind(&settings.socket)?;
        let parts = Arc::new(DaemonParts {
            caches: ServedCaches::new(settings.clone(), maker),
            settings,
            sessions: Mutex::default(),
            is_stopping: AtomicBool::new(false),
        });
        let (stopped, stop) = std::io::pipe().map_err(DaemonError::thread)?;
        let shared = Arc::clone(&parts);
        let thread = std::thread::Builder::new().name("kvtile-daemon".to_owned());
        let listener = thread
            .spawn(move || listen::serve(&shared, socket, &stopped))
            .map_err(DaemonError::thread)?;
        Ok(Daemon {
            parts,
            listener: Some((listener, stop)),
        })
    }

    /// The caches that are open, with their names: the model, and the start of the identity's
    /// fingerprint.
    #[must_use]
    pub fn caches(&self) -> Vec<(String, Arc<ServedCache>)> {
        self.parts.caches.open()
    }

    /// The caches that are open, for a reader such as a page of metrics. It keeps no cache open.
    #[must_use]
    pub fn open_caches(&self) -> OpenCaches {
        OpenCaches {
            parts: Arc::downgrade(&self.parts),
        }
    }

    /// What the daemon has now.
    #[must_use]
    pub fn status(&self) -> DaemonStatus {
        status::of(&self.parts)
    }

    /// Stops the daemon: ends all sessions, writes the blocks of host memory to the durable tiers
    /// within their time for closing, and removes the socket. Returns the outcome for each cache and group.
    pub fn stop(mut self) -> Vec<(String, FlushReport)> {
        self.end()
    }

    fn end(&mut self) -> Vec<(String, FlushReport)> {
        let Some((listener, stop)) = self.listener.take() else {
            return Vec::new();
        };
        self.parts.is_stopping.store(true, Ordering::Release);
        drop(stop);
        // A panic of the thread is already in the log.
        let _ = listener.join();
        let sessions = std::mem::take(&mut *self.parts.sessions.lock());
        for running in &sessions {
            running.session.shut_down();
        }
        for running in sessions {
            let _ = running.thread.join();
        }
        self.parts.caches.close()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.end();
    }
}
