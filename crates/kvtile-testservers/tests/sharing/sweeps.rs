//! Sweeps of a store to which many tiers write: its size stays bounded, and what is not a bundle stays.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use kvtile_shared::{
    store::{Deadline, SharedStore, ValueName},
    sweep::{SweepSettings, sweep},
    tier::SharedTierSettings,
};
use kvtile_testkit::shared::SharedTierRig;

use crate::{
    server::TestServer,
    table::SuiteOutcome,
    values::{numbered, read_checked, write_named},
};

const SOON: Duration = Duration::from_secs(20);
const WRITERS: u64 = 8;
const CAPACITY: u64 = 4 << 20;

/// Blocks of 64 KiB, four of them in a bundle.
const PAGE: u64 = 256;
const BUNDLE: u32 = 4;
const BUNDLE_BYTES: u64 = 4096 + 4 * 256 * PAGE;

/// Bundles of a chain that a writer writes at a time.
const CHAIN: u32 = 4;

const FOREIGN_BYTES: usize = 5000;

/// Ends the writers, also when a sweep fails.
struct WritersEnd<'a>(&'a AtomicBool);

impl Drop for WritersEnd<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

pub(crate) fn check(server: &mut TestServer) -> SuiteOutcome {
    let store = server.open();
    // Bytes of the chains that writers have begun and not ended.
    let in_flight = WRITERS * u64::from(CHAIN) * BUNDLE_BYTES;
    let foreign = [numbered(1), ValueName::new("kvt1/notes.txt").unwrap()];
    for name in &foreign {
        write_named(&*store, name, FOREIGN_BYTES, SOON).unwrap();
    }
    let (begun, is_over) = (AtomicU64::new(0), AtomicBool::new(false));
    let (mut sweeps, mut removed, mut largest) = (0, 0, 0);
    thread::scope(|scope| {
        let end_writers = WritersEnd(&is_over);
        for writer in 0..WRITERS {
            let (store, begun, is_over) = (&store, &begun, &is_over);
            scope.spawn(move || write_chains(store, writer, (begun, is_over)));
        }
        let end = Instant::now() + server.load;
        // What writers had begun when the sweep before began: it may not have seen any of what came later.
        let mut before = 0;
        while Instant::now() < end {
            let now = begun.load(Ordering::SeqCst);
            let report = sweep(&*store, &SweepSettings::new(CAPACITY)).unwrap();
            let written_since = begun.load(Ordering::SeqCst) - before;
            assert!(
                report.bytes <= CAPACITY + written_since + in_flight,
                "{report:?} after {written_since} bytes since the sweep before"
            );
            before = now;
            sweeps += 1;
            removed += report.removed;
            largest = largest.max(report.bytes);
        }
        drop(end_writers);
    });
    let last = sweep(&*store, &SweepSettings::new(CAPACITY)).unwrap();
    let left = size(&*store);
    assert!(left <= CAPACITY, "{left} bytes after {last:?}");
    assert!(removed + last.removed > 0, "{last:?} removed nothing");
    for name in &foreign {
        assert!(read_checked(&*store, name, FOREIGN_BYTES, SOON).unwrap());
    }
    let mib = |bytes: u64| bytes >> 20;
    SuiteOutcome::Passed(format!(
        "({sweeps} sweeps to {} MiB removed {removed} of {} bundles; at most {} MiB)",
        mib(CAPACITY),
        begun.into_inner() / BUNDLE_BYTES,
        mib(largest)
    ))
}

/// Writes chains until it is over. Counts the bytes of each before it is written.
fn write_chains(
    store: &Arc<dyn SharedStore>,
    writer: u64,
    (begun, is_over): (&AtomicU64, &AtomicBool),
) {
    let settings = SharedTierSettings::new().bundle_blocks(BUNDLE);
    let rig = SharedTierRig::open(Arc::clone(store), settings, (PAGE, 2));
    let mut chain = writer << 32;
    while !is_over.load(Ordering::SeqCst) {
        chain += 1;
        begun.fetch_add(u64::from(CHAIN) * BUNDLE_BYTES, Ordering::SeqCst);
        drop(rig.write(&SharedTierRig::chain(chain, CHAIN * BUNDLE)));
    }
}

/// Bytes of all bundles.
fn size(store: &dyn SharedStore) -> u64 {
    let mut names = SharedTierRig::names(store);
    // A listing may have a name twice.
    names.sort();
    names.dedup();
    let by = Deadline::within(SOON);
    let present = names.chunks(64).map(|names| store.has(names, by).unwrap());
    let present = present.flatten().filter(|present| *present).count() as u64;
    present * BUNDLE_BYTES
}
