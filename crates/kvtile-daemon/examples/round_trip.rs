//! How long calls through the daemon take, against bare round trips and against a cache in process.
//!
//! `cargo run --release -p kvtile-daemon --example round_trip`, with `-- --prefault` for memory that is prefaulted, at
//! both sides.
//!
//! The daemon runs in a process of its own. Measured in turns, so that all see the same machine.

use std::{
    error::Error,
    io::{Read, Write},
    os::unix::net::{UnixListener, UnixStream},
    path::Path,
    process::{Child, Command},
    time::{Duration, Instant},
};

use kvtile_blocks::BlockKey;
use kvtile_daemon::{Daemon, DaemonSettings};
use kvtile_layout::{Shape, identity::Identity};
use kvtile_tiers::cache::{Cache, CacheSettings, ConnectSettings};
use kvtile_transfer::{FillPattern, PhysicalLayout};

type Outcome<T> = Result<T, Box<dyn Error>>;

const KEYS: usize = 500;
const LOAD_BLOCKS: usize = 64;
const TURNS: usize = 400;
const HOST_BYTES: u64 = 1 << 30;

/// Whether all memory is prefaulted, at both sides.
fn prefaults() -> bool {
    std::env::args().any(|argument| argument == "--prefault")
}

fn shape(blocks: u64) -> Outcome<Shape> {
    Ok(Shape::key_value(blocks, 28, 16, 2, 128, "bf16")?)
}

fn engine() -> Outcome<PhysicalLayout> {
    let layout = PhysicalLayout::builder().with_shape(shape(KEYS as u64 + LOAD_BLOCKS as u64)?);
    Ok(layout.layout("L|BH(kCN,vNC)").allocate_system().build()?)
}

/// The other process: a daemon, and a server that answers bare pings.
fn serve(folder: &Path) -> Outcome<()> {
    let listener = UnixListener::bind(folder.join("ping"))?;
    let settings = DaemonSettings::new(folder.join("daemon"), HOST_BYTES).prefault(prefaults());
    let _daemon = Daemon::start(settings)?;
    let (mut socket, _) = listener.accept()?;
    let mut request = vec![0; KEYS * 16];
    while socket.read_exact(&mut request).is_ok() {
        socket.write_all(&[0; 32])?;
    }
    Ok(())
}

fn ping(socket: &mut UnixStream, request: &[u8]) -> Outcome<Duration> {
    let begin = Instant::now();
    socket.write_all(request)?;
    socket.read_exact(&mut [0; 32])?;
    Ok(begin.elapsed())
}

fn lookup(cache: &Cache, keys: &[BlockKey]) -> Outcome<Duration> {
    let begin = Instant::now();
    let found = cache.lookup(keys);
    let time = begin.elapsed();
    match found.blocks() {
        blocks if blocks == keys.len() => Ok(time),
        blocks => Err(format!("{blocks} of {} blocks were found", keys.len()).into()),
    }
}

fn load(cache: &Cache, keys: &[BlockKey], destinations: &[usize]) -> Outcome<Duration> {
    let begin = Instant::now();
    let report = cache.load(cache.lookup(keys), destinations)?.wait();
    let time = begin.elapsed();
    match report.blocks {
        blocks if blocks == destinations.len() => Ok(time),
        _ => Err(format!("{report:?}").into()),
    }
}

/// The 10th, the 50th and the 90th percentile in microseconds.
fn percentiles(mut times: Vec<Duration>) -> [f64; 3] {
    times.sort();
    [10, 50, 90].map(|percent| {
        let at = times.len() * percent / 100;
        times.get(at).map_or(0.0, Duration::as_secs_f64) * 1e6
    })
}

fn measure(folder: &Path) -> Outcome<()> {
    let begin = Instant::now();
    let mut socket = loop {
        match UnixStream::connect(folder.join("ping")) {
            Ok(socket) if folder.join("daemon").exists() => break socket,
            _ if begin.elapsed() > Duration::from_secs(20) => return Err("no daemon".into()),
            _ => std::thread::sleep(Duration::from_millis(20)),
        }
    };
    let identity = Identity::new("a-model", "main", &shape(1)?)?;
    let settings = ConnectSettings::new(identity.clone()).answer_within(Duration::from_secs(20));
    let there = Cache::connect(folder.join("daemon"), settings, engine()?)?;
    let mut settings = CacheSettings::new(identity).host_bytes(HOST_BYTES);
    if prefaults() {
        settings = settings.prefault();
    }
    let here = Cache::open(settings.clone(), engine()?)?;
    // In process, with the kind of memory that a daemon has: the kernel may have no huge pages for it.
    let shared = Cache::builder(settings).host_memory_for_readers();
    let shared = shared.open(engine()?)?;
    let keys: Vec<BlockKey> = (0..KEYS as u128)
        .map(|key| BlockKey::from_bytes((key + 1).to_le_bytes()))
        .collect();
    let blocks: Vec<usize> = (0..KEYS).collect();
    for cache in [&here, &shared, &there] {
        let manager = cache.manager();
        manager.fill(cache.engine(), &blocks, FillPattern::Distinct { seed: 1 })?;
        let report = cache.store(&keys, &blocks)?.wait();
        if report.stored != KEYS {
            return Err(format!("{report:?}").into());
        }
    }
    let destinations: Vec<usize> = (KEYS..KEYS + LOAD_BLOCKS).collect();
    let (leading, _) = keys.split_at(LOAD_BLOCKS);
    let request = vec![0; KEYS * 16];
    let mut times: [Vec<Duration>; 6] = Default::default();
    for _ in 0..TURNS {
        let [pings, far, near, far_loads, shared_loads, near_loads] = &mut times;
        pings.push(ping(&mut socket, &request)?);
        far.push(lookup(&there, &keys)?);
        near.push(lookup(&here, &keys)?);
        far_loads.push(load(&there, leading, &destinations)?);
        shared_loads.push(load(&shared, leading, &destinations)?);
        near_loads.push(load(&here, leading, &destinations)?);
    }
    let [pings, far, near, far_loads, shared_loads, near_loads] = times.map(percentiles);
    println!("microseconds, 10th 50th 90th percentile of {TURNS} turns:");
    for (what, [low, middle, high]) in [
        ("bare round trip of 8,000 bytes", pings),
        ("lookup of 500 keys, daemon", far),
        ("lookup of 500 keys, in process", near),
        ("load of 64 blocks, daemon", far_loads),
        ("load, in process, memory for readers", shared_loads),
        ("load of 64 blocks, in process", near_loads),
    ] {
        println!("{what:36} {low:9.1} {middle:9.1} {high:9.1}");
    }
    let ([_, ping, _], [_, far, _]) = (pings, far);
    let ([_, far_load, _], [_, near_load, _]) = (far_loads, near_loads);
    println!("lookup: {:.2} bare round trips", far / ping);
    println!("load: {:.2} of one in process", far_load / near_load);
    let [_, shared_load, _] = shared_loads;
    let share = far_load / shared_load;
    println!("load: {share:.2} of one in process with memory for readers");
    Ok(())
}

fn main() -> Outcome<()> {
    let mut arguments = std::env::args_os().skip(1);
    let folder = arguments.find(|argument| argument != "--prefault");
    if let Some(folder) = folder {
        return serve(Path::new(&folder));
    }
    let folder = tempfile::tempdir()?;
    let mut child: Child = Command::new(std::env::current_exe()?)
        .arg(folder.path())
        .args(prefaults().then_some("--prefault"))
        .spawn()?;
    let measured = measure(folder.path());
    child.kill()?;
    child.wait()?;
    measured
}
