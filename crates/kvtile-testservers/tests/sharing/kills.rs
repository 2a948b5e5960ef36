//! Servers and writers that are killed, many times, each at another moment of its work.
//!
//! After each kill all values that were acknowledged are read: their bytes are right, and those of a
//! durable store are there.

use std::{
    collections::BTreeSet,
    env,
    io::{BufRead, BufReader, Write},
    process::{Command, ExitCode, Stdio},
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use kvtile_shared::store::{Deadline, SharedStore};
use kvtile_testkit::disk::SplitMix64;
use kvtile_testservers::{kinds::start_redis, process::ServerProcess};
use tempfile::TempDir;

use crate::{
    server::{ServerChoice, TestServer, kind_of, open_within, until_it_works},
    table::SuiteOutcome,
    values::{numbered, read_checked, write_named},
};

const CALL_WITHIN: Duration = Duration::from_secs(2);
const SOON: Duration = Duration::from_secs(20);
const LENGTH: usize = 200_000;

/// SeaweedFS serves its values again half a minute after it was killed.
const WORKS_WITHIN: Duration = Duration::from_secs(90);

/// Acknowledged values between two checks: fewer bytes than a server of Redis evicts at, and a log that it reads soon.
const UNCHECKED_MAX: usize = 150;

/// Values of a writer that is killed, for the same reason.
const WRITER_VALUES: usize = 64;

/// The value that shows that a server works again.
const PROBE: usize = 1 << 30;

/// What the load on a server has done.
#[derive(Default)]
struct LoadRecord {
    stops: AtomicBool,
    next: AtomicUsize,
    reads: AtomicUsize,
    errors: AtomicUsize,
    /// Values that were acknowledged since the last check.
    acknowledged: Mutex<BTreeSet<usize>>,
}

impl LoadRecord {
    fn write(&self, store: &dyn SharedStore) {
        while !self.stops.load(Ordering::Relaxed) {
            if self.acknowledged.lock().unwrap().len() >= UNCHECKED_MAX {
                thread::sleep(Duration::from_millis(1));
                continue;
            }
            let index = self.next.fetch_add(1, Ordering::Relaxed);
            match write_named(store, &numbered(index), LENGTH, CALL_WITHIN) {
                Ok(_) => drop(self.acknowledged.lock().unwrap().insert(index)),
                Err(_) => self.pause(),
            }
        }
    }

    /// Reads one of the last values, over and over. Wrong bytes panic.
    fn read(&self, store: &dyn SharedStore) {
        let mut turn = 0_usize;
        while !self.stops.load(Ordering::Relaxed) {
            turn = turn.wrapping_mul(31).wrapping_add(7) % 64;
            let index = self.next.load(Ordering::Relaxed).saturating_sub(turn);
            match read_checked(store, &numbered(index), LENGTH, CALL_WITHIN) {
                Ok(true) => drop(self.reads.fetch_add(1, Ordering::Relaxed)),
                Ok(false) => thread::yield_now(),
                Err(_) => self.pause(),
            }
        }
    }

    fn pause(&self) {
        self.errors.fetch_add(1, Ordering::Relaxed);
        thread::sleep(Duration::from_millis(20));
    }

    /// Waits until a value was acknowledged after the last check.
    fn await_write(&self) {
        let began = Instant::now();
        while self.acknowledged.lock().unwrap().is_empty() {
            assert!(began.elapsed() < WORKS_WITHIN, "no write is acknowledged");
            thread::sleep(Duration::from_millis(1));
        }
    }
}

/// Kills of a server.
struct KillPlan {
    kills: usize,
    /// The time before the first and after the last kill.
    load: Duration,
    /// Whether all acknowledged values must be there after a kill.
    durable: bool,
}

/// What kills of a server did.
#[derive(Default)]
struct KillCounts {
    acknowledged: usize,
    kept: usize,
    /// The longest time from the first answer of the server to the first right value of the store.
    again: Duration,
}

/// The server is killed and restarted under load: no wrong byte, and the open store works again.
pub(crate) fn check_server(server: &mut TestServer) -> SuiteOutcome {
    let store = server.open();
    // moto states that it is durable, as buckets are, and keeps everything in its memory.
    let durable = server.choice == ServerChoice::SeaweedFs;
    let plan = KillPlan {
        kills: server.kills,
        load: server.load,
        durable,
    };
    let text = kill_under_load(&*store, plan, &mut |pause| {
        server.process().kill();
        thread::sleep(pause);
        server.process().restart().unwrap();
        server.process().await_start().unwrap();
        // moto keeps its buckets in memory.
        if server.choice != ServerChoice::SeaweedFs {
            server.make_bucket().unwrap();
        }
    });
    SuiteOutcome::Passed(text)
}

/// The same with a server of Redis or Valkey that keeps a log of what it acknowledges.
pub(crate) fn check_durable_server(server: &mut TestServer) -> SuiteOutcome {
    if !server.is_redis() {
        return SuiteOutcome::DoesNotApply;
    }
    let folder = TempDir::new().unwrap();
    // With the default of `appendfsync` Redis answers before it writes its log while an earlier fsync runs.
    let log = ["--appendonly", "yes", "--appendfsync", "always"];
    let mut process: ServerProcess =
        start_redis(&server.servers, kind_of(server.choice), folder.path(), &log).unwrap();
    let url = server.url_at(process.port(), &server.new_prefix());
    let store = open_within(&url, SOON).unwrap();
    assert!(store.abilities().is_durable);
    let plan = KillPlan {
        kills: server.kills,
        load: server.load,
        durable: true,
    };
    let text = kill_under_load(&*store, plan, &mut |pause| {
        process.kill();
        thread::sleep(pause);
        process.restart().unwrap();
        process.await_start().unwrap();
    });
    SuiteOutcome::Passed(text)
}

/// Kills and restarts a server with `restart`, which gets the time that it is away, under the load of two
/// writers and two readers.
fn kill_under_load(
    store: &dyn SharedStore,
    KillPlan {
        kills,
        load,
        durable,
    }: KillPlan,
    restart: &mut dyn FnMut(Duration),
) -> String {
    let record = LoadRecord::default();
    let mut counts = KillCounts::default();
    let mut numbers = SplitMix64::new(11);
    let mut upto = |milliseconds: u64| Duration::from_millis(numbers.any() % milliseconds);
    thread::scope(|scope| {
        // Also when a check panics, or the scope would wait for its threads for ever.
        let _stops = StopsLoad(&record.stops);
        for _ in 0..2 {
            scope.spawn(|| record.write(store));
            scope.spawn(|| record.read(store));
        }
        thread::sleep(load);
        for kill in 0..kills {
            record.await_write();
            thread::sleep(upto(150));
            restart(upto(100));
            let probe = numbered(PROBE + kill);
            let works = || {
                write_named(store, &probe, LENGTH, CALL_WITHIN)?;
                read_checked(store, &probe, LENGTH, CALL_WITHIN)
            };
            let (found, again) = until_it_works(WORKS_WITHIN, works);
            assert!(found, "a value was lost without a kill");
            counts.again = counts.again.max(again);
            check_acknowledged(store, &record, durable, &mut counts);
        }
        record.await_write();
        thread::sleep(load);
        record.stops.store(true, Ordering::Relaxed);
    });
    check_acknowledged(store, &record, durable, &mut counts);
    let (reads, errors) = (record.reads.into_inner(), record.errors.into_inner());
    assert!(reads > 0 && errors > 0, "{reads} reads, {errors} errors");
    let KillCounts {
        acknowledged,
        kept,
        again,
    } = counts;
    assert!(acknowledged > kills, "{acknowledged} values acknowledged");
    // The values after the last kill are there in any store.
    assert!(kept > 0, "no value was kept");
    format!(
        "({kills} kills; works at most {again:.1?} after an answer; {reads} reads right, {errors} errors; \
         {kept} of {acknowledged} acknowledged values kept)"
    )
}

struct StopsLoad<'a>(&'a AtomicBool);

impl Drop for StopsLoad<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Reads all values that were acknowledged since the last check, and removes them.
fn check_acknowledged(
    store: &dyn SharedStore,
    record: &LoadRecord,
    durable: bool,
    counts: &mut KillCounts,
) {
    let acknowledged = std::mem::take(&mut *record.acknowledged.lock().unwrap());
    counts.acknowledged += acknowledged.len();
    for index in &acknowledged {
        let (kept, _) = until_it_works(SOON, || {
            read_checked(store, &numbered(*index), LENGTH, CALL_WITHIN)
        });
        assert!(kept || !durable, "a durable store lost value {index}");
        counts.kept += usize::from(kept);
    }
    let names: Vec<_> = acknowledged.into_iter().map(numbered).collect();
    let remove = || store.remove(&names, Deadline::within(SOON));
    until_it_works(SOON, remove);
}

/// Writers are killed in the middle of their writes: each value is absent or whole, those that were
/// acknowledged are whole, and a second writer writes the rest.
pub(crate) fn check_writer(server: &mut TestServer) -> SuiteOutcome {
    let url = server.url(&server.new_prefix());
    let store = open_within(&url, SOON).unwrap();
    let length = length_of(&*store);
    let mut numbers = SplitMix64::new(12);
    let (mut acknowledged, mut late, mut absent) = (0, 0, 0);
    for _ in 0..server.writer_kills {
        let values = killed_writer(&url, Duration::from_millis(numbers.any() % 150));
        acknowledged += values;
        for index in 0..values {
            let whole = read_checked(&*store, &numbered(index), length, SOON).unwrap();
            assert!(whole, "acknowledged value {index} is absent");
        }
        // The write that the kill interrupted, and none after it.
        match read_checked(&*store, &numbered(values), length, SOON).unwrap() {
            true => late += 1,
            false => absent += 1,
        }
        let after = read_checked(&*store, &numbered(values + 1), length, SOON).unwrap();
        assert!(!after, "value {} was never written", values + 1);
        write_named(&*store, &numbered(values), length, SOON).unwrap();
        assert!(read_checked(&*store, &numbered(values), length, SOON).unwrap());
        let names: Vec<_> = (0..=values).map(numbered).collect();
        store.remove(&names, Deadline::within(SOON)).unwrap();
    }
    SuiteOutcome::Passed(format!(
        "({} writers killed: {acknowledged} acknowledged values whole; of the writes that were interrupted, {late} \
         whole, {absent} absent, none torn)",
        server.writer_kills
    ))
}

/// Starts a writer and kills it `after` its first value; how many values it had acknowledged.
fn killed_writer(url: &str, after: Duration) -> usize {
    let mut writes = Command::new(env::current_exe().unwrap());
    let writes = writes.args(["--write-until-killed", url]);
    let mut writer = writes.stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(writer.stdout.take().unwrap()).lines();
    let first = lines.next();
    assert!(first.is_some(), "a writer ended before its first value");
    thread::sleep(after);
    writer.kill().unwrap();
    writer.wait().unwrap();
    // A line is written after its value was acknowledged. The last may be cut.
    let whole = lines.take_while(|line| line.as_ref().is_ok_and(|line| line == "written"));
    1 + whole.count()
}

fn length_of(store: &dyn SharedStore) -> usize {
    let best = *store.abilities().best_bytes.end();
    usize::try_from(best.min(4 << 20)).unwrap()
}

/// Writes values and prints a line for each that was acknowledged, in a process that is killed.
pub(crate) fn write_until_killed(url: &str) -> ExitCode {
    let store = open_within(url, SOON).unwrap();
    let length = length_of(&*store);
    for index in 0..WRITER_VALUES {
        write_named(&*store, &numbered(index), length, SOON).unwrap();
        let mut output = std::io::stdout();
        output.write_all(b"written\n").unwrap();
        output.flush().unwrap();
    }
    // It waits to be killed.
    thread::sleep(SOON);
    ExitCode::FAILURE
}
