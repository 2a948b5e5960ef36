//! A stopped server: its connections stay open and nothing answers.

use std::{
    sync::{Arc, Mutex},
    thread,
    time::{Duration, Instant},
};

use kvtile_shared::{
    store::{Deadline, SharedStore, SharedStoreError},
    tier::SharedTierSettings,
};
use kvtile_testkit::shared::SharedTierRig;

use crate::{
    server::{TestServer, until_it_works},
    table::SuiteOutcome,
    values::{PieceMemory, numbered, read_checked, write_named},
};

/// The deadline of each call.
const WITHIN: Duration = Duration::from_millis(500);

/// Later than the deadline, on a machine whose cores are busy. A call without a deadline would not end at all.
const SLACK: Duration = Duration::from_secs(5);

const LENGTH: usize = 200_000;

pub(crate) fn check(server: &mut TestServer) -> SuiteOutcome {
    let store = server.open();
    for index in 0..4 {
        write_named(&*store, &numbered(index), LENGTH, Duration::from_secs(20)).unwrap();
    }
    server.process().stop().unwrap();
    let latest = all_calls(&*store);
    server.process().resume().unwrap();
    let memory = leases(server);
    let (_, again) = until_it_works(Duration::from_secs(20), || {
        read_checked(&*store, &numbered(0), LENGTH, Duration::from_secs(2))
    });
    for index in 0..4 {
        assert!(read_checked(&*store, &numbered(index), LENGTH, Duration::from_secs(10)).unwrap());
    }
    SuiteOutcome::Passed(format!(
        "(latest call {latest:.0?} after its deadline, works {again:.1?} after it runs on; {memory})"
    ))
}

/// Reads of a tier end by its time limit, and their memory is free when nothing writes to it any more.
fn leases(server: &mut TestServer) -> String {
    let store = server.open();
    let settings = SharedTierSettings::new().bundle_blocks(1);
    let rig = SharedTierRig::open(Arc::clone(&store), settings.clone(), (16, 2));
    let chain = SharedTierRig::chain(3, 8);
    assert!(rig.write(&chain).iter().all(Result::is_ok));
    let rig = SharedTierRig::open(store, settings.read_within(WITHIN), (16, 2));
    assert_eq!(rig.ask(&chain).leading, 8);
    server.process().stop().unwrap();
    let began = Instant::now();
    let (reserved, read) = rig.begin_read(&chain);
    let report = read.wait_timeout(WITHIN + SLACK);
    let took = began.elapsed();
    server.process().resume().unwrap();
    let report = report.unwrap_or_else(|| panic!("reads of a tier did not end by {took:?}"));
    assert!(report.blocks.iter().all(Result::is_err), "{report:?}");
    drop(reserved);
    assert!(
        rig.host().wait_until_free(Duration::from_secs(10)),
        "memory stays leased"
    );
    format!("a tier's reads end after {took:.0?}")
}

/// Every call, several at a time: each ends by its deadline. How much later the latest ended.
pub(crate) fn all_calls(store: &dyn SharedStore) -> Duration {
    let latest = Mutex::new(Duration::ZERO);
    let timed = |what: &str, call: &dyn Fn(Deadline) -> Result<(), SharedStoreError>| {
        let began = Instant::now();
        let ended = call(Deadline::within(WITHIN));
        let late = began.elapsed().saturating_sub(WITHIN);
        assert!(ended.is_err(), "{what} succeeded without a server");
        assert!(late < SLACK, "{what} ended {late:?} after its deadline");
        let mut latest = latest.lock().unwrap();
        *latest = late.max(*latest);
    };
    let names: Vec<_> = (0..8).map(numbered).collect();
    thread::scope(|scope| {
        for turn in 0..3 {
            scope.spawn(|| timed("has", &|by| store.has(&names, by).map(drop)));
            scope.spawn(|| {
                timed("read", &|by| {
                    let mut memory = PieceMemory::new(LENGTH, LENGTH);
                    store.read(&names[0], &mut memory, by).map(drop)
                });
            });
            let index = 100 + turn;
            scope.spawn(move || {
                let began = Instant::now();
                let ended = write_named(store, &numbered(index), LENGTH, WITHIN);
                assert!(ended.is_err(), "a write succeeded without a server");
                let late = began.elapsed().saturating_sub(WITHIN);
                assert!(late < SLACK, "a write ended {late:?} after its deadline");
            });
        }
        scope.spawn(|| timed("remove", &|by| store.remove(&names[6..], by).map(drop)));
        scope.spawn(|| timed("touch", &|by| store.touch(&names[..2], None, by)));
        scope.spawn(|| timed("list", &|by| store.list("", None, by).map(drop)));
    });
    latest.into_inner().unwrap()
}
