//! Servers whose clock is wrong, and long listings.

use std::time::Duration;

use kvtile_shared::{
    store::{Deadline, SharedStore, ValueName},
    survey::{SurveySettings, survey},
    sweep::{SweepSettings, sweep},
};

use crate::server::ScriptedServer;

const DAY: i64 = 86_400;
const HOUR: Duration = Duration::from_hours(1);

/// The name of a bundle.
fn bundle(number: u64) -> String {
    let (identity, layout) = ("ab".repeat(16), "cd".repeat(16));
    // Spread, as keys are.
    let key = u128::from(number.wrapping_mul(0x9e37_79b9_7f4a_7c15)) << 64 | u128::from(number);
    let key = format!("{key:032x}");
    format!("kvt1/{identity}/{layout}/all/{}/{key}.16", &key[..2])
}

#[test]
fn ages_are_those_of_the_server_whose_clock_is_a_day_ahead_or_behind() {
    for ahead in [0, DAY, -DAY] {
        let server = ScriptedServer::start();
        server.set_ahead(ahead);
        let store = server.open("");
        for number in 0..10 {
            let age = Duration::from_mins(10) * u32::try_from(number).unwrap();
            server.add(&bundle(number), 100, age);
        }
        let manifest = format!("kvt1/{}/manifest.json", "ef".repeat(16));
        server.add(&manifest, 10, Duration::from_secs(60));
        let found = survey(&store, &SurveySettings::new()).unwrap();
        let form = &found.forms[0];
        let (newest, oldest) = (form.newest.unwrap(), form.oldest.unwrap());
        assert!(newest < Duration::from_secs(30), "{ahead}: {newest:?}");
        assert!(
            oldest >= Duration::from_secs(5390) && oldest < Duration::from_secs(5460),
            "{ahead}: {oldest:?}"
        );
        // The oldest ones go, and nothing that is younger than the age.
        let settings = SweepSettings::new(850).low_mark(0.7);
        let report = sweep(&store, &settings).unwrap();
        assert_eq!((report.removed, report.leftovers), (5, 0), "{ahead}");
        let kept: Vec<u64> = (0..10)
            .filter(|number| server.has(&bundle(*number)))
            .collect();
        assert_eq!(kept, [0, 1, 2, 3, 4], "{ahead}");
        assert!(server.has(&manifest));
        let report = sweep(
            &store,
            &SweepSettings::new(None).age_max(Duration::from_mins(25)),
        )
        .unwrap();
        assert_eq!(report.removed, 2, "{ahead}");
        // What is renewed is new.
        let name = ValueName::new(bundle(2)).unwrap();
        store.touch(&[name], None, Deadline::within(HOUR)).unwrap();
        let report = sweep(
            &store,
            &SweepSettings::new(None).age_max(Duration::from_mins(15)),
        )
        .unwrap();
        assert_eq!(report.removed, 0, "{ahead}");
    }
}

#[test]
fn a_hundred_thousand_names_are_listed_and_swept() {
    let server = ScriptedServer::start();
    let store = server.open("");
    for number in 0..100_000 {
        server.add(&bundle(number), 1, Duration::from_secs(number));
    }
    server.requests();
    let report = sweep(&store, &SweepSettings::new(99_000).low_mark(1.0)).unwrap();
    assert_eq!(
        (report.bundles, report.bytes, report.removed),
        (100_000, 100_000, 1000)
    );
    let kept = (0..100_000).filter(|number| server.has(&bundle(*number)));
    assert!(kept.eq(0..99_000));
    let requests = server.requests();
    assert!(requests.len() < 110, "{} requests", requests.len());
}

#[test]
fn two_sweeps_at_once_remove_what_one_would() {
    let server = ScriptedServer::start();
    for number in 0..3000 {
        server.add(&bundle(number), 10, Duration::from_secs(number));
    }
    let settings = SweepSettings::new(25_000).low_mark(0.8);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            let sweeps = || sweep(&server.open(""), &settings).unwrap();
            scope.spawn(sweeps);
        }
    });
    let kept = (0..3000).filter(|number| server.has(&bundle(*number)));
    assert!(kept.eq(0..2000));
}
