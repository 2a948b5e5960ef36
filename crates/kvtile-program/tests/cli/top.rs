//! `kvtile top` as a user runs it, on a server of this process.

use std::{
    io::{BufRead, BufReader},
    process::{Child, Command, Stdio},
    sync::Arc,
};

use kvtile::{Cache, CacheSettings, Identity, PhysicalLayout, Shape, TokenHasher};
use kvtile_http::{CacheReport, HttpServer};

use crate::program::kvtile;

/// A name that a terminal would obey.
const NAME: &str = "engine\u{1b}[2J";

/// A cache with four blocks that were looked up, and its server.
fn served() -> (Arc<Cache>, HttpServer) {
    let shape = Shape::key_value(8, 2, 16, 2, 64, "bf16").unwrap();
    let identity = Identity::new("toy\n[31m", "1", &shape).unwrap();
    let keys = TokenHasher::new(&identity).unwrap();
    let keys = keys.keys(&(0..6 * 16).collect::<Vec<u32>>());
    let engine = PhysicalLayout::builder().with_shape(shape).layout("BLKNHC");
    let settings = CacheSettings::new(identity).host_bytes(1 << 20);
    let cache = Cache::open(settings, engine.allocate_system().build().unwrap()).unwrap();
    cache.store(&keys, &[0, 1, 2, 3]).unwrap().wait();
    drop(cache.lookup(&keys));
    let cache = Arc::new(cache);
    let observed = Arc::downgrade(&cache);
    let server = kvtile_http::serve("127.0.0.1:0", move || {
        let cache = observed.upgrade();
        cache
            .iter()
            .map(|cache| CacheReport::of(NAME, &**cache))
            .collect()
    });
    (cache, server.unwrap())
}

fn start(url: &str) -> Child {
    Command::new(env!("CARGO_BIN_EXE_kvtile"))
        .args(["top", url])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap()
}

#[test]
fn one_frame_has_the_numbers_of_every_cache() {
    let (_cache, server) = served();
    let port = server.address().port().to_string();
    for url in [server.url(), port] {
        let frame = kvtile(&["top", &url, "--once"]).ok();
        assert!(frame.contains(": 1 cache, serving for"), "{frame}");
        assert!(
            frame.contains("hits 66.7 % of 6 blocks in 1 lookups"),
            "{frame}"
        );
        assert!(frame.contains("host 66.7 %, absent 33.3 %"), "{frame}");
        assert!(
            frame.contains("engine\\u{1b}[2J") && !frame.contains('\u{1b}'),
            "{frame}"
        );
        assert!(!frame.contains("\n[31m"), "{frame}");
        let device = frame.lines().find(|line| line.contains("device"));
        assert!(device.is_some_and(|line| line.contains("host")), "{frame}");
    }
    let json = kvtile(&["top", &server.url(), "--once", "--json"]).json();
    assert_eq!(json["caches"][0]["stats"]["hits"]["host"], 4);
    let file = tempfile::tempdir().unwrap();
    let path = file.path().join("frame.txt");
    // A file has one frame.
    kvtile(&["top", &server.url(), "-o", path.to_str().unwrap()]).ok();
    assert!(
        std::fs::read_to_string(&path)
            .unwrap()
            .contains("hits 66.7 %")
    );
}

#[test]
fn frames_follow_one_another_until_the_reader_ends() {
    let (_cache, server) = served();
    let mut program = start(&server.url());
    let mut lines = BufReader::new(program.stdout.take().unwrap()).lines();
    let mut frames = 0;
    while frames < 2 {
        let line = lines.next().unwrap().unwrap();
        frames += u32::from(line.contains("serving for"));
        assert!(!line.contains('\u{1b}'), "{line}");
    }
    drop(lines);
    assert_eq!(program.wait().unwrap().code(), Some(0));
}

#[test]
fn a_server_that_ends_is_reported_and_one_that_was_never_there_is_an_error() {
    let (_cache, server) = served();
    let mut program = start(&server.url());
    let mut lines = BufReader::new(program.stdout.take().unwrap()).lines();
    assert!(lines.next().unwrap().unwrap().contains("serving for"));
    let url = server.url();
    server.close();
    let mut lines = lines.map(Result::unwrap);
    let line = lines.find(|line| line.contains("no answer, the numbers are old"));
    assert!(line.is_some());
    drop(lines);
    assert_eq!(program.wait().unwrap().code(), Some(0));
    let error = kvtile(&["top", &url, "--once"]).fails(1);
    assert!(error.contains("does not answer"), "{error}");
    let error = kvtile(&["top", "https://host/"]).fails(2);
    assert!(error.contains("https://host/"), "{error}");
}
