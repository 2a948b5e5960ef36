//! Long lines, and lines that lose one direction.

use std::{
    thread,
    time::{Duration, Instant},
};

use kvtile_shared::store::Deadline;
use kvtile_testservers::proxy::{DelayProxy, ProxyDirection};

use crate::{
    server::{TestServer, open_within, until_it_works},
    stops::all_calls,
    table::SuiteOutcome,
    values::{numbered, read_checked, write_named},
};

const SOON: Duration = Duration::from_secs(20);
const LENGTH: usize = 100_000;

pub(crate) fn check(server: &mut TestServer) -> SuiteOutcome {
    let proxy = DelayProxy::before(server.port()).unwrap();
    let url = server.url_at(proxy.port(), &server.new_prefix());
    let store = open_within(&url, SOON).unwrap();
    let mut shown = Vec::new();
    for (turn, millis) in [0, 10, 50, 200].into_iter().enumerate() {
        let round_trip = Duration::from_millis(millis);
        proxy.set_round_trip(round_trip);
        let value = numbered(turn);
        write_named(&*store, &value, LENGTH, SOON).unwrap();
        let began = Instant::now();
        assert!(read_checked(&*store, &value, LENGTH, SOON).unwrap());
        let read = began.elapsed();
        assert!(
            read >= round_trip,
            "{read:?} through a line of {round_trip:?}"
        );
        // Questions about many values do not wait for each other.
        let names: Vec<_> = (0..64).map(numbered).collect();
        let began = Instant::now();
        let present = store.has(&names, Deadline::within(SOON)).unwrap();
        let has = began.elapsed();
        assert_eq!(present.iter().filter(|present| **present).count(), turn + 1);
        assert!(
            has < 8 * round_trip + Duration::from_secs(3),
            "{has:?} for 64 questions"
        );
        shown.push(format!("{millis} ms: read {read:.0?}, has(64) {has:.0?}"));
    }
    // A deadline that is shorter than the line.
    let short = Duration::from_millis(100);
    let began = Instant::now();
    assert!(read_checked(&*store, &numbered(0), LENGTH, short).is_err());
    assert!(began.elapsed() < short + Duration::from_secs(5));
    proxy.set_round_trip(Duration::ZERO);
    for direction in [ProxyDirection::Up, ProxyDirection::Down] {
        proxy.set_loses(direction, true);
        all_calls(&*store);
        proxy.set_loses(direction, false);
        // What was lost on a connection does not come later; new ones work.
        until_it_works(SOON, || {
            read_checked(&*store, &numbered(1), LENGTH, Duration::from_secs(1))
        });
    }
    cuts(&*store, &proxy);
    SuiteOutcome::Passed(format!("({})", shown.join("; ")))
}

/// Connections end again and again during reads and writes: errors or right bytes.
fn cuts(store: &dyn kvtile_shared::store::SharedStore, proxy: &DelayProxy) {
    let before = proxy.connections();
    thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let mut right = 0;
            for turn in 0..60 {
                let index = turn % 4;
                let within = Duration::from_secs(2);
                right += usize::from(
                    read_checked(store, &numbered(index), LENGTH, within).unwrap_or(false),
                );
                let _ = write_named(store, &numbered(200 + turn), LENGTH, within);
            }
            right
        });
        while !reader.is_finished() {
            proxy.cut();
            thread::sleep(Duration::from_millis(7));
        }
        let right = reader.join().unwrap();
        assert!(right > 0, "no read succeeded between the cuts");
    });
    assert!(proxy.connections() > before, "nothing was cut");
}
