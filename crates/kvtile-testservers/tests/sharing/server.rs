//! A server of the table, and stores on it.

use std::{
    env,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use kvtile_shared::store::{Deadline, SharedStore, SharedStoreError, StoreErrorKind};
use kvtile_shared_object::{ObjectBucket, ObjectStoreUrl};
use kvtile_shared_redis::{RedisStore, RedisUrl};
use kvtile_testservers::{
    kinds::{
        InstalledServers, RedisKind, SeaweedServer, make_moto_bucket, start_moto, start_redis,
    },
    process::{ServerError, ServerProcess},
};
use tempfile::TempDir;

/// The bucket of the S3 servers.
pub(crate) const BUCKET: &str = "kvtile-values";

/// The time to open a store of a server that runs.
pub(crate) const OPEN_WITHIN: Duration = Duration::from_secs(15);

/// The servers of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ServerChoice {
    SeaweedFs,
    Moto,
    Redis,
    Valkey,
}

impl ServerChoice {
    pub(crate) const ALL: &[ServerChoice] = &[
        ServerChoice::SeaweedFs,
        ServerChoice::Moto,
        ServerChoice::Redis,
        ServerChoice::Valkey,
    ];

    pub(crate) fn name(self) -> &'static str {
        match self {
            ServerChoice::SeaweedFs => "seaweedfs",
            ServerChoice::Moto => "moto",
            ServerChoice::Redis => "redis",
            ServerChoice::Valkey => "valkey",
        }
    }
}

enum RunningServer {
    Seaweed(Box<SeaweedServer>),
    Other(Box<ServerProcess>),
}

/// A server that runs.
pub(crate) struct TestServer {
    pub(crate) choice: ServerChoice,
    pub(crate) servers: InstalledServers,
    /// How long tests under load take.
    pub(crate) load: Duration,
    /// How often the server is killed.
    pub(crate) kills: usize,
    /// How often a writer is killed.
    pub(crate) writer_kills: usize,
    running: RunningServer,
    folder: TempDir,
    prefixes: AtomicU32,
}

impl TestServer {
    pub(crate) fn start(
        servers: &InstalledServers,
        choice: ServerChoice,
    ) -> Result<TestServer, ServerError> {
        let folder = TempDir::new().unwrap();
        let path = folder.path();
        let running = match choice {
            ServerChoice::SeaweedFs => {
                RunningServer::Seaweed(Box::new(SeaweedServer::start(servers, path)?))
            }
            ServerChoice::Moto => RunningServer::Other(Box::new(start_moto(servers, path)?)),
            ServerChoice::Redis | ServerChoice::Valkey => {
                let kind = kind_of(choice);
                RunningServer::Other(Box::new(start_redis(servers, kind, path, &[])?))
            }
        };
        let kills = number("KVTILE_SHARING_KILLS", 100);
        let server = TestServer {
            choice,
            servers: servers.clone(),
            load: Duration::from_secs(number("KVTILE_SHARING_SECONDS", 2)),
            // The servers with the interface of S3 start slowly.
            kills: usize::try_from(match choice {
                ServerChoice::SeaweedFs | ServerChoice::Moto => kills.div_ceil(20),
                ServerChoice::Redis | ServerChoice::Valkey => kills,
            })
            .unwrap(),
            writer_kills: usize::try_from(kills).unwrap(),
            running,
            folder,
            prefixes: AtomicU32::new(0),
        };
        server.make_bucket()?;
        Ok(server)
    }

    /// Makes the bucket of an S3 server.
    pub(crate) fn make_bucket(&self) -> Result<(), ServerError> {
        match (&self.running, self.choice) {
            (RunningServer::Seaweed(server), _) => server.make_bucket(BUCKET),
            (RunningServer::Other(server), ServerChoice::Moto) => {
                make_moto_bucket(server.port(), BUCKET)
            }
            (RunningServer::Other(_), _) => Ok(()),
        }
    }

    pub(crate) fn process(&mut self) -> &mut ServerProcess {
        match &mut self.running {
            RunningServer::Seaweed(server) => &mut server.process,
            RunningServer::Other(server) => server,
        }
    }

    pub(crate) fn seaweed(&self) -> Option<&SeaweedServer> {
        match &self.running {
            RunningServer::Seaweed(server) => Some(server),
            RunningServer::Other(_) => None,
        }
    }

    pub(crate) fn port(&self) -> u16 {
        match &self.running {
            RunningServer::Seaweed(server) => server.process.port(),
            RunningServer::Other(server) => server.port(),
        }
    }

    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    pub(crate) fn is_redis(&self) -> bool {
        matches!(self.choice, ServerChoice::Redis | ServerChoice::Valkey)
    }

    /// A prefix that no other test uses.
    pub(crate) fn new_prefix(&self) -> String {
        let number = self.prefixes.fetch_add(1, Ordering::Relaxed);
        format!("test-{number}")
    }

    /// The URL of a prefix, through another port than the server's.
    pub(crate) fn url_at(&self, port: u16, prefix: &str) -> String {
        let end = format!("endpoint=http://127.0.0.1:{port}");
        match self.choice {
            ServerChoice::SeaweedFs | ServerChoice::Moto => {
                format!("s3://{BUCKET}/{prefix}?{end}&region=us-east-1")
            }
            ServerChoice::Redis | ServerChoice::Valkey => {
                format!("redis://127.0.0.1:{port}/0?prefix={prefix}&connections=16")
            }
        }
    }

    pub(crate) fn url(&self, prefix: &str) -> String {
        self.url_at(self.port(), prefix)
    }

    /// Opens a store with a new prefix.
    pub(crate) fn open(&self) -> Arc<dyn SharedStore> {
        open_within(&self.url(&self.new_prefix()), OPEN_WITHIN).unwrap()
    }
}

/// The number in a variable of the environment.
fn number(variable: &str, default: u64) -> u64 {
    let Ok(text) = env::var(variable) else {
        return default;
    };
    let number = text.parse();
    number.unwrap_or_else(|error| panic!("{variable}={text}: {error}"))
}

pub(crate) fn kind_of(choice: ServerChoice) -> RedisKind {
    match choice {
        ServerChoice::Valkey => RedisKind::Valkey,
        _ => RedisKind::Redis,
    }
}

/// Opens the store of an URL.
pub(crate) fn open_within(
    url: &str,
    within: Duration,
) -> Result<Arc<dyn SharedStore>, SharedStoreError> {
    let by = Deadline::within(within);
    if url.starts_with("redis:") || url.starts_with("unix:") {
        let url: RedisUrl = url.parse().unwrap();
        return Ok(Arc::new(RedisStore::open(&url, by)?));
    }
    let url: ObjectStoreUrl = url.parse().unwrap();
    Ok(Arc::new(ObjectBucket::open(&url, by)?))
}

/// Runs a call until it succeeds, at most for `within`; how long it took. An error in between must
/// be one after which trying again helps.
pub(crate) fn until_it_works<T>(
    within: Duration,
    mut call: impl FnMut() -> Result<T, SharedStoreError>,
) -> (T, Duration) {
    let began = std::time::Instant::now();
    loop {
        match call() {
            Ok(value) => return (value, began.elapsed()),
            Err(error) => {
                assert_eq!(error.kind(), StoreErrorKind::Transient, "{error}");
                assert!(began.elapsed() < within, "does not work again: {error}");
                std::thread::sleep(Duration::from_millis(50));
            }
        }
    }
}
