//! Servers and writers that are killed.

use std::{
    collections::HashSet,
    env,
    process::{Command, ExitCode},
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use kvtile_shared::store::{SharedStore, ValueWritten};

use crate::{
    server::{ServerChoice, TestServer, open_within, until_it_works},
    table::SuiteOutcome,
    values::{numbered, read_checked, write_named},
};

const CALL_WITHIN: Duration = Duration::from_secs(2);
const SOON: Duration = Duration::from_secs(20);
const LENGTH: usize = 200_000;

/// Values of the writer that is killed.
const VALUES: usize = 12;

/// What the load on a server has done.
#[derive(Default)]
struct LoadRecord {
    stops: AtomicBool,
    next: AtomicUsize,
    reads: AtomicUsize,
    errors: AtomicUsize,
    written: Mutex<HashSet<usize>>,
}

impl LoadRecord {
    fn write(&self, store: &dyn SharedStore) {
        while !self.stops.load(Ordering::Relaxed) {
            let index = self.next.fetch_add(1, Ordering::Relaxed);
            match write_named(store, &numbered(index), LENGTH, CALL_WITHIN) {
                Ok(_) => drop(self.written.lock().unwrap().insert(index)),
                Err(_) => self.pause(),
            }
        }
    }

    fn read(&self, store: &dyn SharedStore) {
        let mut turn = 0_usize;
        while !self.stops.load(Ordering::Relaxed) {
            turn = turn.wrapping_mul(31).wrapping_add(7);
            let index = turn % self.next.load(Ordering::Relaxed).max(1);
            // Wrong bytes panic.
            match read_checked(store, &numbered(index), LENGTH, CALL_WITHIN) {
                Ok(_) => drop(self.reads.fetch_add(1, Ordering::Relaxed)),
                Err(_) => self.pause(),
            }
        }
    }

    fn pause(&self) {
        self.errors.fetch_add(1, Ordering::Relaxed);
        thread::sleep(Duration::from_millis(20));
    }
}

/// The server is killed and restarted under load: no wrong byte, and the open store works again.
pub(crate) fn check_server(server: &mut TestServer) -> SuiteOutcome {
    let store = server.open();
    let load = LoadRecord::default();
    let duration = server.load;
    let (before, again) = thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| load.write(&*store));
            scope.spawn(|| load.read(&*store));
        }
        thread::sleep(duration);
        server.process().kill();
        let before = load.written.lock().unwrap().len();
        thread::sleep(Duration::from_millis(300));
        server.process().restart().unwrap();
        server.process().await_start().unwrap();
        // moto keeps its buckets in memory.
        if server.choice != ServerChoice::SeaweedFs {
            server.make_bucket().unwrap();
        }
        let index = 1_000_000;
        let works = || {
            write_named(&*store, &numbered(index), LENGTH, CALL_WITHIN)?;
            read_checked(&*store, &numbered(index), LENGTH, CALL_WITHIN)
        };
        let (_, again) = until_it_works(Duration::from_secs(60), works);
        thread::sleep(duration);
        load.stops.store(true, Ordering::Relaxed);
        (before, again)
    });
    let written = load.written.into_inner().unwrap();
    let (reads, errors) = (load.reads.into_inner(), load.errors.into_inner());
    assert!(
        before > 0 && written.len() > before,
        "{before} of {}",
        written.len()
    );
    assert!(reads > 0 && errors > 0, "{reads} reads, {errors} errors");
    let kept = written
        .iter()
        .filter(|index| read_checked(&*store, &numbered(**index), LENGTH, SOON).unwrap());
    let kept = kept.count();
    if server.choice == ServerChoice::SeaweedFs {
        assert_eq!(kept, written.len(), "a durable store lost values");
    }
    SuiteOutcome::Passed(format!(
        "(works {again:.1?} after its start; {reads} reads right, {errors} errors; {kept} of {} values kept)",
        written.len()
    ))
}

/// Writers are killed in the middle of their writes: values are absent or whole, and a second writer
/// writes all.
pub(crate) fn check_writer(server: &mut TestServer) -> SuiteOutcome {
    let url = server.url(&server.new_prefix());
    let store = open_within(&url, SOON).unwrap();
    let length = length_of(&*store);
    let rounds = 6_u64;
    let mut whole = 0;
    for round in 1..=rounds {
        let mut writes = Command::new(env::current_exe().unwrap());
        let mut writer = writes.args(["--write-until-killed", &url]).spawn().unwrap();
        thread::sleep(Duration::from_millis(60 * round));
        writer.kill().unwrap();
        writer.wait().unwrap();
        for index in 0..VALUES {
            if read_checked(&*store, &numbered(index), length, SOON).unwrap() {
                whole += 1;
            }
        }
        let names: Vec<_> = (0..VALUES).map(numbered).collect();
        if round < rounds {
            store
                .remove(&names, kvtile_shared::store::Deadline::within(SOON))
                .unwrap();
        }
    }
    let mut new = 0;
    for index in 0..VALUES {
        if write_named(&*store, &numbered(index), length, SOON).unwrap() == ValueWritten::New {
            new += 1;
        }
        assert!(read_checked(&*store, &numbered(index), length, SOON).unwrap());
    }
    SuiteOutcome::Passed(format!(
        "({rounds} writers killed, {whole} values of them whole, none torn; the next wrote {new})"
    ))
}

fn length_of(store: &dyn SharedStore) -> usize {
    let best = *store.abilities().best_bytes.end();
    usize::try_from(best.min(4 << 20)).unwrap()
}

/// Writes values, over and over, in a process that is killed.
pub(crate) fn write_until_killed(url: &str) -> ExitCode {
    let store = open_within(url, SOON).unwrap();
    let length = length_of(&*store);
    for index in (0..VALUES).cycle().take(100_000) {
        // The value may be there already.
        let _ = write_named(&*store, &numbered(index), length, SOON);
    }
    ExitCode::FAILURE
}
