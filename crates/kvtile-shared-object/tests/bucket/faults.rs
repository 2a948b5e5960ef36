//! Answers that end, refuse or request a pause, in the middle of the work of a store.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use kvtile_shared::{
    store::{
        Deadline, SharedStore, SharedStoreError, SinkState, StoreErrorKind, ValueName, ValueSink,
        ValueWritten,
    },
    tier::SharedTierSettings,
};
use kvtile_testkit::shared::SharedTierRig;

use crate::server::{ScriptedServer, ServerFault};

const WITHIN: Duration = Duration::from_secs(30);

/// Answers of servers whose caller's credentials have expired.
const EXPIRED: [ServerFault; 2] = [
    ServerFault::Answer(403, "", "<Error><Code>AccessDenied</Code></Error>"),
    ServerFault::Answer(400, "", "<Error><Code>ExpiredToken</Code></Error>"),
];

/// Takes everything.
struct AllBytes(Vec<u8>, Vec<u8>);

impl ValueSink for AllBytes {
    fn space(&mut self) -> &mut [u8] {
        self.1.resize(1000, 0);
        &mut self.1
    }

    fn filled(&mut self, bytes: usize) -> SinkState {
        self.0.extend(&self.1[..bytes]);
        SinkState::Open
    }
}

fn name() -> ValueName {
    ValueName::new("a/value").unwrap()
}

fn content() -> Vec<u8> {
    (0..1_000_000_u32)
        .map(|at| at.to_le_bytes()[at as usize % 3])
        .collect()
}

fn by() -> Deadline {
    Deadline::within(WITHIN)
}

fn write(store: &dyn SharedStore) -> Result<ValueWritten, SharedStoreError> {
    store.write(&name(), &[&content()], None, by())
}

fn read(store: &dyn SharedStore) -> Result<Option<Vec<u8>>, SharedStoreError> {
    let mut sink = AllBytes(Vec::new(), Vec::new());
    let is_there = store.read(&name(), &mut sink, by())?;
    Ok(is_there.then_some(sink.0))
}

#[test]
fn a_read_whose_connection_ends_in_the_middle_goes_on_where_it_was() {
    let server = ScriptedServer::start();
    let store = server.open("");
    write(&store).unwrap();
    server.requests();
    for bytes in [0, 1, 400_000, 999_999] {
        server.fail("GET", ServerFault::Cut(bytes), 1);
        assert!(read(&store).unwrap() == Some(content()), "{bytes}");
    }
    // The rest alone was read again.
    let requests = server.requests();
    assert!(
        requests
            .iter()
            .any(|request| request.contains("bytes=400000-")),
        "{requests:?}"
    );
    // A server that always does it: an error, and no end that looks like the value's.
    server.fail("GET", ServerFault::Cut(100_000), usize::MAX);
    assert_eq!(read(&store).unwrap_err().kind(), StoreErrorKind::Transient);
    server.recover();
    assert!(read(&store).unwrap() == Some(content()));
}

#[test]
fn credentials_that_expire_are_named_and_change_nothing_for_later() {
    for expired in EXPIRED {
        let server = ScriptedServer::start();
        let store = server.open("");
        write(&store).unwrap();
        server.fail("", expired, usize::MAX);
        let mut errors = vec![
            read(&store).unwrap_err(),
            write(&store).unwrap_err(),
            store.touch(&[name()], None, by()).unwrap_err(),
            store.list("", None, by()).unwrap_err(),
        ];
        errors.extend(store.remove(&[name()], by()).err());
        for error in errors {
            assert_eq!(error.kind(), StoreErrorKind::Configuration, "{error}");
        }
        server.recover();
        assert!(read(&store).unwrap() == Some(content()));
        server.requests();
        // Renewed by a copy at the server, and not by its bytes.
        store.touch(&[name()], None, by()).unwrap();
        let requests = server.requests();
        assert!(
            requests.len() == 1 && requests[0].starts_with("COPY"),
            "{requests:?}"
        );
    }
}

#[test]
fn a_server_that_refuses_copies_gets_the_bytes_once_more_from_then_on() {
    let server = ScriptedServer::start();
    let store = server.open("");
    write(&store).unwrap();
    server.fail(
        "COPY",
        ServerFault::Answer(400, "", "<Error><Code>InvalidRequest</Code></Error>"),
        1,
    );
    for _ in 0..2 {
        store.touch(&[name()], None, by()).unwrap();
    }
    let requests = server.requests();
    let copies = requests
        .iter()
        .filter(|request| request.starts_with("COPY"));
    assert_eq!(copies.count(), 1, "{requests:?}");
    assert!(read(&store).unwrap() == Some(content()));
}

#[test]
fn a_server_that_requests_a_pause_gets_no_request_before_its_end() {
    for status in [429, 503] {
        let server = ScriptedServer::start();
        let store = server.open("");
        write(&store).unwrap();
        server.requests();
        let slow = ServerFault::Answer(
            status,
            "Retry-After: 2\r\n",
            "<Error><Code>SlowDown</Code></Error>",
        );
        server.fail("GET", slow, 1);
        let began = Instant::now();
        for _ in 0..5 {
            let error = read(&store).unwrap_err();
            assert_eq!(error.kind(), StoreErrorKind::Transient, "{error}");
            assert!(error.to_string().contains("requested a pause"), "{error}");
        }
        let took = began.elapsed();
        assert_eq!(server.requests().len(), 1, "{took:?}");
        while read(&store).is_err() {
            assert!(began.elapsed() < WITHIN, "the pause does not end");
            std::thread::sleep(Duration::from_millis(20));
        }
        assert!(began.elapsed() >= Duration::from_secs(2));
        assert_eq!(server.requests().len(), 1);
        assert!(read(&store).unwrap() == Some(content()));
    }
}

#[test]
fn a_server_that_is_busy_for_a_moment_gets_the_request_again() {
    let server = ScriptedServer::start();
    let store = server.open("");
    write(&store).unwrap();
    // Without the header, with one that is no number, and with none that lasts.
    for headers in ["", "Retry-After: soon\r\n", "Retry-After: 0\r\n"] {
        server.fail("GET", ServerFault::Answer(503, headers, ""), 2);
        assert!(read(&store).unwrap() == Some(content()), "{headers:?}");
    }
    server.fail("GET", ServerFault::Answer(503, "", ""), 3);
    assert_eq!(read(&store).unwrap_err().kind(), StoreErrorKind::Transient);
}

#[test]
fn a_tier_does_without_a_bucket_that_refuses_and_finds_it_again() {
    let server = ScriptedServer::start();
    let store: Arc<dyn SharedStore> = Arc::new(server.open(""));
    let settings = SharedTierSettings::new()
        .bundle_blocks(2)
        .absent_for(Duration::ZERO);
    let open = || SharedTierRig::open(Arc::clone(&store), settings.clone(), (16, 0));
    let chain = SharedTierRig::chain(1, 8);
    assert!(open().write(&chain).iter().all(Result::is_ok));
    let reader = open();
    assert_eq!(reader.ask(&chain).leading, 8);
    let [expired, _] = EXPIRED;
    server.fail("GET", expired, usize::MAX);
    assert!(reader.read(&chain).iter().all(Result::is_err));
    let counters = reader.tier().counters();
    // Three failures in a row open the breaker; the fourth bundle is not requested.
    assert_eq!(
        (counters.read_failed, counters.breaker_open),
        (3, 1),
        "{counters:?}"
    );
    server.recover();
    let began = Instant::now();
    while reader.ask(&chain).leading < 8 {
        assert!(began.elapsed() < WITHIN, "the breaker does not close");
        std::thread::sleep(Duration::from_millis(20));
    }
    reader.read_all(&chain);
    assert_eq!(reader.tier().counters().read_failed, 3);
}
