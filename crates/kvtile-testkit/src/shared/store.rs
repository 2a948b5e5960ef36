//! The rules of a store.
#![expect(
    clippy::indexing_slicing,
    reason = "an index past the end of an answer is a violation, and checks panic on those"
)]

use std::{collections::HashMap, ops::Range, sync::Arc, time::Duration};

use kvtile_layout::broken;
use kvtile_random::SplitMix64;
use kvtile_shared::store::{
    Deadline, SharedStore, SharedStoreError, SinkState, StoreExpiry, ValueName, ValueSink,
    ValueWritten,
};

/// Opens a store in one place. Every call opens the same place again, as another process would.
pub type OpenStoreAt = Box<dyn Fn() -> Arc<dyn SharedStore> + Send + Sync>;

/// The time limit of a call.
const PATIENCE: Duration = Duration::from_secs(60);

/// A name of a check, and the check.
type StoreCheck = (&'static str, fn(&StoreRig));

const CHECKS: &[StoreCheck] = &[
    ("values come back byte for byte", comes_back),
    ("absent values are absent", absent),
    ("a second write changes nothing", second_write),
    ("readers see whole values while many write", many_writers),
    ("names and sizes at the limits", limits),
    ("batches have answers in their order", batches),
    ("removed values are absent, also twice", removed),
    ("a sink ends a read", ended_reads),
    ("ranges of a value have its bytes and no others", ranges),
    ("lifetimes end, and are renewed", lifetimes),
    ("listings have every value once", listings),
    ("a full store refuses or evicts", capacity),
    ("two handles see each other's values", two_handles),
];

/// Checks a store. `new_place` makes an empty place for one.
///
/// # Panics
/// At the first violation. The last line of standard output names the check.
pub fn check_store(new_place: &dyn Fn() -> OpenStoreAt) {
    for (name, check) in CHECKS {
        println!("{name}");
        let open = new_place();
        let store = open();
        check(&StoreRig { open, store });
    }
}

struct StoreRig {
    open: OpenStoreAt,
    store: Arc<dyn SharedStore>,
}

fn by() -> Deadline {
    Deadline::within(PATIENCE)
}

fn name(text: &str) -> ValueName {
    match ValueName::new(text) {
        Ok(name) => name,
        Err(error) => broken(format_args!("{error}")),
    }
}

fn numbered(number: usize) -> ValueName {
    name(&format!("kvt1/check/{:02x}/value-{number}.1", number % 256))
}

fn content(seed: u64, bytes: usize) -> Vec<u8> {
    let mut content = vec![0; bytes];
    SplitMix64::new(seed).fill(&mut content);
    content
}

fn done<T>(result: Result<T, SharedStoreError>) -> T {
    match result {
        Ok(done) => done,
        Err(error) => broken(format_args!("a call of the store failed: {error}")),
    }
}

/// A sink with pieces of given sizes in turns, which takes at most `most` bytes.
struct PiecedSink {
    bytes: Vec<u8>,
    piece: Vec<u8>,
    sizes: Vec<usize>,
    turn: usize,
    most: usize,
}

impl PiecedSink {
    fn new(sizes: &[usize], most: usize) -> PiecedSink {
        PiecedSink {
            bytes: Vec::new(),
            piece: Vec::new(),
            sizes: sizes.to_vec(),
            turn: 0,
            most,
        }
    }
}

impl ValueSink for PiecedSink {
    fn space(&mut self) -> &mut [u8] {
        if self.piece.is_empty() {
            let size = self.sizes[self.turn % self.sizes.len()];
            self.piece = vec![0; size.min(self.most - self.bytes.len())];
            self.turn += 1;
        }
        &mut self.piece
    }

    fn filled(&mut self, bytes: usize) -> SinkState {
        let rest = self.piece.split_off(bytes);
        self.bytes.append(&mut self.piece);
        self.piece = rest;
        match self.bytes.len() < self.most {
            true => SinkState::Open,
            false => SinkState::Full,
        }
    }
}

impl StoreRig {
    fn write(&self, name: &ValueName, bytes: &[u8]) -> ValueWritten {
        done(self.store.write(name, &[bytes], None, by()))
    }

    fn read(&self, name: &ValueName) -> Option<Vec<u8>> {
        read(&*self.store, name)
    }
}

fn read(store: &dyn SharedStore, name: &ValueName) -> Option<Vec<u8>> {
    let mut sink = PiecedSink::new(&[1 << 16], usize::MAX);
    let is_there = done(store.read(name, &mut sink, by()));
    assert!(
        is_there || sink.bytes.is_empty(),
        "bytes of an absent value"
    );
    is_there.then_some(sink.bytes)
}

fn comes_back(rig: &StoreRig) {
    let whole = content(1, 300_000);
    for (number, cuts) in [
        vec![],
        vec![1],
        vec![0, 0, 5],
        vec![4096, 8192, 299_999],
        vec![100_000, 100_000],
    ]
    .into_iter()
    .enumerate()
    {
        let mut parts: Vec<&[u8]> = Vec::new();
        let mut at = 0;
        for cut in cuts {
            parts.push(&whole[at..cut]);
            at = cut;
        }
        parts.push(&whole[at..]);
        let name = numbered(number);
        let written = done(rig.store.write(&name, &parts, None, by()));
        assert_eq!(written, ValueWritten::New);
        for sizes in [&[1 << 20][..], &[1000, 1, 77], &[65536, 4096]] {
            let mut sink = PiecedSink::new(sizes, usize::MAX);
            assert!(done(rig.store.read(&name, &mut sink, by())));
            assert!(sink.bytes == whole, "{name}: other bytes came back");
        }
    }
}

fn absent(rig: &StoreRig) {
    let there = numbered(1);
    let nothing = numbered(2);
    assert_eq!(rig.read(&nothing), None);
    assert_eq!(
        done(rig.store.has(std::slice::from_ref(&nothing), by())),
        [false]
    );
    rig.write(&there, b"a");
    assert_eq!(rig.read(&nothing), None);
    // A name that begins as another one, and the directory of one.
    for text in [
        format!("{there}0"),
        "kvt1/check".to_owned(),
        format!("{there}/a"),
    ] {
        assert_eq!(rig.read(&name(&text)), None, "{text}");
        let has = rig.store.has(&[name(&text)], by());
        assert_eq!(done(has), [false], "{text}");
    }
}

fn second_write(rig: &StoreRig) {
    let value = numbered(1);
    let bytes = content(3, 70_000);
    assert_eq!(rig.write(&value, &bytes), ValueWritten::New);
    let again = rig.write(&value, &bytes);
    if rig.store.abilities().keeps_first {
        assert_eq!(again, ValueWritten::Present);
        let other = content(4, 50_000);
        assert_eq!(rig.write(&value, &other), ValueWritten::Present);
    }
    assert!(rig.read(&value) == Some(bytes), "the value changed");
}

fn many_writers(rig: &StoreRig) {
    let value = numbered(9);
    // Writers of one name have equal content in use. Unequal content shows torn values.
    let contents: Vec<Vec<u8>> = (0..8).map(|seed| content(seed, 400_000)).collect();
    let outcomes: Vec<ValueWritten> = std::thread::scope(|scope| {
        let readers: Vec<_> = (0..2)
            .map(|_| {
                scope.spawn(|| {
                    for _ in 0..40 {
                        if let Some(found) = rig.read(&value) {
                            assert!(contents.contains(&found), "a part of a value was read");
                        }
                    }
                })
            })
            .collect();
        let writers: Vec<_> = contents
            .iter()
            .map(|bytes| scope.spawn(|| rig.write(&value, bytes)))
            .collect();
        let outcomes = writers.into_iter().map(|writer| match writer.join() {
            Ok(outcome) => outcome,
            Err(_) => broken(format_args!("a writer panicked")),
        });
        let outcomes = outcomes.collect();
        for reader in readers {
            assert!(reader.join().is_ok(), "a reader panicked");
        }
        outcomes
    });
    let new = |outcome: &&ValueWritten| **outcome == ValueWritten::New;
    let new = outcomes.iter().filter(new).count();
    assert!(new >= 1, "{outcomes:?}");
    if rig.store.abilities().keeps_first {
        assert_eq!(new, 1, "{outcomes:?}");
    }
    assert!(
        rig.read(&value)
            .is_some_and(|found| contents.contains(&found))
    );
}

fn limits(rig: &StoreRig) {
    let best = rig.store.abilities().best_bytes;
    let largest = usize::try_from(*best.end()).unwrap_or(usize::MAX);
    let long = format!("kvt1/{}{}", "ab/".repeat(60), "c".repeat(200));
    let names = [
        "0".repeat(32),
        "f".repeat(32),
        "kvt1/0/0/00/00.1".to_owned(),
        "a-b_c.d".to_owned(),
        long,
    ];
    for (seed, text) in (0..).zip(&names) {
        for (size, bytes) in [1, largest].into_iter().enumerate() {
            let value = name(&format!("{text}{size}"));
            let bytes = content(seed, bytes);
            assert_eq!(rig.write(&value, &bytes), ValueWritten::New, "{value}");
            assert!(rig.read(&value) == Some(bytes), "{value}");
            assert_eq!(done(rig.store.remove(&[value], by())), 1);
        }
    }
}

fn batches(rig: &StoreRig) {
    let most = rig.store.abilities().batch_max;
    assert!(most >= 1);
    assert_eq!(done(rig.store.has(&[], by())), [] as [bool; 0]);
    assert_eq!(done(rig.store.remove(&[], by())), 0);
    done(rig.store.touch(&[], None, by()));
    let count = most.min(300);
    let names: Vec<ValueName> = (0..count).map(numbered).collect();
    for name in names.iter().step_by(3) {
        rig.write(name, name.as_str().as_bytes());
    }
    let expected: Vec<bool> = (0..count).map(|at| at % 3 == 0).collect();
    assert_eq!(done(rig.store.has(&names, by())), expected);
    let reversed: Vec<ValueName> = names.iter().rev().cloned().collect();
    let has = done(rig.store.has(&reversed, by()));
    assert!(has.iter().rev().eq(&expected));
    if most >= 3 {
        let twice = [&names[0], &names[1], &names[0]].map(ValueName::clone);
        assert_eq!(done(rig.store.has(&twice, by())), [true, false, true]);
    }
    done(rig.store.touch(&names, None, by()));
    assert_eq!(done(rig.store.has(&names, by())), expected);
}

fn removed(rig: &StoreRig) {
    let (one, other) = (numbered(1), numbered(2));
    rig.write(&one, b"one");
    rig.write(&other, b"other");
    assert_eq!(done(rig.store.remove(std::slice::from_ref(&one), by())), 1);
    assert_eq!(rig.read(&one), None);
    // A store may not know whether it had a value.
    done(rig.store.remove(std::slice::from_ref(&one), by()));
    done(rig.store.remove(&[numbered(3)], by()));
    assert_eq!(rig.read(&other), Some(b"other".to_vec()));
    assert_eq!(rig.write(&one, b"again"), ValueWritten::New);
    assert_eq!(rig.read(&one), Some(b"again".to_vec()));
}

fn ended_reads(rig: &StoreRig) {
    let value = numbered(1);
    let whole = content(5, 200_000);
    rig.write(&value, &whole);
    for most in [0, 1, 4096, 199_999, 200_000] {
        let mut sink = PiecedSink::new(&[5000], most);
        assert!(done(rig.store.read(&value, &mut sink, by())), "{most}");
        assert!(sink.bytes == whole[..most], "{most} bytes of a value");
    }
}

fn ranges(rig: &StoreRig) {
    let value = numbered(1);
    let whole = content(6, 200_000);
    rig.write(&value, &whole);
    let read = |name: &ValueName, range: Range<u64>| {
        let mut sink = PiecedSink::new(&[5000, 1, 70_000], usize::MAX);
        let is_there = done(rig.store.read_range(name, range, &mut sink, by()));
        (is_there, sink.bytes)
    };
    let mut numbers = SplitMix64::new(7);
    let mut ranges = vec![
        (0, 1),
        (0, 4096),
        (199_999, 200_000),
        (0, 200_000),
        (4096, 150_000),
    ];
    for _ in 0..10 {
        let start = numbers.index(whole.len());
        ranges.push((start, start + 1 + numbers.index(whole.len() - start)));
    }
    for (start, end) in ranges {
        let (is_there, bytes) = read(&value, start as u64..end as u64);
        assert!(is_there && bytes == whole[start..end], "{start}..{end}");
    }
    // Beyond the end there is nothing.
    let (is_there, bytes) = read(&value, 150_000..1 << 40);
    assert!(is_there && bytes == whole[150_000..]);
    assert!(read(&value, 200_000..300_000).1.is_empty());
    assert_eq!(read(&numbered(2), 0..100), (false, Vec::new()));
    // A sink ends it, and the next call finds the store as before.
    let mut sink = PiecedSink::new(&[5000], 20_000);
    assert!(done(rig.store.read_range(
        &value,
        10..150_000,
        &mut sink,
        by()
    )));
    assert!(sink.bytes == whole[10..20_010]);
    assert!(rig.read(&value) == Some(whole));
}

fn lifetimes(rig: &StoreRig) {
    if rig.store.abilities().expires != StoreExpiry::PerValue {
        return;
    }
    let [short, renewed, forever] = [1, 2, 3].map(numbered);
    let life = Some(Duration::from_millis(1500));
    for name in [&short, &renewed] {
        done(rig.store.write(name, &[b"a"], life, by()));
    }
    rig.write(&forever, b"a");
    std::thread::sleep(Duration::from_millis(700));
    let long = Some(Duration::from_secs(600));
    done(rig.store.touch(std::slice::from_ref(&renewed), long, by()));
    std::thread::sleep(Duration::from_millis(1300));
    assert_eq!(rig.read(&short), None, "a value outlived its lifetime");
    let names = [short.clone(), renewed, forever];
    assert_eq!(done(rig.store.has(&names, by())), [false, true, true]);
    assert_eq!(rig.write(&short, b"b"), ValueWritten::New);
}

fn listings(rig: &StoreRig) {
    let mut written: HashMap<ValueName, u64> = HashMap::new();
    for number in 0..1100 {
        let name = numbered(number);
        let bytes = vec![0; 1 + number % 7];
        rig.write(&name, &bytes);
        written.insert(name, bytes.len() as u64);
    }
    let elsewhere = name("other/value.1");
    rig.write(&elsewhere, b"a");
    let list = |under: &str| {
        let mut found: HashMap<ValueName, u64> = HashMap::new();
        let mut after: Option<String> = None;
        let mut pages = 0;
        loop {
            let page = done(rig.store.list(under, after.as_deref(), by()));
            for value in page.values {
                let age = value.age.unwrap_or_default();
                assert!(age < Duration::from_secs(600), "{value:?}");
                let twice = found.insert(value.name.clone(), value.bytes);
                assert_eq!(twice, None, "{} is listed twice", value.name);
            }
            pages += 1;
            assert!(pages < 10_000, "a listing that does not end");
            match page.next {
                Some(next) => after = Some(next),
                None => return found,
            }
        }
    };
    assert_eq!(list("kvt1/"), written);
    assert_eq!(
        list("kvt1/check/05/").len(),
        (0..1100).filter(|at| at % 256 == 5).count()
    );
    assert_eq!(list("kvt1/nothing/"), HashMap::new());
    written.insert(elsewhere, 1);
    assert_eq!(list(""), written);
}

fn capacity(rig: &StoreRig) {
    let abilities = rig.store.abilities();
    let Some(capacity) = abilities.capacity_bytes.filter(|bytes| *bytes <= 1 << 30) else {
        return;
    };
    let size = usize::try_from(*abilities.best_bytes.end()).unwrap_or(usize::MAX);
    let values = usize::try_from(capacity).unwrap_or(usize::MAX) / size + 4;
    for number in 0..values {
        let bytes = content(number as u64, size);
        // It evicts, or refuses; both are right.
        let _ = rig.store.write(&numbered(number), &[&bytes], None, by());
    }
    let mut total = 0;
    for number in 0..values {
        if let Some(found) = rig.read(&numbered(number)) {
            assert!(found == content(number as u64, size), "value {number}");
            total += found.len() as u64;
        }
    }
    assert!(total <= capacity, "{total} bytes in a store of {capacity}");
}

fn two_handles(rig: &StoreRig) {
    let other = (rig.open)();
    let value = numbered(1);
    let bytes = content(6, 100_000);
    assert_eq!(rig.write(&value, &bytes), ValueWritten::New);
    assert!(read(&*other, &value) == Some(bytes));
    if other.abilities().keeps_first {
        let again = done(other.write(&value, &[b"x"], None, by()));
        assert_eq!(again, ValueWritten::Present);
    }
    assert_eq!(done(other.remove(std::slice::from_ref(&value), by())), 1);
    assert_eq!(rig.read(&value), None);
}
