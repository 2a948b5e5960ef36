//! Clients that lose their pins in the middle of a copy: no byte of it counts, and the load ends only
//! once nothing writes the engine's blocks any more.

use std::{
    io::{Read, Write},
    os::unix::net::{UnixListener, UnixStream},
    path::Path,
    process::{Child, Command, Stdio},
    thread,
    time::Duration,
};

use kvtile_blocks::BlockKey;
use kvtile_daemon::Daemon;
use kvtile_daemon_wire::{
    FoundFrame, FrameHeader, FrameKind, LoadFrame, NumberFrame, TierRun, read_frame,
};
use kvtile_layout::{
    Shape, Unit,
    identity::{Identity, LayoutIdentity},
};
use kvtile_memory::SharedReadMemory;
use kvtile_tiers::{
    cache::{
        Cache, CacheSettings, ConnectSettings, LoadStop,
        serving::{HelloMessage, WelcomeGroup, WelcomeMessage},
    },
    metrics::MissReason,
    tier::STORAGE_WORD,
};
use kvtile_transfer::{FillPattern, PhysicalLayout};
use rustix::process::{Pid, Signal, getpid, kill_process};

use super::common::{Node, chain, eventually};

/// The environment variable with the socket for a client process.
const SOCKET: &str = "KVTILE_TEST_STOPPED_SOCKET";

const BLOCKS: usize = 16;

/// Bytes of one block: 8 layers of 256 KiB.
const BLOCK_BYTES: u64 = 2 << 20;

fn shape(blocks: u64) -> Shape {
    let unit = Unit::new("f32", 4, 1).unwrap();
    Shape::key_value(blocks, 8, 16, 8, 256, &unit).unwrap()
}

fn identity() -> Identity {
    Identity::new("a-model", "main", &shape(1)).unwrap()
}

fn settings() -> ConnectSettings {
    ConnectSettings::new(identity())
        .staging_bytes(8 << 20)
        .answer_within(Duration::from_secs(20))
        .retry_after(Duration::from_millis(10))
}

/// Blocks to store from, and as many to load to.
fn engine() -> PhysicalLayout {
    let layout = PhysicalLayout::builder().with_shape(shape(2 * BLOCKS as u64));
    let layout = layout.layout("L|BH(kCN,vNC)").allocate_system();
    layout.build().unwrap()
}

fn fill(cache: &Cache, blocks: &[usize], pattern: FillPattern) {
    let filled = cache.manager().fill(cache.engine(), blocks, pattern);
    // A copy in flight leases its blocks.
    filled.expect("no copy is in flight");
}

fn sources() -> Vec<usize> {
    (0..BLOCKS).collect()
}

fn destinations() -> Vec<usize> {
    (BLOCKS..2 * BLOCKS).collect()
}

/// Stores a chain with the content of `seed`; false if not all of it is stored.
fn store(cache: &Cache, keys: &[BlockKey], seed: u64) -> bool {
    fill(cache, &sources(), FillPattern::Distinct { seed });
    let report = cache.store(keys, &sources()).unwrap().wait();
    report.stored + report.present == BLOCKS
}

fn are_equal(cache: &Cache, blocks: usize) -> bool {
    let digest = |block| cache.manager().block_digest(cache.engine(), block).unwrap();
    (0..blocks).all(|block| digest(block) == digest(BLOCKS + block))
}

/// Stops itself after the first layer of a load has come, until a load loses its pins in this way.
fn be_a_client_that_stops(socket: &str) -> ! {
    let cache = Cache::connect(socket, settings(), engine()).unwrap();
    println!("ready");
    let keys = chain(1, BLOCKS);
    for _ in 0..50 {
        if !store(&cache, &keys, 1) {
            continue;
        }
        let found = cache.lookup(&keys);
        fill(&cache, &destinations(), FillPattern::Constant(0xa5));
        let wanted = found.blocks();
        let load = cache.load(found, &destinations()[..wanted]).unwrap();
        let first = load.wait_layer(0).is_ok();
        kill_process(getpid(), Signal::STOP).unwrap();
        let report = load.wait();
        assert!(are_equal(&cache, report.blocks), "{report:?}");
        fill(&cache, &destinations(), FillPattern::Constant(0x5a));
        if first && matches!(report.stopped, Some(LoadStop::Lost)) {
            assert_eq!(report.blocks, 0, "{report:?}");
            let lost = cache.stats().lost_hits;
            assert!(lost[&MissReason::Evicted] >= BLOCKS as u64, "{lost:?}");
            std::process::exit(0);
        }
    }
    std::process::exit(1)
}

/// Whether the process is stopped.
fn is_stopped(child: &Child) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", child.id()));
    stat.is_ok_and(|stat| stat.rsplit(')').next().unwrap().trim().starts_with('T'))
}

#[test]
fn a_client_that_is_stopped_in_a_copy_until_its_lease_has_ended_counts_a_miss() {
    if let Ok(socket) = std::env::var(SOCKET) {
        be_a_client_that_stops(&socket);
    }
    let node = Node::new();
    let lease = Duration::from_millis(50);
    let mut of_daemon = node.settings(1).lease(lease);
    of_daemon.host_bytes = BLOCKS as u64 * BLOCK_BYTES;
    let daemon = Daemon::start(of_daemon).unwrap();
    let other = Cache::connect(node.socket(), settings(), engine()).unwrap();
    let mut child = client(&node.socket());
    let process = i32::try_from(child.id()).unwrap();
    let holds = || {
        let sessions = daemon.status().sessions.into_iter();
        let mut of_child = sessions.filter(|one| one.process == process);
        of_child.any(|one| one.holds > 0)
    };
    for round in 2.. {
        eventually("the client neither stops nor ends", || {
            is_stopped(&child) || is_zombie(&child)
        });
        if let Some(ended) = child.try_wait().unwrap() {
            assert!(ended.success(), "{ended}");
            break;
        }
        eventually("the lease does not end", || !holds());
        // The places of the blocks get other bytes.
        let _ = other.clear().unwrap();
        assert!(store(&other, &chain(2, BLOCKS), round));
        let pid = Pid::from_raw(process).unwrap();
        kill_process(pid, Signal::CONT).unwrap();
        eventually("the client does not go on", || !is_stopped(&child));
    }
    for (_, cache) in daemon.caches() {
        cache.cache().check_integrity();
    }
}

fn is_zombie(child: &Child) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", child.id()));
    stat.is_ok_and(|stat| stat.rsplit(')').next().unwrap().trim().starts_with('Z'))
}

/// A process that runs the client of this file, once it is connected.
fn client(socket: &Path) -> Child {
    let test =
        "stopped::a_client_that_is_stopped_in_a_copy_until_its_lease_has_ended_counts_a_miss";
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args([test, "--exact", "--nocapture"])
        .env(SOCKET, socket)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut seen = Vec::new();
    let mut output = child.stdout.take().unwrap();
    while !seen.ends_with(b"ready\n") {
        let mut byte = [0];
        output.read_exact(&mut byte).unwrap();
        seen.push(byte[0]);
    }
    child.stdout = Some(output);
    child
}

/// How a daemon takes the pins of a hold back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum LostPins {
    /// Its socket ends right after the hold.
    Ended,
    /// The lease has ended by the first check.
    Taken,
}

/// Serves one client up to its first hold, out of a real cache.
fn serve(listener: &UnixListener, cache: &Cache, lost: LostPins) {
    let (mut socket, _) = listener.accept().unwrap();
    let host = cache.host_memory().unwrap();
    let (header, payload) = read_frame(&mut socket).unwrap();
    let _: HelloMessage = serde_json::from_slice(&payload).unwrap();
    let blocks = host.shape().num_blocks();
    let welcome = WelcomeMessage {
        session: 1,
        groups: vec![WelcomeGroup {
            identity: identity().fingerprint(),
            blocks,
            pool_blocks: blocks,
            storage_word: STORAGE_WORD.to_owned(),
            block_layout: LayoutIdentity::of_block(host.strided()).fingerprint(),
        }],
        tiers: cache.tiers(),
        lease_ms: if lost == LostPins::Taken { 0 } else { 60_000 },
        staging_bytes_max: 4 * BLOCK_BYTES,
    };
    let json = serde_json::to_vec(&welcome).unwrap();
    let frame = FrameHeader::frame(FrameKind::Welcome, header.request, |out| {
        out.extend_from_slice(&json);
    });
    socket.write_all(&frame).unwrap();
    host.shared_memory().unwrap().send(&socket).unwrap();
    let (header, _) = read_frame(&mut socket).unwrap();
    let _staging = SharedReadMemory::receive(&socket).unwrap();
    let number = |number| NumberFrame { number };
    let reply = number(4).encode(FrameKind::Number, header.request);
    socket.write_all(&reply).unwrap();
    let count = u32::try_from(BLOCKS).unwrap();
    while let Ok((header, _)) = read_frame(&mut socket) {
        let reply = match header.kind {
            FrameKind::Lookup => FoundFrame {
                runs: vec![TierRun {
                    tier: 0,
                    blocks: count,
                }],
            }
            .encode(header.request),
            FrameKind::Hold => LoadFrame {
                wanted: count,
                blocks: count,
                from_host: count,
                ids: (0..count).collect(),
                ..LoadFrame::default()
            }
            .encode(header.request),
            FrameKind::Check => number(0).encode(FrameKind::Number, header.request),
            _ => continue,
        };
        socket.write_all(&reply).unwrap();
        if header.kind == FrameKind::Hold && lost == LostPins::Ended {
            return end(&socket);
        }
    }
}

fn end(socket: &UnixStream) {
    socket.shutdown(std::net::Shutdown::Both).unwrap();
}

#[test]
fn a_load_that_loses_its_pins_in_the_copy_waits_for_the_copy_and_ends_as_a_miss() {
    for lost in [LostPins::Ended, LostPins::Taken] {
        let node = Node::new();
        let settings_here = CacheSettings::new(identity()).host_bytes(BLOCKS as u64 * BLOCK_BYTES);
        let builder = Cache::builder(settings_here).host_memory_for_readers();
        let served = builder.open(engine()).unwrap();
        assert!(store(&served, &chain(1, BLOCKS), 1));
        let listener = UnixListener::bind(node.socket()).unwrap();
        thread::scope(|scope| {
            scope.spawn(|| serve(&listener, &served, lost));
            let cache = Cache::connect(node.socket(), settings(), engine()).unwrap();
            let found = cache.lookup(&chain(1, BLOCKS));
            assert_eq!(found.blocks(), BLOCKS);
            let load = cache.load(found, &destinations()).unwrap();
            let report = load.wait();
            // Refused while the copy is in flight.
            fill(&cache, &destinations(), FillPattern::Constant(0x5a));
            assert_eq!(report.blocks, 0, "{lost:?}: {report:?}");
            assert!(
                matches!(report.stopped, Some(LoadStop::Lost)),
                "{lost:?}: {report:?}"
            );
            assert!(load.wait_layer(0).is_err(), "{lost:?}");
            let counted = cache.stats().lost_hits;
            assert_eq!(counted[&MissReason::Evicted], BLOCKS as u64, "{lost:?}");
        });
    }
}
