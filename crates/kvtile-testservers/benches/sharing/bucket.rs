//! S3 on SeaweedFS: kvtile's store and its tier against the bare client that the store is made of.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures_util::StreamExt;
use kvtile_shared::store::{Deadline, SharedStore, ValueName};
use kvtile_shared_object::{ObjectBucket, ObjectStoreUrl};
use kvtile_testservers::kinds::{InstalledServers, SeaweedServer};
use object_store::{
    ClientOptions, ObjectStore, ObjectStoreExt, PutMode, PutPayload, aws::AmazonS3Builder,
    path::Path,
};
use tokio::runtime::{Builder, Runtime};

use crate::{
    SharingOptions,
    clients::{name, random_bytes, read_all, write_all},
    report::{RowSubject, SharingReport},
    tier::{BenchTier, BenchTierSettings},
    turns::{TurnContender, in_turns},
};

pub(crate) const BUCKET: &str = "kvtile-bench";

/// Calls at a time: what a tier gives a store at first.
const CLIENTS: usize = 16;

/// The sizes of values, and how many a round moves.
const SIZES: [(usize, usize); 4] = [(64 << 10, 256), (1 << 20, 48), (4 << 20, 16), (16 << 20, 8)];

const GOAL: f64 = 0.9;

/// The client without kvtile, on as many threads as the store has for its connections.
struct BareClient {
    runtime: Runtime,
    objects: Arc<dyn ObjectStore>,
}

impl BareClient {
    fn new(endpoint: &str) -> BareClient {
        let runtime = Builder::new_multi_thread()
            .worker_threads(2)
            .enable_io()
            .enable_time()
            .build()
            .unwrap();
        let options = ClientOptions::new()
            .with_timeout_disabled()
            .with_allow_http(true);
        let objects = AmazonS3Builder::from_env()
            .with_bucket_name(BUCKET)
            .with_endpoint(endpoint)
            .with_region("us-east-1")
            .with_client_options(options)
            .build()
            .unwrap();
        BareClient {
            runtime,
            objects: Arc::new(objects),
        }
    }

    /// Reads each object once, `memories.len()` at a time, into memory of the caller.
    fn read_all(&self, paths: &Arc<[Path]>, memories: &mut Vec<Vec<u8>>) -> Duration {
        let next = Arc::new(AtomicUsize::new(0));
        let began = Instant::now();
        let tasks: Vec<_> = memories
            .drain(..)
            .map(|mut memory| {
                let (next, paths) = (Arc::clone(&next), Arc::clone(paths));
                let objects = Arc::clone(&self.objects);
                self.runtime.spawn(async move {
                    while let Some(path) = paths.get(next.fetch_add(1, Ordering::Relaxed)) {
                        let mut pieces = objects.get_opts(path, Default::default());
                        let mut pieces = (&mut pieces).await.unwrap().into_stream();
                        let mut got = 0;
                        while let Some(piece) = pieces.next().await {
                            let piece = piece.unwrap();
                            memory[got..got + piece.len()].copy_from_slice(&piece);
                            got += piece.len();
                        }
                        assert_eq!(got, memory.len(), "{path}");
                    }
                    memory
                })
            })
            .collect();
        for task in tasks {
            memories.push(self.runtime.block_on(task).unwrap());
        }
        began.elapsed()
    }

    /// Writes each object once, [`CLIENTS`] at a time, as the store does: only if it is absent. With
    /// `heads`, it sends a `HEAD` before each `PUT`, as the tier does.
    fn write_all(&self, paths: &Arc<[Path]>, values: &Arc<[Bytes]>, heads: bool) -> Duration {
        let next = Arc::new(AtomicUsize::new(0));
        let began = Instant::now();
        let tasks = (0..CLIENTS).map(|_| {
            let (next, paths) = (Arc::clone(&next), Arc::clone(paths));
            let (objects, values) = (Arc::clone(&self.objects), Arc::clone(values));
            self.runtime.spawn(async move {
                loop {
                    let at = next.fetch_add(1, Ordering::Relaxed);
                    let Some(path) = paths.get(at) else { break };
                    if heads {
                        assert!(objects.head(path).await.is_err(), "{path} is new");
                    }
                    let value = PutPayload::from_bytes(values[at % values.len()].clone());
                    let put = objects.put_opts(path, value, PutMode::Create.into());
                    put.await.unwrap();
                }
            })
        });
        let tasks: Vec<_> = tasks.collect();
        for task in tasks {
            self.runtime.block_on(task).unwrap();
        }
        began.elapsed()
    }
}

/// What all rows use.
struct BucketRig {
    bare: BareClient,
    store: Arc<dyn SharedStore>,
    rounds: usize,
}

pub(crate) fn measure(
    servers: &InstalledServers,
    options: &SharingOptions,
    report: &mut SharingReport,
) {
    let folder = tempfile::tempdir_in(&options.folder).unwrap();
    let server = match SeaweedServer::start(servers, folder.path()) {
        Ok(server) => server,
        Err(error) => return report.leave_out(format!("S3: {error}")),
    };
    server.make_bucket(BUCKET).unwrap();
    let store = ObjectBucket::open(
        &bucket_url(&server),
        Deadline::within(Duration::from_secs(30)),
    );
    let rig = BucketRig {
        bare: BareClient::new(&endpoint(&server)),
        store: Arc::new(store.unwrap()),
        rounds: options.rounds,
    };
    for size in SIZES {
        stores(&rig, size, report);
        fetches(&rig, size, report);
    }
}

fn endpoint(server: &SeaweedServer) -> String {
    format!("http://127.0.0.1:{}", server.process.port())
}

/// The URL of the store in the bucket of a server.
pub(crate) fn bucket_url(server: &SeaweedServer) -> ObjectStoreUrl {
    let endpoint = endpoint(server);
    let url = format!("s3://{BUCKET}/store?endpoint={endpoint}&region=us-east-1");
    url.parse().unwrap()
}

/// The names of a round, below the prefix of the store.
fn names(what: &str, bytes: usize, round: usize, count: usize) -> Vec<ValueName> {
    let of = |value| name(format!("{what}/{bytes}/{round}/{value:04x}"));
    (0..count).map(of).collect()
}

fn paths(names: &[ValueName]) -> Arc<[Path]> {
    let path = |name: &ValueName| Path::parse(format!("store/{name}")).unwrap();
    names.iter().map(path).collect()
}

fn stores(rig: &BucketRig, (bytes, count): (usize, usize), report: &mut SharingReport) {
    let values: Vec<Vec<u8>> = (0..8).map(|seed| random_bytes(seed, bytes)).collect();
    let owned: Arc<[Bytes]> = values.iter().map(|value| value.clone().into()).collect();
    let settings = BenchTierSettings {
        prefix: "stored",
        ..BenchTierSettings::default()
    };
    let mut tier = BenchTier::open(&rig.store, (bytes, count), settings);
    let contenders = vec![
        TurnContender {
            name: "object_store",
            goal: None,
            round: Box::new(|round| {
                let names = names("bare", bytes, round, count);
                rig.bare.write_all(&paths(&names), &owned, false)
            }),
        },
        TurnContender {
            name: "object_store, HEAD first",
            goal: None,
            round: Box::new(|round| {
                let names = names("head", bytes, round, count);
                rig.bare.write_all(&paths(&names), &owned, true)
            }),
        },
        TurnContender {
            name: "ObjectBucket",
            goal: Some(GOAL),
            round: Box::new(|round| {
                let names = names("bucket", bytes, round, count);
                write_all(&*rig.store, &names, &values, CLIENTS)
            }),
        },
        TurnContender {
            name: "SharedTier",
            goal: Some(GOAL),
            round: Box::new(move |round| tier.write(round)),
        },
    ];
    let subject = RowSubject {
        what: "S3 store",
        value_bytes: bytes,
        values: count,
        clients: CLIENTS,
    };
    report.add(&subject, &in_turns(rig.rounds, contenders));
}

fn fetches(rig: &BucketRig, (bytes, count): (usize, usize), report: &mut SharingReport) {
    let values: Vec<Vec<u8>> = (0..count).map(|seed| random_bytes(seed, bytes)).collect();
    let names = names("fetched", bytes, 0, count);
    write_all(&*rig.store, &names, &values, CLIENTS);
    let paths = paths(&names);
    let settings = BenchTierSettings {
        prefix: "fetched",
        ..BenchTierSettings::default()
    };
    let mut tier = BenchTier::open(&rig.store, (bytes, count), settings);
    tier.write(0);
    let memories = || vec![vec![0; bytes]; CLIENTS];
    let (mut first, mut second) = (memories(), memories());
    let contenders = vec![
        TurnContender {
            name: "object_store",
            goal: None,
            round: Box::new(|_| rig.bare.read_all(&paths, &mut first)),
        },
        TurnContender {
            name: "ObjectBucket",
            goal: Some(GOAL),
            round: Box::new(|_| read_all(&*rig.store, &names, &mut second)),
        },
        TurnContender {
            name: "SharedTier",
            goal: Some(GOAL),
            round: Box::new(move |_| tier.read()),
        },
    ];
    let subject = RowSubject {
        what: "S3 fetch",
        value_bytes: bytes,
        values: count,
        clients: CLIENTS,
    };
    report.add(&subject, &in_turns(rig.rounds, contenders));
}
