//! The response of each path.

use std::{
    collections::BTreeSet,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::Mutex;

use crate::{
    PAGE,
    metrics::prometheus_text,
    report::{CacheReport, Observation},
    request::{HttpRefusal, PageRequest},
};

/// How long the numbers of one moment serve all requests. So many requests cost the caches no more
/// than ten a second.
const FRESH: Duration = Duration::from_millis(100);

/// The longest listing of names in the response to an unknown path.
const PATHS: &str = "/, /metrics, /stats.json and /healthz";

/// Reads the numbers of the caches.
type ReadCaches = Box<dyn Fn() -> Vec<CacheReport> + Send + Sync>;

/// The caches, and their numbers of late.
pub(crate) struct Observer {
    read: ReadCaches,
    start: Instant,
    last: Mutex<Option<(Instant, Arc<Observation>)>>,
}

impl Observer {
    pub(crate) fn new(read: ReadCaches) -> Observer {
        Observer {
            read,
            start: Instant::now(),
            last: Mutex::default(),
        }
    }

    /// The numbers of now, or of a moment ago.
    fn observe(&self) -> Arc<Observation> {
        let mut last = self.last.lock();
        let now = Instant::now();
        if let Some((at, observed)) = &*last
            && now.duration_since(*at) < FRESH
        {
            return Arc::clone(observed);
        }
        let mut caches = (self.read)();
        make_unique(&mut caches);
        let observed = Arc::new(Observation {
            kvtile: env!("CARGO_PKG_VERSION").to_owned(),
            seconds: now.duration_since(self.start).as_secs_f64(),
            caches,
        });
        *last = Some((now, Arc::clone(&observed)));
        observed
    }

    /// The bytes of the response to a request.
    pub(crate) fn respond(&self, request: &PageRequest) -> Vec<u8> {
        let html = "text/html; charset=utf-8";
        let (kind, body) = match request.path.as_str() {
            "/" => (html, PAGE.to_owned()),
            "/healthz" => (PLAIN, "ok\n".to_owned()),
            "/metrics" | "/stats.json" => {
                let read = || self.numbers(&request.path);
                match catch_unwind(AssertUnwindSafe(read)) {
                    Ok(Some(page)) => page,
                    _ => return plain("500 Internal Server Error", "the caches cannot be read"),
                }
            }
            _ => return plain("404 Not Found", &format!("there are {PATHS}")),
        };
        bytes("200 OK", kind, &body, request.is_head)
    }

    fn numbers(&self, path: &str) -> Option<(&'static str, String)> {
        let observed = self.observe();
        if path == "/metrics" {
            let kind = "text/plain; version=0.0.4; charset=utf-8";
            return Some((kind, prometheus_text(&observed)));
        }
        let mut text = serde_json::to_string(&*observed).ok()?;
        text.push('\n');
        Some(("application/json", text))
    }
}

/// Numbers the caches after the first one of a name, because no two series may have equal labels.
fn make_unique(caches: &mut [CacheReport]) {
    let mut names = BTreeSet::new();
    for cache in caches {
        let first = cache.name.clone();
        let mut number = 2_u32;
        while !names.insert(cache.name.clone()) {
            cache.name = format!("{first} ({number})");
            number = number.saturating_add(1);
        }
    }
}

const PLAIN: &str = "text/plain; charset=utf-8";

/// The response to a request that is refused.
pub(crate) fn refuse(refusal: HttpRefusal) -> Vec<u8> {
    plain(refusal.status, refusal.text)
}

fn plain(status: &str, text: &str) -> Vec<u8> {
    bytes(status, PLAIN, &format!("{text}\n"), false)
}

/// A response. The connection ends after it. No other site can read it, put it in a frame, or add to
/// what the page loads.
fn bytes(status: &str, kind: &str, body: &str, is_head: bool) -> Vec<u8> {
    let allow = match status.starts_with("405") {
        true => "Allow: GET, HEAD\r\n",
        false => "",
    };
    let mut response = format!(
        "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\n{allow}Connection: close\r\n\
         Cache-Control: no-store\r\nX-Content-Type-Options: nosniff\r\nReferrer-Policy: no-referrer\r\n\
         Cross-Origin-Resource-Policy: same-origin\r\nContent-Security-Policy: default-src 'none'; \
         style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; img-src data:; \
         frame-ancestors 'none'; base-uri 'none'; form-action 'none'\r\n\r\n",
        body.len()
    );
    if !is_head {
        response.push_str(body);
    }
    response.into_bytes()
}
