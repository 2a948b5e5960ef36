//! A client over groups that is stopped in the middle of a copy: the daemon and the other clients go on, and once it
//! is continued, its load is a miss and never the bytes of later blocks in the same places.

use std::{
    io::{BufRead, BufReader},
    path::Path,
    process::{Child, ChildStdout, Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use kvtile_blocks::BlockKey;
use kvtile_daemon::{Daemon, DaemonSettings};
use kvtile_layout::{Axis, GroupRule, Plane, Shape, Unit, identity::Identity};
use kvtile_tiers::groups::{CacheGroup, GroupCache, GroupConnectSettings, LoadBlocks, StoreBlocks};
use kvtile_transfer::{FillPattern, LayoutHandle, PhysicalLayout, TransferManager};
use rustix::process::{Pid, Signal, kill_process};

use super::common::chain;

/// The environment variable with the folder of a client process.
const FOLDER: &str = "KVTILE_TEST_GROUPS_STOPPED";

const TEST: &str = "stopped::a_client_that_is_stopped_in_a_copy_counts_a_miss_and_others_go_on";

/// Pages of a stop, of 16 tokens.
const PAGES: usize = 12;

const STOP: u64 = 16 * PAGES as u64;

/// Stopped copies that the test waits for.
const CAUGHT: usize = 2;

/// A page of 1 MiB, or a state of 8 MiB.
fn shape(group: usize) -> Shape {
    let unit = Unit::new("f32", 4, 1).unwrap();
    if group == 0 {
        return Shape::key_value(2 * PAGES as u64, 4, 16, 8, 256, &unit).unwrap();
    }
    let plane = Plane::new("state", unit).unwrap();
    let plane = plane.extent(Axis::C, 1 << 20).per_page();
    Shape::new(2, 2, 16, vec![plane]).unwrap()
}

/// An engine with two groups. The first half of its blocks is to store from, the second half to load to.
struct StoppedEngine {
    manager: Arc<TransferManager>,
    handles: Vec<LayoutHandle>,
    cache: GroupCache,
}

const NAMES: [&str; 2] = ["full", "state"];

/// Blocks of each half.
const HALVES: [usize; 2] = [PAGES, 1];

impl StoppedEngine {
    fn connect(folder: &Path) -> StoppedEngine {
        let manager = Arc::new(TransferManager::new());
        let layout = |group| {
            let builder = PhysicalLayout::builder().with_shape(shape(group));
            let word = ["L|BH(kCN,vNC)", "L|BC"][group];
            builder.layout(word).allocate_system().build().unwrap()
        };
        let handles = (0..2).map(|group| manager.register(layout(group)).unwrap());
        let handles: Vec<LayoutHandle> = handles.collect();
        let rules = [GroupRule::Full, GroupRule::Stop];
        let groups = (0..2).map(|group| {
            let identity = Identity::new("a-model", "main", &shape(group)).unwrap();
            CacheGroup::new(NAMES[group], rules[group], identity).share([3.0, 2.0][group])
        });
        let settings = GroupConnectSettings::of_groups(groups.collect()).unwrap();
        let settings = settings
            .answer_within(Duration::from_secs(60))
            .retry_after(Duration::from_millis(10));
        let socket = folder.join("daemon.sock");
        let cache =
            GroupCache::connect_registered(socket, settings, Arc::clone(&manager), &handles)
                .unwrap();
        StoppedEngine {
            manager,
            handles,
            cache,
        }
    }

    /// Fills all blocks of a half of each group; each group and block has bytes of its own.
    fn fill(&self, half: usize, pattern: impl Fn(u64) -> FillPattern) {
        for (group, count) in HALVES.into_iter().enumerate() {
            let blocks: Vec<usize> = (half * count..(half + 1) * count).collect();
            let filled = self
                .manager
                .fill(self.handles[group], &blocks, pattern(group as u64));
            // A copy in flight leases its blocks.
            filled.expect("no copy is in flight");
        }
    }

    /// Stores a chain with the content of `seed`; whether all of it is stored.
    fn store(&self, keys: &[BlockKey], seed: u64) -> bool {
        self.fill(0, |group| FillPattern::Distinct {
            seed: seed * 2 + group,
        });
        let pages: Vec<usize> = (0..PAGES).collect();
        let blocks = [
            StoreBlocks::new("full", 0, &pages),
            StoreBlocks::new("state", PAGES as u64 - 1, &[0]),
        ];
        let report = self.cache.store(keys, &blocks, STOP).unwrap().wait();
        report.stopped().is_none() && report.stored() + report.present() == PAGES + 1
    }

    /// Loads the stop of a chain over other bytes, and compares it with what was stored; the tokens of the report, or
    /// `None` without a stop.
    fn load(&self, keys: &[BlockKey]) -> Option<u64> {
        let found = self.cache.lookup(keys);
        if found.stop() == 0 {
            return None;
        }
        assert_eq!(found.stop(), STOP);
        self.fill(1, |_| FillPattern::Constant(0xa5));
        let pages: Vec<usize> = (PAGES..2 * PAGES).collect();
        let blocks = [
            LoadBlocks::new("full", &pages),
            LoadBlocks::new("state", &[1]),
        ];
        let report = self.cache.load(found, &blocks).unwrap().wait();
        assert!(report.tokens == 0 || report.tokens == STOP, "{report:?}");
        if report.tokens > 0 {
            let digest = |group: usize, block| {
                let digest = self.manager.block_digest(self.handles[group], block);
                digest.unwrap()
            };
            for (group, count) in HALVES.into_iter().enumerate() {
                for block in 0..count {
                    assert_eq!(
                        digest(group, block),
                        digest(group, count + block),
                        "block {block} of {}",
                        NAMES[group]
                    );
                }
            }
        }
        // Refused while a copy is in flight: a load that has ended writes nothing more.
        self.fill(1, |_| FillPattern::Constant(0x5a));
        Some(report.tokens)
    }
}

/// Stores and loads one chain, and prints what became of each load, until its input ends with the test.
fn be_a_client(folder: &str) -> ! {
    let engine = StoppedEngine::connect(Path::new(folder));
    let keys = chain(1, 0, 0, PAGES);
    println!("ready");
    loop {
        let _ = engine.store(&keys, 1);
        match engine.load(&keys) {
            None => println!("none"),
            Some(0) => println!("lost"),
            Some(_) => println!("came"),
        }
    }
}

/// A process that stores and loads.
struct StoppedClient {
    child: Child,
    lines: BufReader<ChildStdout>,
}

impl StoppedClient {
    fn start(folder: &Path) -> StoppedClient {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args([TEST, "--exact", "--nocapture"])
            .env(FOLDER, folder)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap());
        let mut client = StoppedClient { child, lines };
        while client.line() != "ready" {}
        client
    }

    /// The next line; an end means that the process met wrong bytes.
    fn line(&mut self) -> String {
        let mut line = String::new();
        let bytes = self.lines.read_line(&mut line).unwrap();
        assert!(bytes > 0, "the client ended: {:?}", self.child.try_wait());
        line.trim().to_owned()
    }

    fn process(&self) -> i32 {
        i32::try_from(self.child.id()).unwrap()
    }

    fn signal(&self, signal: Signal) {
        let process = Pid::from_raw(self.process()).unwrap();
        kill_process(process, signal).unwrap();
    }

    fn is_stopped(&self) -> bool {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id()));
        stat.is_ok_and(|stat| stat.rsplit(')').next().unwrap().trim().starts_with('T'))
    }
}

impl Drop for StoppedClient {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn eventually(what: &str, is_true: impl Fn() -> bool) {
    let begin = Instant::now();
    while !is_true() {
        assert!(begin.elapsed() < Duration::from_secs(60), "{what}");
        std::thread::sleep(Duration::from_micros(200));
    }
}

#[test]
fn a_client_that_is_stopped_in_a_copy_counts_a_miss_and_others_go_on() {
    if let Ok(folder) = std::env::var(FOLDER) {
        be_a_client(&folder);
    }
    let folder = tempfile::tempdir().unwrap();
    // Room for more than four stops, so that a load holds all pages of a group at once.
    let of_daemon = DaemonSettings::new(folder.path().join("daemon.sock"), 96 << 20);
    let lease = Duration::from_millis(300);
    // Not that of its matches: the group whose copy has not begun stays, and the load ends with the other one.
    let of_daemon = of_daemon.lease(lease);
    let daemon = Daemon::start(of_daemon).unwrap();
    let other = StoppedEngine::connect(folder.path());
    let mut client = StoppedClient::start(folder.path());
    let process = client.process();
    let holds = || {
        let sessions = daemon.status().sessions.into_iter();
        let mut of_client = sessions.filter(|one| one.process == process);
        of_client.any(|one| one.holds > 0)
    };
    let (begin, mut caught, mut round) = (Instant::now(), 0, 2);
    while caught < CAUGHT {
        let elapsed = begin.elapsed();
        assert!(elapsed < Duration::from_secs(120), "{caught} are stopped");
        eventually("the client copies nothing", holds);
        client.signal(Signal::STOP);
        eventually("the client does not stop", || client.is_stopped());
        let is_in_copy = holds();
        // The daemon takes the pins back, and the places of the pages get other bytes.
        eventually("the lease does not end", || !holds());
        let _ = other.cache.clear().unwrap();
        for keys in [0, 1, 2, 3, 4].map(|more| chain(round + more, 0, 0, PAGES)) {
            eventually("the other client stores nothing", || {
                other.store(&keys, round) && other.load(&keys) == Some(STOP)
            });
            round += 1;
        }
        client.signal(Signal::CONT);
        // Loads that had ended before the stop are in the lines too.
        let lines: Vec<String> = (0..8).map(|_| client.line()).collect();
        assert!(lines.iter().any(|line| line == "came"), "{lines:?}");
        caught += usize::from(is_in_copy && lines.iter().any(|line| line == "lost"));
    }
    for (_, served) in daemon.caches() {
        served.group_cache().unwrap().check_integrity();
    }
}
