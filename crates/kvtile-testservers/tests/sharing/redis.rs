//! Limits and settings of Redis and Valkey.

use std::{thread, time::Duration};

use kvtile_shared::store::{Deadline, SharedStore, StoreErrorKind};
use kvtile_shared_redis::{RedisStore, RedisUrl, RedisWarning};
use kvtile_testservers::kinds::{REDIS_MAX_BYTES, start_redis};
use tempfile::TempDir;

use crate::{
    server::{TestServer, kind_of},
    table::SuiteOutcome,
    values::{numbered, read_checked, write_named},
};

const SOON: Duration = Duration::from_secs(20);
const MIB: usize = 1 << 20;

pub(crate) fn check(server: &mut TestServer) -> SuiteOutcome {
    if !server.is_redis() {
        return SuiteOutcome::DoesNotApply;
    }
    let url = server.url(&server.new_prefix());
    let store = open(&url);
    assert_eq!(store.warnings(), [], "{:?}", store.facts());
    assert_eq!(store.abilities().capacity_bytes, Some(REDIS_MAX_BYTES));
    // More bytes than the server keeps: it evicts, and serves what it has.
    let values = usize::try_from(REDIS_MAX_BYTES).unwrap() / MIB + 40;
    for index in 0..values {
        write_named(&store, &numbered(index), MIB, SOON).unwrap();
    }
    let used = open(&url).facts().memory_used_bytes.unwrap();
    assert!(
        used <= REDIS_MAX_BYTES + (8 << 20),
        "{used} bytes in the server"
    );
    let kept =
        (0..values).filter(|index| read_checked(&store, &numbered(*index), MIB, SOON).unwrap());
    let kept = kept.count();
    assert!(kept > 0 && kept < values, "{kept} of {values}");
    remove_all(&store, values);
    connections(&store, server);
    settings(server);
    SuiteOutcome::Passed(format!("({kept} of {values} values within the limit)"))
}

fn open(url: &str) -> RedisStore {
    let url: RedisUrl = url.parse().unwrap();
    RedisStore::open(&url, Deadline::within(SOON)).unwrap()
}

fn remove_all(store: &RedisStore, values: usize) {
    let names: Vec<_> = (0..values).map(numbered).collect();
    store.remove(&names, Deadline::within(SOON)).unwrap();
}

/// Many calls at a time use no more connections than the URL allows, and none fails.
fn connections(store: &RedisStore, server: &TestServer) {
    let url = server.url(&server.new_prefix());
    let few = open(&url.replace("connections=16", "connections=3"));
    let before = store.facts().clients.unwrap();
    thread::scope(|scope| {
        for thread in 0..24 {
            let few = &few;
            scope.spawn(move || {
                for turn in 0..20 {
                    let name = numbered(thread * 20 + turn);
                    write_named(few, &name, 50_000, SOON).unwrap();
                    assert!(read_checked(few, &name, 50_000, SOON).unwrap());
                }
            });
        }
        thread::sleep(Duration::from_millis(100));
        let clients = open(&url).facts().clients.unwrap();
        // This opening, the 3, and those of the stores before.
        assert!(
            clients <= before + 16 + 5,
            "{clients} connections, {before} before"
        );
    });
}

/// Servers whose settings do not fit are warned about, and a full one refuses without harm.
fn settings(server: &mut TestServer) {
    let folder = TempDir::new().unwrap();
    let kind = kind_of(server.choice);
    let full = ["--maxmemory", "8mb", "--maxmemory-policy", "noeviction"];
    let full = start_redis(&server.servers, kind, folder.path(), &full).unwrap();
    let url = format!("redis://127.0.0.1:{}", full.port());
    let store = open(&url);
    assert_eq!(store.warnings(), [RedisWarning::NoEviction]);
    let mut kept = 0;
    // Smaller and smaller ones, until not even the value of an opening fits.
    let mut fill = |length| {
        loop {
            match write_named(&store, &numbered(kept), length, SOON) {
                Ok(_) => kept += 1,
                Err(error) => return error,
            }
            assert!(kept < 100_000, "a server of 8 MB takes {kept} values");
        }
    };
    let refused = fill(MIB);
    for length in [64 << 10, 1 << 10, 10] {
        fill(length);
    }
    assert_eq!(refused.kind(), StoreErrorKind::Refused, "{refused}");
    assert!(refused.to_string().contains("OOM"), "{refused}");
    assert!(read_checked(&store, &numbered(0), MIB, SOON).unwrap());
    assert!(open(&url).warnings().contains(&RedisWarning::Full));
    assert!(kept > 0);
    drop(full);
    let folder = TempDir::new().unwrap();
    let unlimited = ["--maxmemory", "0", "--requirepass", "open sesame"];
    let unlimited = start_redis(&server.servers, kind, folder.path(), &unlimited).unwrap();
    let port = unlimited.port();
    let store = open(&format!("redis://:open%20sesame@127.0.0.1:{port}/3"));
    assert_eq!(store.warnings(), [RedisWarning::NoMemoryLimit]);
    assert!(!format!("{store:?}").contains("sesame"));
    write_named(&store, &numbered(1), 10, SOON).unwrap();
    assert!(read_checked(&store, &numbered(1), 10, SOON).unwrap());
    let without: RedisUrl = format!("redis://127.0.0.1:{port}").parse().unwrap();
    let refused = RedisStore::open(&without, Deadline::within(SOON)).unwrap_err();
    assert_eq!(refused.kind(), StoreErrorKind::Configuration, "{refused}");
}
