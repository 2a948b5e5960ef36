//! The guarantees of a tier, over one store.
#![expect(
    clippy::indexing_slicing,
    reason = "an index past the end of an answer is a violation, and checks panic on those"
)]

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use kvtile_layout::broken;
use kvtile_shared::{
    bundle::PartName,
    store::{Deadline, SharedStore, SinkState, ValueName, ValueSink},
    sweep::{SweepSettings, sweep},
    tier::SharedTierSettings,
};
use kvtile_tiers::tier::{Tier, TierMiss, WriteSuccess};

use super::{OpenStoreAt, SharedTierRig};

/// A name of a check, and the check.
type AboveCheck = (&'static str, fn(&dyn Fn() -> Arc<dyn SharedStore>));

const CHECKS: &[AboveCheck] = &[
    ("another cache reads what one wrote, once", two_caches),
    ("the tail of a chain is not stored", tails),
    ("a chain that leaves another one is whole", forks),
    ("damaged values are misses and never served", damage),
    ("a damaged value is removed and written again", repaired),
    ("a removed value is offered once", removed_once),
    ("closing ends reads in flight", closing),
    (
        "a sweep removes the oldest and leaves foreign values",
        sweeps,
    ),
];

/// The time limit of a call.
const PATIENCE: Duration = Duration::from_secs(60);

/// Blocks of a bundle.
const BUNDLE: u32 = 4;

/// Checks tiers over a store. `new_place` makes an empty place for it.
///
/// # Panics
/// At the first violation. The last line of standard output names the check.
pub fn check_above_store(new_place: &dyn Fn() -> OpenStoreAt) {
    for (name, check) in CHECKS {
        println!("{name}");
        let open = new_place();
        check(&open);
    }
}

fn settings() -> SharedTierSettings {
    SharedTierSettings::new().bundle_blocks(BUNDLE)
}

fn rig(store: &Arc<dyn SharedStore>) -> SharedTierRig {
    SharedTierRig::open(Arc::clone(store), settings(), (4, 2))
}

fn two_caches(open: &dyn Fn() -> Arc<dyn SharedStore>) {
    let chain = SharedTierRig::chain(1, 12);
    let first = rig(&open());
    for outcome in first.write(&chain) {
        assert!(matches!(outcome, Ok(WriteSuccess::New)), "{outcome:?}");
    }
    assert_eq!(first.tier().counters().written, 3);
    let second = rig(&open());
    assert_eq!(second.ask(&chain).leading, 12);
    second.read_all(&chain);
    second.tier().check_integrity();
    let counters = second.tier().counters();
    assert_eq!((counters.read, counters.read_blocks), (3, 12));
    // A third one writes the same blocks without a query.
    let third = rig(&open());
    third.write(&chain);
    let counters = third.tier().counters();
    assert_eq!((counters.written, counters.present), (0, 3));
    third.read_all(&chain);
    // Another size of bundles has other names.
    let settings = SharedTierSettings::new().bundle_blocks(2);
    let other = SharedTierRig::open(open(), settings, (4, 2));
    assert_eq!(other.ask(&chain).leading, 0);
    // So has another part.
    let part = match PartName::new("l0-2") {
        Ok(part) => part,
        Err(error) => broken(format_args!("{error}")),
    };
    let other = SharedTierRig::open(open(), self::settings().part(part), (4, 2));
    assert_eq!(other.ask(&chain).leading, 0);
}

fn tails(open: &dyn Fn() -> Arc<dyn SharedStore>) {
    let chain = SharedTierRig::chain(1, 6);
    let first = rig(&open());
    first.write(&chain);
    // Its own lookups find the tail, in staging memory.
    assert_eq!(first.ask(&chain).leading, 6);
    first.read_all(&chain);
    let second = rig(&open());
    assert_eq!(second.ask(&chain).leading, 4);
    let outcomes = second.read(&chain);
    assert!(outcomes[..4].iter().all(Result::is_ok), "{outcomes:?}");
    assert!(matches!(outcomes[5], Err(TierMiss::Absent)), "{outcomes:?}");
    // The rest of the bundle comes.
    let longer = SharedTierRig::chain(1, 8);
    first.write(&longer[..7]);
    let outcomes = first.write(&longer);
    assert!(outcomes.iter().all(Result::is_ok), "{outcomes:?}");
    let third = rig(&open());
    assert_eq!(third.ask(&longer).leading, 8);
    third.read_all(&longer);
}

fn forks(open: &dyn Fn() -> Arc<dyn SharedStore>) {
    let chain = SharedTierRig::chain(1, 8);
    let fork = |number: u64| {
        let mut fork = SharedTierRig::chain(1, 6);
        fork.extend(SharedTierRig::chain(number, 12).split_off(6));
        fork
    };
    let first = rig(&open());
    first.write(&chain);
    // Its first blocks are still known here, and in the store.
    first.write(&fork(2));
    // They are only in the store.
    let second = rig(&open());
    assert_eq!(second.ask(&chain).leading, 8);
    let outcomes = second.write(&fork(3));
    let present = |outcome: &Result<WriteSuccess, _>| matches!(outcome, Ok(WriteSuccess::Present));
    assert!(outcomes[..6].iter().all(present), "{outcomes:?}");
    assert!(outcomes.iter().all(Result::is_ok), "{outcomes:?}");
    for number in [2, 3] {
        let third = rig(&open());
        assert_eq!(third.ask(&fork(number)).leading, 12, "fork {number}");
        third.read_all(&fork(number));
    }
}

/// All bytes of a value.
#[derive(Default)]
struct WholeValue {
    bytes: Vec<u8>,
    space: Vec<u8>,
}

impl ValueSink for WholeValue {
    fn space(&mut self) -> &mut [u8] {
        self.space.resize(1 << 16, 0);
        &mut self.space
    }

    fn filled(&mut self, bytes: usize) -> SinkState {
        self.bytes.extend(&self.space[..bytes]);
        SinkState::Open
    }
}

fn value(store: &dyn SharedStore, name: &ValueName) -> Vec<u8> {
    let mut whole = WholeValue::default();
    let came = store.read(name, &mut whole, Deadline::within(PATIENCE));
    assert!(matches!(came, Ok(true)), "{name}: {came:?}");
    whole.bytes
}

fn replace(store: &dyn SharedStore, name: &ValueName, bytes: &[u8]) {
    let by = Deadline::within(PATIENCE);
    let removed = store.remove(std::slice::from_ref(name), by);
    let written = store.write(name, &[bytes], None, by);
    assert!(
        removed.is_ok() && written.is_ok(),
        "{removed:?} {written:?}"
    );
}

/// The changed values of a check, each with what was changed.
fn damages(whole: &[u8], other: &[u8]) -> Vec<(String, Vec<u8>)> {
    let header = 4096;
    let mut damages = Vec::new();
    let mut flip = |byte: usize, bit: usize| {
        let mut bytes = whole.to_vec();
        bytes[byte] ^= 1 << bit;
        damages.push((format!("bit {bit} of byte {byte} flipped"), bytes));
    };
    // Each byte of the fields, and some of the padding.
    let fields = 144 + 24 * 4 + 8;
    for byte in (0..fields).chain((fields..header).step_by(509)) {
        flip(byte, byte % 8);
    }
    for byte in (header..whole.len()).step_by(64) {
        flip(byte, byte / 64 % 8);
    }
    for length in [0, 1, 143, 4095, 4096, whole.len() / 2, whole.len() - 1] {
        damages.push((format!("cut to {length} bytes"), whole[..length].to_vec()));
    }
    damages.push(("longer".to_owned(), [whole, &[0]].concat()));
    damages.push(("another value".to_owned(), other.to_vec()));
    let exchanged = [&whole[..header], &other[header..]].concat();
    damages.push(("the blocks of another value".to_owned(), exchanged));
    damages.push(("zeroes".to_owned(), vec![0; whole.len()]));
    damages
}

fn damage(open: &dyn Fn() -> Arc<dyn SharedStore>) {
    let store = open();
    let chain = SharedTierRig::chain(1, 4);
    let writer = rig(&store);
    writer.write(&chain);
    let first = SharedTierRig::names(&*store);
    assert_eq!(first.len(), 1, "{first:?}");
    let name = &first[0];
    writer.write(&SharedTierRig::chain(2, 4));
    let names = SharedTierRig::names(&*store);
    let Some(other) = names.iter().find(|other| *other != name) else {
        broken(format_args!("one value of two bundles: {names:?}"))
    };
    let (whole, other) = (value(&*store, name), value(&*store, other));
    drop(writer);
    for (what, bytes) in damages(&whole, &other) {
        replace(&*store, name, &bytes);
        let reader = SharedTierRig::open(Arc::clone(&store), settings(), (4, 0));
        assert_eq!(reader.ask(&chain).leading, 4, "{what}");
        let outcomes = reader.read(&chain);
        assert!(outcomes.iter().all(Result::is_err), "{what}: served");
        let counters = reader.tier().counters();
        let counted = counters.damaged + counters.other_identity + counters.short;
        assert_eq!(counted, 1, "{what}: {counters:?}");
        let is_offered = reader.tier().has(chain[3].group, &chain[3].key);
        assert!(!is_offered, "{what}: it is offered again");
    }
    replace(&*store, name, &whole);
    let reader = rig(&store);
    assert_eq!(reader.ask(&chain).leading, 4);
    reader.read_all(&chain);
}

fn repaired(open: &dyn Fn() -> Arc<dyn SharedStore>) {
    let store = open();
    let chain = SharedTierRig::chain(1, 4);
    rig(&store).write(&chain);
    let names = SharedTierRig::names(&*store);
    let mut bytes = value(&*store, &names[0]);
    bytes[5000] ^= 1;
    replace(&*store, &names[0], &bytes);
    let reader = rig(&store);
    assert_eq!(reader.ask(&chain).leading, 4);
    assert!(reader.read(&chain).iter().all(Result::is_err));
    let start = Instant::now();
    while reader.tier().counters().removed == 0 {
        assert!(start.elapsed() < PATIENCE, "the damaged value stays");
        std::thread::sleep(Duration::from_millis(5));
    }
    reader.write(&chain);
    let other = rig(&store);
    assert_eq!(other.ask(&chain).leading, 4);
    other.read_all(&chain);
}

fn removed_once(open: &dyn Fn() -> Arc<dyn SharedStore>) {
    let store = open();
    let chain = SharedTierRig::chain(1, 8);
    rig(&store).write(&chain);
    let reader = rig(&store);
    assert_eq!(reader.ask(&chain).leading, 8);
    let names = SharedTierRig::names(&*store);
    let removed = store.remove(&names, Deadline::within(PATIENCE));
    assert!(removed.is_ok(), "{removed:?}");
    for outcome in reader.read(&chain) {
        assert!(matches!(outcome, Err(TierMiss::Absent)), "{outcome:?}");
    }
    let asked = reader.tier().counters().asked;
    assert_eq!(reader.ask(&chain).leading, 0);
    let counters = reader.tier().counters();
    assert_eq!((counters.asked, counters.absent), (asked, 2));
    // It can be written again.
    reader.write(&chain);
    let other = rig(&store);
    assert_eq!(other.ask(&chain).leading, 8);
}

fn closing(open: &dyn Fn() -> Arc<dyn SharedStore>) {
    let store = open();
    let chain = SharedTierRig::chain(1, 4);
    rig(&store).write(&chain);
    let reader = rig(&store);
    assert_eq!(reader.ask(&chain).leading, 4);
    let one = chain[..1].to_vec();
    let reads: Vec<_> = (0..100).map(|_| reader.begin_read(&one)).collect();
    let tier = Arc::clone(reader.tier());
    let start = Instant::now();
    let host = reader.close();
    drop(tier);
    for (_, read) in &reads {
        let left = PATIENCE.saturating_sub(start.elapsed());
        let report = read.wait_timeout(left);
        assert_eq!(report.map(|report| report.blocks.len()), Some(1));
    }
    drop(reads);
    assert!(host.wait_until_free(PATIENCE), "memory of a closed tier");
}

fn sweeps(open: &dyn Fn() -> Arc<dyn SharedStore>) {
    let store = open();
    let writer = rig(&store);
    let (old, new) = (SharedTierRig::chain(1, 8), SharedTierRig::chain(2, 8));
    writer.write(&old);
    std::thread::sleep(Duration::from_millis(1200));
    writer.write(&new);
    let foreign = ["kvt1/readme.txt", "kvt1/aa/bb/cc/dd/ee.4", "other/value"];
    for text in foreign {
        let Ok(name) = ValueName::new(text) else {
            broken(format_args!("{text}"))
        };
        let written = store.write(&name, &[b"foreign"], None, Deadline::within(PATIENCE));
        assert!(written.is_ok(), "{written:?}");
    }
    let run = |settings: SweepSettings| match sweep(&*store, &settings) {
        Ok(report) => report,
        Err(error) => broken(format_args!("a sweep failed: {error}")),
    };
    let counted = run(SweepSettings::new(None));
    assert_eq!(
        (counted.bundles, counted.removed, counted.foreign),
        (4, 0, 2)
    );
    assert_eq!(run(SweepSettings::new(counted.bytes)).removed, 0);
    let swept = run(SweepSettings::new(counted.bytes - 1).low_mark(0.6));
    assert_eq!((swept.removed, swept.removed_bytes), (2, counted.bytes / 2));
    let reader = rig(&store);
    assert_eq!(reader.ask(&old).leading, 0);
    assert_eq!(reader.ask(&new).leading, 8);
    reader.read_all(&new);
    let emptied = run(SweepSettings::new(None).age_max(Duration::ZERO));
    assert_eq!((emptied.removed, emptied.foreign), (2, 2));
    for text in foreign {
        let has = ValueName::new(text).map(|name| store.has(&[name], Deadline::within(PATIENCE)));
        assert!(
            matches!(has, Ok(Ok(has)) if has == [true]),
            "{text} was removed"
        );
    }
}
