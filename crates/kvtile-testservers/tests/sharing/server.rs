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
    /// The client of Google Cloud Storage, with moto: its requests for objects are those of S3.
    MotoGcs,
    Redis,
    Valkey,
}

impl ServerChoice {
    pub(crate) const ALL: &[ServerChoice] = &[
        ServerChoice::SeaweedFs,
        ServerChoice::Moto,
        ServerChoice::MotoGcs,
        ServerChoice::Redis,
        ServerChoice::Valkey,
    ];

    pub(crate) fn name(self) -> &'static str {
        match self {
            ServerChoice::SeaweedFs => "seaweedfs",
            ServerChoice::Moto => "moto",
            ServerChoice::MotoGcs => "moto-gcs",
            ServerChoice::Redis => "redis",
            ServerChoice::Valkey => "valkey",
        }
    }
}

enum Running {
    Seaweed(Box<SeaweedServer>),
    Other(Box<ServerProcess>),
}

/// A server that runs.
pub(crate) struct TestServer {
    pub(crate) choice: ServerChoice,
    pub(crate) servers: InstalledServers,
    /// How long tests under load take.
    pub(crate) load: Duration,
    running: Running,
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
                Running::Seaweed(Box::new(SeaweedServer::start(servers, path)?))
            }
            ServerChoice::Moto | ServerChoice::MotoGcs => {
                Running::Other(Box::new(start_moto(servers, path)?))
            }
            ServerChoice::Redis | ServerChoice::Valkey => {
                let kind = kind_of(choice);
                Running::Other(Box::new(start_redis(servers, kind, path, &[])?))
            }
        };
        let seconds = env::var("KVTILE_SHARING_SECONDS").ok();
        let seconds = seconds.and_then(|seconds| seconds.parse().ok());
        let server = TestServer {
            choice,
            servers: servers.clone(),
            load: Duration::from_secs(seconds.unwrap_or(2)),
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
            (Running::Seaweed(server), _) => server.make_bucket(BUCKET),
            (Running::Other(server), ServerChoice::Moto | ServerChoice::MotoGcs) => {
                make_moto_bucket(server.port(), BUCKET)
            }
            (Running::Other(_), _) => Ok(()),
        }
    }

    pub(crate) fn process(&mut self) -> &mut ServerProcess {
        match &mut self.running {
            Running::Seaweed(server) => &mut server.process,
            Running::Other(server) => server,
        }
    }

    pub(crate) fn seaweed(&self) -> Option<&SeaweedServer> {
        match &self.running {
            Running::Seaweed(server) => Some(server),
            Running::Other(_) => None,
        }
    }

    pub(crate) fn port(&self) -> u16 {
        match &self.running {
            Running::Seaweed(server) => server.process.port(),
            Running::Other(server) => server.port(),
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
            ServerChoice::MotoGcs => format!("gs://{BUCKET}/{prefix}?{end}&anonymous=true"),
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
