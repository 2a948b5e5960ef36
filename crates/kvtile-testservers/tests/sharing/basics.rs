//! The contract of a store.

use std::{
    sync::atomic::{AtomicUsize, Ordering},
    thread,
    time::{Duration, Instant},
};

use kvtile_shared::store::{Deadline, SharedStore, StoreExpiry, ValueName, ValueWritten};

use crate::{
    server::{TestServer, open_within},
    table::SuiteOutcome,
    values::{PieceMemory, bytes_of, name, numbered, read_all, read_checked, write_named},
};

const SOON: Duration = Duration::from_secs(20);

pub(crate) fn check(server: &mut TestServer) -> SuiteOutcome {
    for check in [
        sizes,
        absent,
        second_write,
        batches,
        sinks,
        same_name,
        prefixes,
        listing,
        over,
        lifetimes,
    ] {
        check(server);
    }
    SuiteOutcome::Passed(String::new())
}

fn by() -> Deadline {
    Deadline::within(SOON)
}

/// Values of every size come back byte for byte.
fn sizes(server: &mut TestServer) {
    let store = server.open();
    let best = store.abilities().best_bytes;
    let best = [*best.start(), *best.end()].map(|bytes| usize::try_from(bytes).unwrap());
    for length in [1, 2, 4095, 65_537, best[0], best[1]] {
        let name = name(&format!("sizes/{length}"));
        let written = write_named(&*store, &name, length, SOON).unwrap();
        assert_eq!(written, ValueWritten::New);
        assert!(
            read_checked(&*store, &name, length, SOON).unwrap(),
            "{length}"
        );
    }
    let parts = [b"".as_slice(), b"ab", b"", b"c"];
    let parted = name("sizes/parted");
    store.write(&parted, &parts, None, by()).unwrap();
    assert_eq!(read_all(&*store, &parted, SOON).unwrap().unwrap(), b"abc");
}

/// Values that are not there are absent for every call, and removing them is no error.
fn absent(server: &mut TestServer) {
    let store = server.open();
    let none = name("none/00/at-all");
    assert_eq!(
        store.has(std::slice::from_ref(&none), by()).unwrap(),
        [false]
    );
    assert!(read_all(&*store, &none, SOON).unwrap().is_none());
    store.remove(std::slice::from_ref(&none), by()).unwrap();
    store
        .touch(std::slice::from_ref(&none), None, by())
        .unwrap();
    assert!(
        read_all(&*store, &none, SOON).unwrap().is_none(),
        "touched into being"
    );
    assert!(store.has(&[], by()).unwrap().is_empty());
    assert_eq!(store.remove(&[], by()).unwrap(), 0);
    store.touch(&[], None, by()).unwrap();
    assert!(store.list("", None, by()).unwrap().values.is_empty());
}

/// The first value stays where the store states that.
fn second_write(server: &mut TestServer) {
    let store = server.open();
    let twice = name("twice");
    let write = |bytes: &[u8]| store.write(&twice, &[bytes], None, by()).unwrap();
    assert_eq!(write(b"first"), ValueWritten::New);
    let second = write(b"second value");
    let kept = read_all(&*store, &twice, SOON).unwrap().unwrap();
    match store.abilities().keeps_first {
        true => assert_eq!(
            (second, kept.as_slice()),
            (ValueWritten::Present, &b"first"[..])
        ),
        false => assert_eq!(kept, b"second value"),
    }
    assert_eq!(store.remove(std::slice::from_ref(&twice), by()).unwrap(), 1);
    assert!(read_all(&*store, &twice, SOON).unwrap().is_none());
    assert_eq!(write(b"third"), ValueWritten::New);
}

/// Answers are in the order of the names, also for names that occur twice.
fn batches(server: &mut TestServer) {
    let store = server.open();
    let names: Vec<ValueName> = (0..40).map(numbered).collect();
    for name in names.iter().step_by(2) {
        write_named(&*store, name, 500, SOON).unwrap();
    }
    let mut questions: Vec<ValueName> = names.clone();
    questions.extend(names.iter().rev().cloned());
    let most = store.abilities().batch_max;
    while questions.len() < most {
        questions.push(names[questions.len() % names.len()].clone());
    }
    questions.truncate(most);
    let answers = store.has(&questions, by()).unwrap();
    assert_eq!(answers.len(), questions.len());
    for (question, answer) in questions.iter().zip(answers) {
        let index = names.iter().position(|name| name == question).unwrap();
        assert_eq!(answer, index % 2 == 0, "{question}");
    }
    store.touch(&names, None, by()).unwrap();
    store.remove(&names[..20], by()).unwrap();
    let answers = store.has(&names, by()).unwrap();
    let expected: Vec<bool> = (0..40).map(|index| index >= 20 && index % 2 == 0).collect();
    assert_eq!(answers, expected);
}

/// A sink gets the bytes in any pieces, and no byte after it is full; the connection serves others.
fn sinks(server: &mut TestServer) {
    let store = server.open();
    let value = name("sinks/value");
    let length = 900_000;
    write_named(&*store, &value, length, SOON).unwrap();
    let bytes = bytes_of(&value, length);
    for (room, piece) in [
        (length, 1 << 20),
        (length, 7001),
        (10, 3),
        (300_000, 4096),
        (0, 1),
    ] {
        let mut memory = PieceMemory::new(room, piece);
        assert!(store.read(&value, &mut memory, by()).unwrap());
        assert_eq!(memory.got, room);
        assert!(memory.bytes == bytes[..room], "{room} {piece}");
        assert!(read_checked(&*store, &value, length, SOON).unwrap());
    }
    let mut memory = PieceMemory::new(length + 100, 4096);
    assert!(store.read(&value, &mut memory, by()).unwrap());
    assert_eq!(memory.got, length);
}

/// Writers of one name, and readers meanwhile: every value that is seen is whole.
fn same_name(server: &mut TestServer) {
    let store = server.open();
    let length = 300_000;
    let seen = AtomicUsize::new(0);
    let news = AtomicUsize::new(0);
    thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                for index in 0..4 {
                    if write_named(&*store, &numbered(index), length, SOON).unwrap()
                        == ValueWritten::New
                    {
                        news.fetch_add(1, Ordering::Relaxed);
                    }
                    for index in 0..4 {
                        if read_checked(&*store, &numbered(index), length, SOON).unwrap() {
                            seen.fetch_add(1, Ordering::Relaxed);
                        }
                    }
                }
            });
        }
    });
    assert!(seen.into_inner() >= 32);
    let news = news.into_inner();
    match store.abilities().keeps_first {
        // An object store may answer a lost race with "try again", which counts as present.
        true => assert!(news <= 4, "{news} first writes of 4 names"),
        false => assert!(news >= 4),
    }
}

/// Two prefixes of one server do not meet.
fn prefixes(server: &mut TestServer) {
    let (one, other) = (server.open(), server.open());
    let value = name("same/name");
    write_named(&*one, &value, 10, SOON).unwrap();
    assert_eq!(
        other.has(std::slice::from_ref(&value), by()).unwrap(),
        [false]
    );
    other.remove(std::slice::from_ref(&value), by()).unwrap();
    assert!(read_checked(&*one, &value, 10, SOON).unwrap());
}

/// Listings have each value with its size, page by page, and nothing that is no value.
fn listing(server: &mut TestServer) {
    let prefix = server.new_prefix();
    let store = open_within(&server.url(&prefix), SOON).unwrap();
    let names: Vec<ValueName> = (0..30).map(numbered).collect();
    for (index, name) in names.iter().enumerate() {
        write_named(&*store, name, index + 1, SOON).unwrap();
    }
    write_named(&*store, &name("valuesless"), 5, SOON).unwrap();
    let mut found = all_values(&*store, "values/");
    found.sort();
    found.dedup();
    let mut expected: Vec<(String, u64)> = (1..)
        .zip(&names)
        .map(|(bytes, name)| (name.to_string(), bytes))
        .collect();
    expected.sort();
    assert_eq!(found, expected);
    let shard = all_values(&*store, "values/03/");
    assert_eq!(shard, [("values/03/00000003".to_owned(), 4)]);
    assert_eq!(all_values(&*store, "").len(), 31);
}

fn all_values(store: &dyn SharedStore, under: &str) -> Vec<(String, u64)> {
    let mut found = Vec::new();
    let mut after: Option<String> = None;
    loop {
        let page = store.list(under, after.as_deref(), by()).unwrap();
        for value in page.values {
            if let Some(age) = value.age {
                assert!(age < Duration::from_secs(600), "{age:?}");
            }
            found.push((value.name.to_string(), value.bytes));
        }
        match page.next {
            None => return found,
            next => after = next,
        }
    }
}

/// A deadline that is over ends every call at once.
fn over(server: &mut TestServer) {
    let store = server.open();
    let value = name("over");
    write_named(&*store, &value, 1000, SOON).unwrap();
    let past = Deadline::within(Duration::ZERO);
    let one = std::slice::from_ref(&value);
    let began = Instant::now();
    assert!(store.has(one, past).is_err());
    assert!(
        store
            .read(&value, &mut PieceMemory::new(10, 10), past)
            .is_err()
    );
    assert!(store.write(&value, &[b"x"], None, past).is_err());
    assert!(store.remove(one, past).is_err());
    assert!(store.touch(one, None, past).is_err());
    assert!(store.list("", None, past).is_err());
    assert!(began.elapsed() < Duration::from_secs(2));
    assert!(read_checked(&*store, &value, 1000, SOON).unwrap());
}

/// Values end with their lifetimes where the store states that, and a touch renews them.
fn lifetimes(server: &mut TestServer) {
    let store = server.open();
    if store.abilities().expires == StoreExpiry::Never {
        return;
    }
    let [short, renewed, long] = ["short", "renewed", "long"].map(name);
    let lifetime = Duration::from_millis(700);
    for value in [&short, &renewed] {
        store.write(value, &[b"x"], Some(lifetime), by()).unwrap();
    }
    store.write(&long, &[b"x"], None, by()).unwrap();
    let hour = Some(Duration::from_hours(1));
    store
        .touch(std::slice::from_ref(&renewed), hour, by())
        .unwrap();
    thread::sleep(lifetime + Duration::from_millis(300));
    let present = store.has(&[short, renewed, long], by()).unwrap();
    assert_eq!(present, [false, true, true]);
}
