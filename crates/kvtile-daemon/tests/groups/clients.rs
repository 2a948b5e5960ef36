//! Several clients of one daemon, and the effect on each of the death of another client or of the daemon.

use std::{
    io::Read,
    path::Path,
    process::{Child, Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use kvtile_blocks::{
    BlockKey,
    pool::{TenantId, TenantQuota},
};
use kvtile_daemon::{Daemon, DaemonSettings};
use kvtile_tiers::{
    cache::{LoadStop, StoreStop},
    groups::{
        GroupCache, GroupConnectSettings, GroupLoadReport, GroupMatch, GroupStop,
        GroupStoreOptions, GroupStoreReport, LoadBlocks, StopOptions, StoreBlocks,
    },
};
use tempfile::TempDir;

use super::common::{GroupEngine, NAMES, chain, settings};

const ALL: [usize; 4] = [0, 1, 2, 3];

/// The environment variable with the folder of a child process.
const FOLDER: &str = "KVTILE_TEST_GROUPS_DAEMON";

/// The environment variable with the number of kills.
const KILLS: &str = "KVTILE_DAEMON_KILLS";

fn of_daemon(folder: &Path) -> DaemonSettings {
    DaemonSettings::new(folder.join("daemon.sock"), 1 << 20)
}

fn connect_settings(groups: &[usize]) -> GroupConnectSettings {
    let of_groups = settings(groups, &vec![8; groups.len()]).groups;
    GroupConnectSettings::of_groups(of_groups)
        .unwrap()
        .answer_within(Duration::from_secs(20))
        .retry_after(Duration::from_millis(10))
}

fn connect(engine: &GroupEngine, folder: &Path) -> GroupCache {
    let socket = folder.join("daemon.sock");
    let settings = connect_settings(&engine.groups);
    let manager = Arc::clone(&engine.manager);
    GroupCache::connect_registered(socket, settings, manager, &engine.handles).unwrap()
}

fn store_to(
    engine: &GroupEngine,
    cache: &GroupCache,
    keys: &[BlockKey],
    stops: &[u64],
) -> GroupStoreReport {
    engine.begin_store(cache, keys, stops).wait()
}

fn load_from(
    engine: &GroupEngine,
    cache: &GroupCache,
    keys: &[BlockKey],
    found: GroupMatch,
) -> GroupLoadReport {
    let stop = found.stop();
    let report = engine.begin_load(cache, found).wait();
    engine.check_load(keys, stop, &report);
    report
}

fn eventually(what: &str, is_true: impl Fn() -> bool) {
    let begin = Instant::now();
    while !is_true() {
        assert!(begin.elapsed() < Duration::from_secs(60), "{what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn is_idle(daemon: &Daemon) -> bool {
    let status = daemon.status();
    let sessions = status.sessions.iter();
    let is_still = sessions
        .map(|one| one.matches + one.holds + one.in_progress)
        .all(|count| count == 0);
    let caches = status.caches.iter();
    let mut pins = caches.flat_map(|one| one.stats.pinned.values());
    is_still && pins.all(|count| *count == 0)
}

fn check_integrity(daemon: &Daemon) {
    for (_, served) in daemon.caches() {
        served.group_cache().unwrap().check_integrity();
    }
}

#[test]
fn what_one_client_stores_another_one_loads_and_the_disk_keeps() {
    let folder = tempfile::tempdir().unwrap();
    let start = || {
        let disk = folder.path().join("disk");
        Daemon::start(of_daemon(folder.path()).disk(disk, 16 << 20)).unwrap()
    };
    let (one, other) = (GroupEngine::new(&ALL), GroupEngine::new(&[3, 2, 1, 0]));
    let daemon = start();
    let (writer, reader) = (connect(&one, folder.path()), connect(&other, folder.path()));
    let keys = chain(1, 0, 0, 12);
    let stored = store_to(&one, &writer, &keys, &[24, 40]);
    assert!(stored.stopped().is_none(), "{stored:?}");
    let found = reader.lookup(&keys);
    assert_eq!((found.stop(), found.stops()), (40, vec![40, 24]));
    assert_eq!(load_from(&other, &reader, &keys, found).tokens, 40);
    let found = reader.lookup(&keys).back_to(39);
    assert_eq!(load_from(&other, &reader, &keys, found).tokens, 24);
    // One cache with its pages once.
    assert_eq!(daemon.caches().len(), 1);
    assert_eq!(reader.stats().known_stops, 2);
    assert_eq!(store_to(&one, &reader, &keys, &[24, 40]).stored(), 0);
    drop((writer, reader));
    eventually("pins are left", || is_idle(&daemon));
    check_integrity(&daemon);
    for (name, report) in daemon.stop() {
        assert!(report.durable, "{name}: {report:?}");
    }
    let _daemon = start();
    let reader = connect(&other, folder.path());
    let found = reader.lookup(&keys);
    assert_eq!(load_from(&other, &reader, &keys, found).tokens, 40);
}

#[test]
fn a_prefetch_and_a_seek_bring_a_stop_of_the_disk() {
    let folder = tempfile::tempdir().unwrap();
    let start = || {
        let disk = folder.path().join("disk");
        Daemon::start(of_daemon(folder.path()).disk(disk, 16 << 20)).unwrap()
    };
    let engine = GroupEngine::new(&ALL);
    let daemon = start();
    let cache = connect(&engine, folder.path());
    let keys = chain(1, 0, 0, 12);
    store_to(&engine, &cache, &keys, &[40]);
    drop(cache);
    drop(daemon.stop());
    let daemon = start();
    let cache = connect(&engine, folder.path());
    let report = cache.prefetch(cache.lookup(&keys)).unwrap().wait();
    assert_eq!((report.tokens, report.wanted), (40, 40), "{report:?}");
    let mut seek = cache.seek(&keys, Duration::from_secs(20));
    assert!(seek.wait_timeout(Duration::from_secs(20)));
    let found = seek.wait();
    assert_eq!(found.stop(), 40);
    assert_eq!(load_from(&engine, &cache, &keys, found).tokens, 40);
    // One that nothing waits for leaves no pins.
    drop(cache.seek(&keys, Duration::from_secs(20)));
    eventually("pins are left", || is_idle(&daemon));
}

#[test]
fn a_tenant_has_no_more_pages_of_a_group_than_its_quota() {
    let folder = tempfile::tempdir().unwrap();
    let quota = TenantQuota {
        tenant: TenantId(7),
        blocks: 2,
    };
    let daemon = Daemon::start(of_daemon(folder.path()).quotas(vec![quota])).unwrap();
    let engine = GroupEngine::new(&[0, 3]);
    let cache = connect(&engine, folder.path());
    for number in 0..6 {
        let keys = chain(number, 0, 0, 2);
        let blocks = [
            StoreBlocks::new("full", 0, &[0, 1]),
            StoreBlocks::new("state", 0, &[0]),
        ];
        let options = GroupStoreOptions::new().stop(8).tenant(TenantId(7));
        let _ = cache.store_with(&keys, &blocks, &options).unwrap().wait();
    }
    let (_, served) = daemon.caches().remove(0);
    for (group, of_group) in served.caches() {
        let present = of_group.stats().present.values().copied().max().unwrap();
        assert!(present <= 2, "{group:?}: {present}");
    }
}

#[test]
fn other_groups_are_another_identity() {
    let folder = tempfile::tempdir().unwrap();
    let _daemon = Daemon::start(of_daemon(folder.path())).unwrap();
    let _first = connect(&GroupEngine::new(&[0, 3]), folder.path());
    let engine = GroupEngine::new(&[0, 1]);
    let refused = GroupCache::connect_registered(
        folder.path().join("daemon.sock"),
        connect_settings(&[0, 1]),
        Arc::clone(&engine.manager),
        &engine.handles,
    );
    let refused = refused.err().unwrap().to_string();
    assert!(refused.contains("1 identities at a time"), "{refused}");
    let small = connect_settings(&[0, 1]).staging_bytes(4096);
    let refused = GroupCache::connect_registered(
        folder.path().join("daemon.sock"),
        small,
        Arc::clone(&engine.manager),
        &engine.handles,
    );
    assert!(refused.is_err());
}

#[test]
fn a_client_gets_the_events_of_all_groups() {
    let folder = tempfile::tempdir().unwrap();
    let _daemon = Daemon::start(of_daemon(folder.path())).unwrap();
    let engine = GroupEngine::new(&ALL);
    let (writer, reader) = (
        connect(&engine, folder.path()),
        connect(&engine, folder.path()),
    );
    let keys = chain(1, 0, 0, 12);
    store_to(&engine, &writer, &keys, &[40]);
    let snapshot = reader.snapshot();
    let names = NAMES.map(|name| {
        let group = reader.groups().iter().find(|group| group.name == name);
        let id = group.unwrap().id;
        snapshot.blocks.iter().filter(|of| of.group == id).count()
    });
    assert_eq!(names, [10, 3, 2, 1]);
    let mut events = reader.subscribe();
    assert!(writer.clear().unwrap() > 0);
    let mut read = Vec::new();
    let begin = Instant::now();
    let mut seen = std::collections::HashSet::new();
    while seen.len() < 4 {
        assert!(begin.elapsed() < Duration::from_secs(60), "{seen:?}");
        let _ = events.poll(&mut read, 100).unwrap();
        seen.extend(read.drain(..).map(|event| event.group));
    }
}

/// A lease that ends between the lookup and the load, or in a load, costs the stop and no wrong byte.
#[test]
fn a_lease_that_ends_costs_the_load() {
    let folder = tempfile::tempdir().unwrap();
    let lease = Duration::from_millis(30);
    let settings = of_daemon(folder.path()).lease(lease).match_lease(lease);
    let daemon = Daemon::start(settings).unwrap();
    let engine = GroupEngine::new(&ALL);
    let cache = connect(&engine, folder.path());
    let keys = chain(1, 0, 0, 12);
    store_to(&engine, &cache, &keys, &[40]);
    let found = cache.lookup(&keys);
    eventually("the match is kept", || is_idle(&daemon));
    let blocks: Vec<Vec<usize>> = NAMES
        .iter()
        .map(|name| (0..found.needs(name, 0).unwrap().count()).collect())
        .collect();
    let given = NAMES.iter().zip(&blocks);
    let given: Vec<_> = given
        .map(|(name, ids)| LoadBlocks::new(name, ids))
        .collect();
    let report = cache.load(found, &given).unwrap().wait();
    assert_eq!(report.tokens, 0);
    let (_, stop) = report.stopped().unwrap();
    assert!(
        matches!(stop, GroupStop::Stopped(LoadStop::Lost)),
        "{report:?}"
    );
}

/// A process that runs `test` of this file with the folder, once it has printed a line.
fn process(test: &str, folder: &Path) -> Child {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args([&format!("clients::{test}"), "--exact", "--nocapture"])
        .env(FOLDER, folder)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut output = child.stdout.take().unwrap();
    let mut seen = Vec::new();
    while !seen.ends_with(b"ready\n") {
        let mut byte = [0];
        output.read_exact(&mut byte).unwrap();
        seen.push(byte[0]);
    }
    child.stdout = Some(output);
    child
}

/// Stores and loads until it is killed.
fn be_a_client(folder: &str) -> ! {
    let engine = GroupEngine::new(&ALL);
    let cache = connect(&engine, Path::new(folder));
    println!("ready");
    for round in 0_u64.. {
        let keys = chain(round % 5, 0, 0, 12);
        let _ = store_to(&engine, &cache, &keys, &[24, 40]);
        let kept = cache.lookup(&keys);
        let found = cache.lookup_with(&keys, &StopOptions::new().at_most(30));
        let _ = load_from(&engine, &cache, &keys, found);
        drop(kept);
    }
    std::process::exit(0)
}

fn kills(default: u64) -> u64 {
    let kills = std::env::var(KILLS).ok().and_then(|text| text.parse().ok());
    kills.unwrap_or(default)
}

#[test]
fn clients_are_killed_at_any_moment() {
    if let Ok(folder) = std::env::var(FOLDER) {
        be_a_client(&folder);
    }
    let folder = TempDir::new().unwrap();
    let disk = folder.path().join("disk");
    let daemon = Daemon::start(of_daemon(folder.path()).disk(disk, 4 << 20)).unwrap();
    let engine = GroupEngine::new(&ALL);
    let living = connect(&engine, folder.path());
    for kill in 0..kills(12) {
        let mut child = process("clients_are_killed_at_any_moment", folder.path());
        // From at once to some rounds later.
        std::thread::sleep(Duration::from_micros(kill * 7919 % 30_000));
        child.kill().unwrap();
        child.wait().unwrap();
        if kill % 4 == 0 {
            let keys = chain(100 + kill % 3, 0, 0, 12);
            let _ = store_to(&engine, &living, &keys, &[40]);
            let found = living.lookup(&keys);
            assert_eq!(
                load_from(&engine, &living, &keys, found).tokens,
                40,
                "after kill {kill}"
            );
        }
    }
    eventually("sessions are left", || daemon.status().sessions.len() == 1);
    eventually("pins are left", || is_idle(&daemon));
    check_integrity(&daemon);
}

fn be_a_daemon(folder: &str) -> ! {
    let _daemon = Daemon::start(of_daemon(Path::new(folder))).unwrap();
    println!("ready");
    loop {
        std::thread::park();
    }
}

#[test]
fn daemons_are_killed_at_any_moment() {
    if let Ok(folder) = std::env::var(FOLDER) {
        be_a_daemon(&folder);
    }
    let folder = TempDir::new().unwrap();
    let start = || process("daemons_are_killed_at_any_moment", folder.path());
    let mut child = start();
    let engine = GroupEngine::new(&ALL);
    let cache = connect(&engine, folder.path());
    for kill in 0..kills(4) {
        eventually("it does not connect again", || cache.is_connected());
        std::thread::scope(|scope| {
            let victim = &mut child;
            scope.spawn(move || {
                std::thread::sleep(Duration::from_micros(500 + kill * 7919 % 20_000));
                victim.kill().unwrap();
                victim.wait().unwrap();
            });
            for round in 0..40 {
                let keys = chain(round % 3, 0, 0, 12);
                let _ = store_to(&engine, &cache, &keys, &[24, 40]);
                let found = cache.lookup(&keys);
                let _ = load_from(&engine, &cache, &keys, found);
            }
        });
        eventually("the connection goes on", || !cache.is_connected());
        let keys = chain(9, 0, 0, 12);
        assert_eq!(cache.lookup(&keys).stops(), [0; 0]);
        let stored = store_to(&engine, &cache, &keys, &[40]);
        let (_, stop) = stored.stopped().unwrap();
        assert!(
            matches!(stop, GroupStop::Stopped(StoreStop::Closed)),
            "{stored:?}"
        );
        child = start();
    }
    eventually("it does not connect again", || cache.is_connected());
    let keys = chain(9, 0, 0, 12);
    store_to(&engine, &cache, &keys, &[40]);
    let found = cache.lookup(&keys);
    assert_eq!(load_from(&engine, &cache, &keys, found).tokens, 40);
    child.kill().unwrap();
    child.wait().unwrap();
}
