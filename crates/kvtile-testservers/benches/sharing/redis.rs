//! `GET` on Redis: the store's threads against the clients of `redis-benchmark`, on the same key.

use std::{process::Command, time::Duration};

use kvtile_shared::store::{Deadline, SharedStore};
use kvtile_shared_redis::{RedisStore, RedisUrl};
use kvtile_testservers::kinds::{InstalledServers, RedisKind, start_redis};

use crate::{
    SharingOptions,
    clients::{name, random_bytes, read_all},
    report::{RowSubject, SharingReport},
    turns::{TurnContender, in_turns},
};

/// Calls at a time.
const CLIENTS: [usize; 2] = [1, 8];

/// The sizes of values, and how many a round reads.
const SIZES: [(usize, usize); 4] = [
    (16 << 10, 16_384),
    (64 << 10, 8_192),
    (256 << 10, 2_048),
    (1 << 20, 512),
];

const GOAL: f64 = 0.8;

pub(crate) fn measure(
    servers: &InstalledServers,
    options: &SharingOptions,
    report: &mut SharingReport,
) {
    if Command::new("redis-benchmark")
        .arg("--version")
        .output()
        .is_err()
    {
        return report.leave_out("Redis: redis-benchmark is not installed".to_owned());
    }
    let folder = tempfile::tempdir_in(&options.folder).unwrap();
    let server = match start_redis(servers, RedisKind::Redis, folder.path(), &[]) {
        Ok(server) => server,
        Err(error) => return report.leave_out(format!("Redis: {error}")),
    };
    let url = format!("redis://127.0.0.1:{}/0?connections=16", server.port());
    let url: RedisUrl = url.parse().unwrap();
    let store = RedisStore::open(&url, Deadline::within(Duration::from_secs(10))).unwrap();
    for (bytes, count) in SIZES {
        let key = format!("value-{bytes}");
        let value = random_bytes(bytes, bytes);
        let by = Deadline::within(Duration::from_secs(10));
        store
            .write(&name(key.clone()), &[&value], None, by)
            .unwrap();
        for clients in CLIENTS {
            let names = vec![name(key.clone()); count];
            let mut memories = vec![vec![0; bytes]; clients];
            let port = server.port().to_string();
            let contenders = vec![
                TurnContender {
                    name: "redis-benchmark",
                    goal: None,
                    round: Box::new(|_| benchmark(&port, &key, (count, clients))),
                },
                TurnContender {
                    name: "RedisStore",
                    goal: Some(GOAL),
                    round: Box::new(|_| read_all(&store, &names, &mut memories)),
                },
            ];
            let subject = RowSubject {
                what: "Redis GET",
                value_bytes: bytes,
                values: count,
                clients,
            };
            let times = in_turns(options.rounds, contenders);
            assert!(memories.contains(&value), "wrong bytes");
            report.add(&subject, &times);
        }
    }
}

/// The time for `count` calls, from the rate that `redis-benchmark` reports.
fn benchmark(port: &str, key: &str, (count, clients): (usize, usize)) -> Duration {
    let output = Command::new("redis-benchmark")
        .args(["-h", "127.0.0.1", "-p", port, "--csv"])
        .args(["-n", &count.to_string(), "-c", &clients.to_string()])
        .args(["GET", key])
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    let rate = text
        .lines()
        .filter_map(|line| {
            line.split(',')
                .nth(1)?
                .trim_matches('"')
                .parse::<f64>()
                .ok()
        })
        .next_back();
    let Some(rate) = rate.filter(|rate| *rate > 0.0) else {
        panic!("no rate in the report of redis-benchmark: {text}");
    };
    Duration::from_secs_f64(count as f64 / rate)
}
