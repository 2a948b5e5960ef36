//! Servers and settings that no store can use: each ends opening with an error that names them.

use std::{
    env,
    process::{Command, ExitCode},
    time::{Duration, Instant},
};

use kvtile_shared::store::StoreErrorKind;
use kvtile_testservers::{
    port,
    proxy::{DelayProxy, ProxyDirection},
};

use crate::{
    server::{BUCKET, ServerChoice, TestServer, open_within},
    table::SuiteOutcome,
};

/// The time of an opening that fails.
const WITHIN: Duration = Duration::from_secs(4);

/// Later than its deadline, on a busy machine.
const SLACK: Duration = Duration::from_secs(5);

pub(crate) fn check(server: &mut TestServer) -> SuiteOutcome {
    let [closed] = port::free().unwrap();
    let url = server.url_at(closed, "x");
    expect(&url, StoreErrorKind::Transient, &["127.0.0.1"]);
    // A server that accepts connections and answers nothing.
    let silent = DelayProxy::before(server.port()).unwrap();
    silent.set_loses(ProxyDirection::Up, true);
    expect(
        &server.url_at(silent.port(), "x"),
        StoreErrorKind::Transient,
        &["deadline"],
    );
    match server.is_redis() {
        true => of_redis(server),
        false => of_objects(server),
    }
    SuiteOutcome::Passed(String::new())
}

fn of_objects(server: &mut TestServer) {
    let missing = server.url("x").replace(BUCKET, "no-such-bucket");
    // SeaweedFS makes a bucket for those that may; every other server refuses.
    if server.choice != ServerChoice::SeaweedFs {
        expect(
            &missing,
            StoreErrorKind::Configuration,
            &["no-such-bucket", "does not exist"],
        );
    }
    let tls = server.url("x").replace("http://", "https://");
    expect(&tls, StoreErrorKind::Transient, &[]);
    if server.choice == ServerChoice::SeaweedFs {
        let wrong = open_elsewhere(&server.url("x"), "wrong-secret");
        assert!(wrong.contains("Configuration"), "{wrong}");
        assert!(
            wrong.contains("AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"),
            "{wrong}"
        );
        assert!(!wrong.contains("wrong-secret"), "{wrong}");
        let anonymous = server.url("x") + "&anonymous=true";
        expect(
            &anonymous,
            StoreErrorKind::Configuration,
            &["anonymous=true"],
        );
    }
}

fn of_redis(server: &mut TestServer) {
    let url = server.url("x");
    let wrong = url.replace("127.0.0.1", "me:wrong@127.0.0.1");
    expect(&wrong, StoreErrorKind::Configuration, &["WRONGPASS"]);
    let wrong = url.replace("/0?", "/9999?");
    expect(
        &wrong,
        StoreErrorKind::Refused,
        &["DB index is out of range"],
    );
    let missing = "unix:///no/such/socket?db=0".to_owned();
    expect(&missing, StoreErrorKind::Transient, &["/no/such/socket"]);
    let socket = server.folder().join("redis.sock");
    let unix = format!("unix://{}?prefix=over-unix", socket.display());
    open_within(&unix, WITHIN).unwrap();
}

fn expect(url: &str, kind: StoreErrorKind, parts: &[&str]) {
    let began = Instant::now();
    let error = open_within(url, WITHIN).unwrap_err();
    let took = began.elapsed();
    assert!(took < WITHIN + SLACK, "{url}: {took:?}");
    let text = error.to_string();
    assert_eq!(error.kind(), kind, "{url}: {text}");
    for part in parts {
        assert!(text.contains(part), "{url}: {text}");
    }
    assert!(!text.contains("wrong@"), "{text}");
}

/// The error of opening with another secret, in a process of its own.
fn open_elsewhere(url: &str, secret: &str) -> String {
    let mut opens = Command::new(env::current_exe().unwrap());
    opens
        .args(["--open", url])
        .env("AWS_SECRET_ACCESS_KEY", secret);
    let output = opens.output().unwrap();
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Opens a store and prints what came of it.
pub(crate) fn open(url: &str) -> ExitCode {
    match open_within(url, WITHIN) {
        Ok(store) => println!("opened {}", store.name()),
        Err(error) => println!("{:?}: {error}", error.kind()),
    }
    ExitCode::SUCCESS
}
