//! How long single operations of a tier take, one at a time: percentiles.

use std::{sync::Arc, time::Duration};

use kvtile_shared::{
    folder::{FolderStore, FolderStoreSettings},
    store::{Deadline, SharedStore},
};
use kvtile_shared_object::ObjectBucket;
use kvtile_shared_redis::{RedisStore, RedisUrl};
use kvtile_testservers::kinds::{InstalledServers, RedisKind, SeaweedServer, start_redis};

use crate::{
    SharingOptions,
    bucket::{BUCKET, bucket_url},
    report::SharingReport,
    tier::{BenchTier, BenchTierSettings},
};

/// Bytes of a bundle.
const BYTES: usize = 1 << 20;

/// Operations for each round of the options.
const OPERATIONS: usize = 50;

pub(crate) fn measure(
    servers: &InstalledServers,
    options: &SharingOptions,
    report: &mut SharingReport,
) {
    let within = || Deadline::within(Duration::from_secs(30));
    let folder = tempfile::tempdir_in(&options.folder).unwrap();
    let place = |name: &str| {
        let place = folder.path().join(name);
        std::fs::create_dir_all(&place).unwrap();
        place
    };
    let store = FolderStore::open(place("folder"), FolderStoreSettings::new()).unwrap();
    percentiles("folder", &(Arc::new(store) as _), options, report);
    match start_redis(servers, RedisKind::Redis, &place("redis"), &[]) {
        Ok(server) => {
            let url: RedisUrl = format!("redis://127.0.0.1:{}/0", server.port())
                .parse()
                .unwrap();
            let store = RedisStore::open(&url, within()).unwrap();
            percentiles("Redis", &(Arc::new(store) as _), options, report);
        }
        Err(error) => report.leave_out(format!("latency of Redis: {error}")),
    }
    match SeaweedServer::start(servers, &place("bucket")) {
        Ok(server) => {
            server.make_bucket(BUCKET).unwrap();
            let store = ObjectBucket::open(&bucket_url(&server), within()).unwrap();
            percentiles("S3", &(Arc::new(store) as _), options, report);
        }
        Err(error) => report.leave_out(format!("latency of S3: {error}")),
    }
}

/// Stores, lookups and loads in turns.
fn percentiles(
    what: &'static str,
    store: &Arc<dyn SharedStore>,
    options: &SharingOptions,
    report: &mut SharingReport,
) {
    let settings = BenchTierSettings {
        prefix: "latency",
        ..BenchTierSettings::default()
    };
    let mut tier = BenchTier::open(store, (BYTES, 1), settings);
    let mut times: [Vec<Duration>; 3] = Default::default();
    for round in 0..options.rounds * OPERATIONS {
        for (times, time) in times
            .iter_mut()
            .zip([tier.ask(round), tier.write(round), tier.read()])
        {
            times.push(time);
        }
    }
    for (operation, times) in ["lookup of 16 bundles", "store of 1 MiB", "load of 1 MiB"]
        .into_iter()
        .zip(times)
    {
        report.add_latency(what, operation, times);
    }
}
