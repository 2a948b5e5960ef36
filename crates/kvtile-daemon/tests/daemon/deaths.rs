//! Clients that die or stop, at any moment.

use std::{
    io::Read,
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

use kvtile_daemon::{Daemon, DaemonSettings};
use kvtile_tiers::{
    cache::{Cache, LoadStop, StoreStop},
    metrics::MissReason,
};
use rustix::process::{Pid, Signal, kill_process};

use super::common::{
    Node, chain, connect_settings, engine_layout, eventually, is_idle, load, store, stride,
};

/// The environment variable with the socket for a client process.
const SOCKET: &str = "KVTILE_TEST_DAEMON_SOCKET";

/// The environment variable with the folder for a daemon process.
const FOLDER: &str = "KVTILE_TEST_DAEMON_FOLDER";

/// The environment variable with the number of kills.
const KILLS: &str = "KVTILE_DAEMON_KILLS";

/// A process that runs `test` of this file with a variable set, once it has printed a line.
fn process(test: &str, variable: (&str, &Path)) -> Child {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args([&format!("deaths::{test}"), "--exact", "--nocapture"])
        .env(variable.0, variable.1)
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

fn be_a_client(socket: &str) -> ! {
    let cache = Cache::connect(socket, connect_settings(), engine_layout()).unwrap();
    println!("ready");
    for round in 0_u64.. {
        let keys = chain(round % 5, 12);
        let _ = store(&cache, &keys, 0);
        let found = cache.lookup(&keys);
        let report = load(&cache, &keys, 20);
        drop(found);
        assert!(report.blocks <= 12);
    }
    std::process::exit(0)
}

/// Kills clients after a time that differs for each; the daemon then has no pin of theirs, and serves
/// a client that lives as before.
#[test]
fn clients_are_killed_at_any_moment() {
    if let Ok(socket) = std::env::var(SOCKET) {
        be_a_client(&socket);
    }
    let kills = std::env::var(KILLS).ok().and_then(|text| text.parse().ok());
    let kills: u64 = kills.unwrap_or(24);
    let node = Node::new();
    let disk = node.folder.path().join("disk");
    let daemon = Daemon::start(node.settings(24).disk(disk, 1 << 20)).unwrap();
    let living = node.connect();
    for kill in 0..kills {
        let mut child = process("clients_are_killed_at_any_moment", (SOCKET, &node.socket()));
        // From at once to some rounds later.
        std::thread::sleep(Duration::from_micros(kill * 7919 % 30_000));
        child.kill().unwrap();
        child.wait().unwrap();
        if kill % 4 == 0 {
            let keys = chain(100 + kill % 3, 5);
            let _ = store(&living, &keys, 0);
            assert_eq!(load(&living, &keys, 10).blocks, 5, "after kill {kill}");
        }
    }
    eventually("sessions are left", || daemon.status().sessions.len() == 1);
    eventually("pins are left", || is_idle(&daemon));
    for (_, cache) in daemon.caches() {
        cache.cache().check_integrity();
    }
}

/// A client that stops while it holds blocks: the daemon takes them back, and the client reports them
/// as lost.
#[test]
fn a_lease_that_ends_costs_the_load_and_no_wrong_byte() {
    let node = Node::new();
    let lease = Duration::from_millis(50);
    let settings = node.settings(16).lease(lease).match_lease(lease);
    let daemon = Daemon::start(settings).unwrap();
    let cache = node.connect();
    let keys = chain(1, 6);
    store(&cache, &keys, 0);
    let found = cache.lookup(&keys);
    eventually("the match is kept", || is_idle(&daemon));
    let report = cache.load(found, &[0, 1, 2, 3, 4, 5]).unwrap().wait();
    assert_eq!(report.blocks, 0);
    assert!(matches!(report.stopped, Some(LoadStop::Lost)), "{report:?}");
    assert_eq!(cache.stats().lost_hits[&MissReason::Evicted], 6);
    assert_eq!(load(&cache, &keys, 20).blocks, 6);
}

fn be_a_daemon(folder: &str) -> ! {
    let socket = Path::new(folder).join("daemon.sock");
    let _daemon = Daemon::start(DaemonSettings::new(socket, 32 * stride())).unwrap();
    println!("ready");
    loop {
        std::thread::park();
    }
}

/// A daemon that stops answering: calls end with misses and reasons, and go on when it goes on.
#[test]
fn a_daemon_that_hangs_costs_misses() {
    if let Ok(folder) = std::env::var(FOLDER) {
        be_a_daemon(&folder);
    }
    let node = Node::new();
    let mut child = process(
        "a_daemon_that_hangs_costs_misses",
        (FOLDER, node.folder.path()),
    );
    let within = Duration::from_millis(500);
    let cache = node.connect_with(connect_settings().answer_within(within));
    let keys = chain(1, 6);
    eventually("the store is late", || {
        store(&cache, &keys, 0).stopped.is_none()
    });
    let signal = |signal| {
        let pid = Pid::from_raw(i32::try_from(child.id()).unwrap()).unwrap();
        kill_process(pid, signal).unwrap();
    };
    signal(Signal::STOP);
    // The signal takes effect a moment later.
    eventually("it goes on", || cache.lookup(&keys).blocks() == 0);
    assert!(!cache.is_connected());
    // Nothing waits for it again.
    for _ in 0..1000 {
        assert_eq!(cache.lookup(&keys).blocks(), 0);
    }
    let stored = store(&cache, &chain(2, 3), 10);
    assert!(
        matches!(stored.stopped, Some(StoreStop::Late)),
        "{stored:?}"
    );
    assert!(cache.clear().is_err());
    signal(Signal::CONT);
    eventually("it does not go on", || cache.is_connected());
    eventually("the blocks are gone", || {
        load(&cache, &keys, 20).blocks == 6
    });
    // What the late replies pinned is released.
    eventually("pins are left", || {
        cache.stats().pinned.values().all(|pins| *pins == 0)
    });
    child.kill().unwrap();
    child.wait().unwrap();
}

/// Daemons that are killed while clients store and load: every call ends, and no byte is wrong.
#[test]
fn daemons_are_killed_at_any_moment() {
    if let Ok(folder) = std::env::var(FOLDER) {
        be_a_daemon(&folder);
    }
    let kills = std::env::var(KILLS).ok().and_then(|text| text.parse().ok());
    let kills: u64 = kills.unwrap_or(6);
    let node = Node::new();
    let start = || {
        process(
            "daemons_are_killed_at_any_moment",
            (FOLDER, node.folder.path()),
        )
    };
    let mut child = start();
    let cache = node.connect();
    let mut loaded = 0;
    for kill in 0..kills {
        eventually("it does not connect again", || cache.is_connected());
        std::thread::scope(|scope| {
            let victim = &mut child;
            scope.spawn(move || {
                std::thread::sleep(Duration::from_micros(500 + kill * 7919 % 20_000));
                victim.kill().unwrap();
                victim.wait().unwrap();
            });
            for round in 0..40 {
                let keys = chain(round % 3, 12);
                let _ = store(&cache, &keys, 0);
                let found = cache.lookup(&keys);
                loaded += load(&cache, &keys, 20).blocks;
                drop(found);
            }
        });
        eventually("the connection goes on", || !cache.is_connected());
        child = start();
    }
    eventually("it does not connect again", || cache.is_connected());
    let keys = chain(9, 5);
    store(&cache, &keys, 0);
    assert_eq!(load(&cache, &keys, 20).blocks, 5);
    assert!(loaded > 0, "no load came before a kill");
    child.kill().unwrap();
    child.wait().unwrap();
}
