//! Clients that die or stop, at any moment.

use std::{
    io::Read,
    process::{Child, Command, Stdio},
    time::Duration,
};

use kvtile_daemon::Daemon;
use kvtile_tiers::cache::{Cache, LoadStop};

use super::common::{
    Node, chain, connect_settings, engine_layout, eventually, is_idle, load, store,
};

/// The environment variable with the socket for a client process.
const SOCKET: &str = "KVTILE_TEST_DAEMON_SOCKET";

/// The environment variable with the number of kills.
const KILLS: &str = "KVTILE_DAEMON_KILLS";

/// A client process that stores and loads until it is killed.
fn client(node: &Node) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args([
            "deaths::clients_are_killed_at_any_moment",
            "--exact",
            "--nocapture",
        ])
        .env(SOCKET, node.socket())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

fn be_a_client(socket: &str) -> ! {
    let cache = Cache::connect(socket, connect_settings(), engine_layout()).unwrap();
    println!("connected");
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
        let mut child = client(&node);
        let mut output = child.stdout.take().unwrap();
        let mut seen = Vec::new();
        while !seen.ends_with(b"connected\n") {
            let mut byte = [0];
            output.read_exact(&mut byte).unwrap();
            seen.push(byte[0]);
        }
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
    assert!(
        matches!(report.stopped, Some(LoadStop::Refused(_))),
        "{report:?}"
    );
    assert_eq!(load(&cache, &keys, 20).blocks, 6);
}
