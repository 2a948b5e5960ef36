//! The text format of Prometheus, version 0.0.4. Metrics of a cache have the names and help texts of
//! its catalogue, with one more label, `cache`.

use std::fmt::Write as _;

use kvtile::{
    shared::tier::SharedTierCounters,
    tiers::metrics::{CATALOGUE, MetricKind},
};

use crate::report::{CacheReport, Observation, SharedStoreReport, TierReport};

/// A metric of this page alone.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct PageMetric {
    /// Its name.
    pub name: &'static str,
    /// Its kind.
    pub kind: MetricKind,
    /// Its labels.
    pub labels: &'static [&'static str],
    /// Its help text.
    pub help: &'static str,
}

const INFO: &str = "kvtile_info";
const CACHE_INFO: &str = "kvtile_cache_info";
const BLOCK_BYTES: &str = "kvtile_block_bytes";
const PAUSED: &str = "kvtile_tier_paused";
const READ_SECONDS: &str = "kvtile_tier_block_read_seconds";
const BREAKER_OPEN: &str = "kvtile_shared_breaker_is_open";
const CALLS_MAX: &str = "kvtile_shared_calls_max";

const fn gauge(
    name: &'static str,
    labels: &'static [&'static str],
    help: &'static str,
) -> PageMetric {
    PageMetric {
        name,
        kind: MetricKind::Gauge,
        labels,
        help,
    }
}

const TIER: &[&str] = &["cache", "tier"];

/// The labels of the counters of shared tiers.
pub(crate) const SHARED_LABELS: [&str; 3] = ["cache", "tier", "store"];

/// The metrics beside the catalogue's and the counters of shared tiers.
#[rustfmt::skip]
pub const PAGE_METRICS: &[PageMetric] = &[
    gauge(INFO, &["version"], "1, with the version of kvtile"),
    gauge(CACHE_INFO, &["cache", "group", "model", "revision", "identity"], "1 for each group of blocks of a cache, with what its blocks mean"),
    gauge(BLOCK_BYTES, &["cache"], "Payload bytes of a block, where all groups have one size"),
    gauge(PAUSED, &["cache", "tier", "operation"], "1 while an operation of a tier is in a backoff after failures"),
    gauge(READ_SECONDS, TIER, "Expected time to read one block of a tier, from earlier reads"),
    gauge(BREAKER_OPEN, &["cache", "tier", "calls"], "1 while the breaker of a shared tier refuses calls of its store"),
    gauge(CALLS_MAX, TIER, "The most calls of the store of a shared tier at a time; it follows the latency"),
];

/// The metrics of the counters of shared tiers: name, labels and help text of each.
#[must_use]
pub fn shared_metrics() -> Vec<(String, [&'static str; 3], &'static str)> {
    let counters = SharedTierCounters::DESCRIBED.iter();
    let metric = |(counter, about): &(&str, &'static str)| {
        let help = about.trim().trim_end_matches('.');
        (shared_metric_name(counter), SHARED_LABELS, help)
    };
    counters.map(metric).collect()
}

/// The name of the metric of a counter of shared tiers. Counters without a unit count bundles.
fn shared_metric_name(counter: &str) -> String {
    match counter.contains("bytes") || counter.contains("blocks") {
        true => format!("kvtile_shared_{counter}_total"),
        false => format!("kvtile_shared_{counter}_bundles_total"),
    }
}

/// The page.
#[must_use]
pub fn prometheus_text(observed: &Observation) -> String {
    let mut page = MetricPage(String::with_capacity(32 << 10));
    page.catalogue(observed);
    page.own(observed);
    page.shared(observed);
    page.0
}

/// The text of the page up to now.
struct MetricPage(String);

type LabelPair<'a> = (&'a str, &'a str);

impl MetricPage {
    fn head(&mut self, name: &str, kind: &str, help: &str) {
        let help = help.replace('\\', "\\\\").replace('\n', "\\n");
        // Writing to a string cannot fail.
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    fn sample(&mut self, name: &str, labels: &[LabelPair<'_>], value: f64) {
        self.0.push_str(name);
        for (index, (label, text)) in labels.iter().enumerate() {
            let opening = if index == 0 { '{' } else { ',' };
            let _ = write!(self.0, "{opening}{label}=\"");
            for character in text.chars() {
                match character {
                    '\\' => self.0.push_str("\\\\"),
                    '"' => self.0.push_str("\\\""),
                    '\n' => self.0.push_str("\\n"),
                    other => self.0.push(other),
                }
            }
            self.0.push('"');
        }
        let end = if labels.is_empty() { "" } else { "}" };
        let _ = writeln!(self.0, "{end} {value}");
    }

    /// The metrics of the catalogue, for all caches.
    fn catalogue(&mut self, observed: &Observation) {
        let samples = observed.caches.iter().map(|cache| {
            let tiers: Vec<_> = cache.tiers.iter().map(|tier| tier.tier).collect();
            (cache.name.as_str(), cache.stats.samples(&tiers))
        });
        let samples: Vec<_> = samples.collect();
        for metric in CATALOGUE {
            self.head(metric.name, kind_name(metric.kind), metric.help);
            for (cache, of_cache) in &samples {
                for sample in of_cache {
                    if sample.metric.name != metric.name {
                        continue;
                    }
                    let mut labels = vec![("cache", *cache)];
                    let texts = sample.labels.iter().map(String::as_str);
                    labels.extend(metric.labels.iter().copied().zip(texts));
                    let name = format!("{}{}", metric.name, sample.suffix);
                    self.sample(&name, &labels, sample.value);
                }
            }
        }
    }

    /// The metrics that only this page has.
    fn own(&mut self, observed: &Observation) {
        for metric in PAGE_METRICS {
            let name = metric.name;
            self.head(name, kind_name(metric.kind), metric.help);
            match name {
                INFO => self.sample(name, &[("version", &observed.kvtile)], 1.0),
                CACHE_INFO | BLOCK_BYTES => self.of_caches(name, &observed.caches),
                _ => self.of_tiers(name, &observed.caches),
            }
        }
    }

    fn of_caches(&mut self, name: &str, caches: &[CacheReport]) {
        for cache in caches {
            if name == BLOCK_BYTES
                && let Some(bytes) = cache.block_bytes
            {
                self.sample(name, &[("cache", &cache.name)], bytes as f64);
            }
            if name != CACHE_INFO {
                continue;
            }
            for (group, identity) in cache.identities.iter().enumerate() {
                let labels = [
                    ("cache", cache.name.as_str()),
                    ("group", &group.to_string()),
                    ("model", &identity.model),
                    ("revision", &identity.revision),
                    ("identity", &identity.fingerprint),
                ];
                self.sample(name, &labels, 1.0);
            }
        }
    }

    fn of_tiers(&mut self, name: &str, caches: &[CacheReport]) {
        for cache in caches {
            for tier in &cache.tiers {
                let id = tier.tier.to_string();
                let labels = [("cache", cache.name.as_str()), ("tier", id.as_str())];
                self.of_tier(name, &labels, tier);
            }
        }
    }

    fn of_tier(&mut self, name: &str, labels: &[LabelPair<'_>; 2], tier: &TierReport) {
        let [cache, id] = *labels;
        let health = &tier.health;
        if name == PAUSED {
            for (operation, is_paused) in [
                ("reads", health.reads_paused),
                ("writes", health.writes_paused),
                ("syncs", health.syncs_paused),
            ] {
                let labels = [cache, id, ("operation", operation)];
                self.sample(name, &labels, f64::from(u8::from(is_paused)));
            }
        }
        if name == READ_SECONDS
            && let Some(seconds) = tier.read_seconds
        {
            self.sample(name, labels, seconds);
        }
        let Some(shared) = &tier.shared else {
            return;
        };
        if name == CALLS_MAX {
            self.sample(name, labels, shared.calls_max as f64);
        }
        if name == BREAKER_OPEN {
            for (calls, state) in [("reads", &shared.reads), ("writes", &shared.writes)] {
                let is_open = f64::from(u8::from(state == "open"));
                self.sample(name, &[cache, id, ("calls", calls)], is_open);
            }
        }
    }

    /// The counters of all shared tiers.
    fn shared(&mut self, observed: &Observation) {
        let counters = SharedTierCounters::DESCRIBED.iter();
        for ((counter, _), (name, labels, help)) in counters.zip(shared_metrics()) {
            self.head(&name, "counter", help);
            for (texts, shared) in shared_stores(&observed.caches) {
                let count = shared.counters.get(*counter).copied().unwrap_or(0);
                let texts = texts.iter().map(String::as_str);
                let labels: Vec<LabelPair<'_>> = labels.into_iter().zip(texts).collect();
                self.sample(&name, &labels, count as f64);
            }
        }
    }
}

/// The shared tiers of all caches, with the names of the cache, the tier and the store.
fn shared_stores(
    caches: &[CacheReport],
) -> impl Iterator<Item = ([String; 3], &SharedStoreReport)> {
    let tiers = caches.iter().flat_map(|cache| {
        let tiers = cache.tiers.iter();
        tiers.map(move |tier| (cache, tier))
    });
    tiers.filter_map(|(cache, tier)| {
        let shared = tier.shared.as_ref()?;
        let labels = [
            cache.name.clone(),
            tier.tier.to_string(),
            shared.store.clone(),
        ];
        Some((labels, shared))
    })
}

/// Histograms have their sum and their count only, which is a summary without quantiles.
fn kind_name(kind: MetricKind) -> &'static str {
    match kind {
        MetricKind::Counter => "counter",
        MetricKind::Gauge => "gauge",
        MetricKind::Histogram => "summary",
    }
}
