//! What the pages contain.

use std::{collections::BTreeSet, sync::Arc};

use kvtile::{Cache, tiers::metrics::CATALOGUE};
use kvtile_http::{CacheReport, HttpServer, Observation, PAGE, PAGE_METRICS, shared_metrics};
use serde_json::Value;

use crate::{caches, client, parser};

fn serve(caches: &[Arc<Cache>]) -> HttpServer {
    let observed: Vec<_> = caches.iter().map(Arc::downgrade).collect();
    kvtile_http::serve("127.0.0.1:0", move || {
        let open = observed.iter().enumerate().filter_map(|(number, cache)| {
            let cache = cache.upgrade()?;
            Some(CacheReport::of(&format!("cache {number}"), &*cache))
        });
        open.collect()
    })
    .unwrap()
}

#[test]
fn metrics_are_those_of_the_catalogue_with_its_help_texts_and_the_numbers_of_the_caches() {
    let folder = tempfile::tempdir().unwrap();
    let caches = caches::use_two(folder.path());
    let server = serve(&caches);
    let page = client::get(server.address(), "/metrics");
    assert_eq!(page.status, "200 OK");
    assert!(
        page.head
            .contains("Content-Type: text/plain; version=0.0.4")
    );
    let families = parser::parse(&page.body);
    let check = |name: &str, help: &str, labels: &mut dyn Iterator<Item = &'static str>| {
        let family = families.get(name).unwrap_or_else(|| panic!("{name}"));
        assert_eq!(family.help, help);
        let labels: BTreeSet<&str> = labels.collect();
        for (found, _) in &family.samples {
            let found = found.keys().map(String::as_str);
            let found: BTreeSet<&str> = found.filter(|label| *label != "suffix").collect();
            assert_eq!(found, labels, "{name}");
        }
        assert!(!family.samples.is_empty(), "{name}");
    };
    for metric in CATALOGUE {
        let labels = metric.labels.iter().copied();
        check(metric.name, metric.help, &mut labels.chain(["cache"]));
    }
    for metric in PAGE_METRICS {
        check(metric.name, metric.help, &mut metric.labels.iter().copied());
    }
    for (name, labels, help) in shared_metrics() {
        check(&name, help, &mut labels.into_iter());
    }
    let known = CATALOGUE.len() + PAGE_METRICS.len() + shared_metrics().len();
    assert_eq!(families.len(), known);
    let value = |name: &str, labels: &[(&str, &str)]| {
        let found = families[name]
            .samples
            .iter()
            .find(|(found, _)| labels.iter().all(|(label, text)| found[*label] == *text));
        found.unwrap_or_else(|| panic!("{name} {labels:?}")).1
    };
    let (first, second) = (("cache", "cache 0"), ("cache", "cache 1"));
    let written = caches::shared(&caches[0]).counters().written;
    assert_eq!(value("kvtile_lookups_total", &[second]), 1.0);
    assert_eq!(
        value(
            "kvtile_lookup_hit_blocks_total",
            &[second, ("tier", "shared")]
        ),
        12.0
    );
    assert_eq!(
        value(
            "kvtile_lookup_miss_blocks_total",
            &[second, ("reason", "absent")]
        ),
        2.0
    );
    assert_eq!(
        value("kvtile_capacity_blocks", &[second, ("tier", "host")]),
        8.0
    );
    let stats = caches[1].stats();
    let read = stats
        .moves
        .iter()
        .find(|route| route.source.to_string() == "shared")
        .unwrap();
    let route = [second, ("source", "shared"), ("destination", "host")];
    assert_eq!(value("kvtile_moved_bytes_total", &route), read.bytes as f64);
    assert_eq!(
        value("kvtile_shared_written_bundles_total", &[first]),
        written as f64
    );
    assert!(written >= 6, "{written}");
    let read = caches::shared(&caches[1]).counters().read;
    assert_eq!(
        value("kvtile_shared_read_bundles_total", &[second]),
        read as f64
    );
    assert!(read >= 6, "{read}");
    assert_eq!(
        value(
            "kvtile_shared_breaker_is_open",
            &[second, ("calls", "reads")]
        ),
        0.0
    );
    assert_eq!(
        value("kvtile_cache_info", &[second, ("model", caches::MODEL)]),
        1.0
    );
}

#[test]
fn the_json_is_the_observation_and_a_closed_cache_leaves_it() {
    let folder = tempfile::tempdir().unwrap();
    let [first, second] = caches::use_two(folder.path());
    let server = serve(&[Arc::clone(&first), Arc::clone(&second)]);
    let page = client::get(server.address(), "/stats.json?now");
    assert!(page.head.contains("Content-Type: application/json"));
    let observed: Observation = serde_json::from_str(&page.body).unwrap();
    assert_eq!(observed.kvtile, env!("CARGO_PKG_VERSION"));
    let names: Vec<&str> = observed
        .caches
        .iter()
        .map(|cache| cache.name.as_str())
        .collect();
    assert_eq!(names, ["cache 0", "cache 1"]);
    let cache = &observed.caches[1];
    assert_eq!(cache.stats.lookups, second.stats().lookups);
    assert_eq!(cache.block_bytes, Some(second.block_bytes()));
    assert_eq!(cache.identities[0].model, caches::MODEL);
    let fingerprint = second.identity().fingerprint().to_string();
    assert_eq!(cache.identities[0].fingerprint, fingerprint);
    let shared = cache.tiers.last().unwrap().shared.as_ref().unwrap();
    assert_eq!(
        (shared.reads.as_str(), shared.bundle_blocks.as_slice()),
        ("closed", &[2][..])
    );
    drop(second);
    let left = || {
        let page = client::get(server.address(), "/stats.json");
        let observed: Observation = serde_json::from_str(&page.body).unwrap();
        observed.caches.len()
    };
    while left() == 2 {
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    assert_eq!(left(), 1);
    drop(first);
}

#[test]
fn other_paths_name_the_pages_and_heads_have_no_body() {
    let server = serve(&[]);
    let unknown = client::get(server.address(), "/favicon.ico");
    assert_eq!(unknown.status, "404 Not Found");
    assert!(unknown.body.contains("/stats.json"), "{}", unknown.body);
    assert_eq!(client::get(server.address(), "/healthz").body, "ok\n");
    let page = client::get(server.address(), "/");
    assert_eq!(page.body, PAGE);
    assert!(
        page.head.contains("frame-ancestors 'none'"),
        "{}",
        page.head
    );
    let head = format!("HEAD / HTTP/1.1\r\nHost: {}\r\n\r\n", server.address());
    let head = client::send(server.address(), head.as_bytes());
    assert_eq!((head.status.as_str(), head.body.as_str()), ("200 OK", ""));
    assert!(
        head.head
            .contains(&format!("Content-Length: {}", PAGE.len()))
    );
    assert_eq!(server.url(), format!("http://{}/", server.address()));
}

#[test]
fn caches_that_panic_cost_the_request_alone() {
    let server = kvtile_http::serve("127.0.0.1:0", || panic!("a defect")).unwrap();
    for _ in 0..3 {
        let page = client::get(server.address(), "/metrics");
        assert_eq!(page.status, "500 Internal Server Error");
    }
    assert_eq!(client::get(server.address(), "/healthz").status, "200 OK");
}

/// The texts between double quotes in the script.
fn quoted(script: &str) -> Vec<&str> {
    script.split('"').skip(1).step_by(2).collect()
}

/// Every field that the script reads, `at(cache, "stats.lookups")`, is in the JSON. The first
/// letters of the variable name what it is.
#[test]
fn the_page_reads_fields_that_the_json_has() {
    let folder = tempfile::tempdir().unwrap();
    let caches = caches::use_two(folder.path());
    let server = serve(&caches);
    let page: Value =
        serde_json::from_str(&client::get(server.address(), "/stats.json").body).unwrap();
    let cache = &page["caches"][1];
    let tier = &cache["tiers"].as_array().unwrap().last().unwrap();
    let kinds = [
        ("page", &page),
        ("last", &page),
        ("before", &page),
        ("cache", cache),
        ("identity", &cache["identities"][0]),
        ("tier", tier),
        ("store", &tier["shared"]),
        ("route", &cache["stats"]["moves"][0]),
        ("one", &cache["stats"]["moves"][0]),
        ("queue", &cache["stats"]["queues"][0]),
    ];
    let (_, script) = PAGE.split_once("<script>").unwrap();
    let mut read = 0;
    for call in script.split("at(").skip(1) {
        let Some((variable, rest)) = call.split_once(", \"") else {
            continue;
        };
        if !variable.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
            continue;
        }
        let (path, _) = rest.split_once('"').unwrap();
        let kind = kinds.iter().find(|(kind, _)| variable.starts_with(kind));
        let kind = match variable {
            // `one` is a route in `routes` and a page in `show`.
            "one" if path == "seconds" => Some(&kinds[0]),
            _ => kind,
        };
        let (_, value) = kind.unwrap_or_else(|| panic!("at({variable}, {path:?})"));
        let found = value.pointer(&format!("/{}", path.replace('.', "/")));
        assert!(found.is_some(), "at({variable}, {path:?}) in {value}");
        read += 1;
    }
    assert!(read > 60, "{read} fields");
    let paths = quoted(script);
    let paths = paths.iter().filter(|text| {
        let is_path = |text: &str| {
            text.bytes()
                .all(|byte| byte.is_ascii_lowercase() || b"._".contains(&byte))
        };
        is_path(text) && (text.starts_with("stats.") || text.starts_with("health."))
    });
    let mut found = 0;
    for path in paths {
        let base = if path.starts_with("stats.") {
            cache
        } else {
            tier
        };
        assert!(
            base.pointer(&format!("/{}", path.replace('.', "/")))
                .is_some(),
            "{path}"
        );
        found += 1;
    }
    assert!(found > 30, "{found} paths");
}

#[test]
fn the_page_loads_nothing_from_elsewhere_and_writes_no_markup() {
    for word in [
        "http://",
        "https://",
        "//cdn",
        "<link rel=\"stylesheet",
        "innerHTML",
        "eval(",
    ] {
        let without = PAGE.replace("http://www.w3.org/2000/svg", "");
        assert!(!without.contains(word), "{word}");
    }
    assert!(PAGE.contains("prefers-color-scheme: dark") && PAGE.contains("width=device-width"));
}

#[test]
fn the_client_reads_what_the_server_sends() {
    let folder = tempfile::tempdir().unwrap();
    let caches = caches::use_two(folder.path());
    let server = serve(&caches);
    let within = std::time::Duration::from_secs(20);
    let observed = kvtile_http::fetch(&server.url(), within).unwrap();
    assert_eq!(observed.caches[1].stats, caches[1].stats());
    let elsewhere = format!("{}kv/", server.url());
    let error = kvtile_http::fetch(&elsewhere, within).unwrap_err();
    assert!(error.to_string().contains("status 404"), "{error}");
    let address = server.address().to_string();
    server.close();
    let error = kvtile_http::fetch(&address, within).unwrap_err();
    assert!(error.to_string().contains(&address), "{error}");
}

/// A server that accepts and does not answer.
#[test]
fn the_client_waits_no_longer_than_its_limit() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let within = std::time::Duration::from_millis(200);
    let start = std::time::Instant::now();
    let error = kvtile_http::fetch(&address, within).unwrap_err();
    assert!(error.to_string().contains("does not answer"), "{error}");
    assert!(start.elapsed() < within * 50);
}

#[test]
fn caches_of_one_name_are_numbered() {
    let folder = tempfile::tempdir().unwrap();
    let [cache, _] = caches::use_two(folder.path());
    let observed = Arc::downgrade(&cache);
    let server = kvtile_http::serve("127.0.0.1:0", move || {
        let cache = observed.upgrade().unwrap();
        let names = ["a", "a", "a (2)", "a"];
        names.map(|name| CacheReport::of(name, &*cache)).to_vec()
    });
    let server = server.unwrap();
    let observed = kvtile_http::fetch(&server.url(), std::time::Duration::from_secs(20)).unwrap();
    let names: Vec<String> = observed
        .caches
        .into_iter()
        .map(|cache| cache.name)
        .collect();
    assert_eq!(names, ["a", "a (2)", "a (2) (2)", "a (3)"]);
    parser::parse(&client::get(server.address(), "/metrics").body);
}
