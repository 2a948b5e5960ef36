//! What reaches a recorder, and what the catalogue guarantees.

use super::label::MetricLabel;
use super::*;
use kvtile_blocks::events::TierId;
use metrics_exporter_prometheus::PrometheusBuilder;
use std::collections::{BTreeMap, BTreeSet};

/// The Prometheus page after `count` has run.
fn page(count: impl FnOnce(&CacheMetrics)) -> String {
    let recorder = PrometheusBuilder::new().build_recorder();
    let handle = recorder.handle();
    metrics::with_local_recorder(&recorder, || count(&CacheMetrics::new(&TIERS)));
    handle.render()
}

fn everything(metrics: &CacheMetrics) {
    metrics.looked_up(
        &[(TierId::HOST, 3), (TierId::DISK, 2)],
        &[(MissReason::Absent, 5)],
    );
    metrics.lost(MissReason::Checksum, 1);
    metrics.moved(TierId::DISK, TierId::HOST, 2, 4096, 1_000_000);
    metrics.move_failed(TierId::HOST, TierId::DISK);
    metrics.queue_capacity(Queue::Load, 64);
    metrics.queued(Queue::Load);
    metrics.queued(Queue::Load);
    metrics.unqueued(Queue::Load);
    metrics.refused(Queue::Load);
    metrics.pinned(TierId::HOST, 7);
    metrics.unpinned(TierId::HOST, 3);
    metrics.overdue(TierId::HOST, 1);
    metrics.stored(TierId::HOST, 9);
    metrics.filled(TierId::HOST, 8, 16);
    metrics.evicted(TierId::HOST, EvictionReason::Capacity, 1);
    metrics.checked(TierId::DISK, 6, 1);
}

const TIERS: [TierId; 3] = [TierId::DEVICE, TierId::HOST, TierId::DISK];

fn check_labels<L: MetricLabel + std::fmt::Debug + serde::Serialize>() {
    let names: BTreeSet<&str> = L::ALL.iter().map(|label| label.name()).collect();
    assert_eq!(names.len(), L::ALL.len());
    for label in L::ALL {
        let json = serde_json::to_string(&label).unwrap();
        assert_eq!(json, format!("\"{}\"", label.name()));
    }
}

#[test]
fn labels_are_called_the_same_in_metrics_and_in_json() {
    check_labels::<MissReason>();
    check_labels::<EvictionReason>();
    check_labels::<Queue>();
}

/// Pitfall 40: a metric without a denominator, or a direction label with two meanings.
#[test]
fn pitfall_40_every_part_has_a_denominator_and_no_label_is_a_direction() {
    let by_name: BTreeMap<&str, &Metric> = CATALOGUE.iter().map(|m| (m.name, m)).collect();
    assert_eq!(by_name.len(), CATALOGUE.len(), "a name occurs twice");
    for metric in CATALOGUE {
        let total = metric.name.ends_with("_total");
        assert_eq!(total, metric.kind == MetricKind::Counter, "{}", metric.name);
        let part = [
            "hit", "miss", "fail", "refused", "overdue", "evicted", "lost", "depth",
        ];
        if part.iter().any(|word| metric.name.contains(word)) {
            assert!(metric.denominator.is_some(), "{}", metric.name);
        }
        if let Some(denominator) = metric.denominator {
            assert!(by_name.contains_key(denominator), "{}", metric.name);
        }
        for label in metric.labels {
            let known = ["tier", "reason", "queue", "source", "destination"];
            assert!(known.contains(label), "{}: {label}", metric.name);
        }
        let source = metric.labels.contains(&"source");
        let destination = metric.labels.contains(&"destination");
        assert_eq!(
            source, destination,
            "{} has one of source and destination",
            metric.name
        );
    }
}

/// Pitfall 40: transfers from disk to host and from host to disk are separate series.
#[test]
fn pitfall_40_bytes_are_counted_from_their_source_to_their_destination() {
    let page = page(|metrics| {
        metrics.moved(TierId::DISK, TierId::HOST, 2, 4096, 1_000_000);
        metrics.moved(TierId::HOST, TierId::DISK, 1, 512, 1);
        let stats = metrics.stats();
        let bytes: Vec<_> = stats
            .moves
            .iter()
            .map(|m| (m.source, m.destination, m.bytes))
            .collect();
        assert_eq!(
            bytes,
            [
                (TierId::HOST, TierId::DISK, 512),
                (TierId::DISK, TierId::HOST, 4096)
            ]
        );
        let rate = stats.moves[1].bytes_per_second().unwrap();
        assert!((rate - 4_096_000.0).abs() < 1.0, "{rate}");
    });
    for line in [
        r#"kvtile_moved_bytes_total{source="disk",destination="host"} 4096"#,
        r#"kvtile_moved_bytes_total{source="host",destination="disk"} 512"#,
    ] {
        assert!(page.contains(line), "{page}");
    }
}

/// The recorder gets exactly the metrics of the catalogue, with the same labels and help texts.
#[test]
fn the_recorder_gets_exactly_the_metrics_of_the_catalogue() {
    let page = page(everything);
    for metric in CATALOGUE {
        assert!(
            page.contains(&format!("# HELP {} {}", metric.name, metric.help)),
            "{page}"
        );
    }
    let mut seen = BTreeSet::new();
    for line in page
        .lines()
        .filter(|line| !line.starts_with('#') && !line.is_empty())
    {
        let (series, _) = line.rsplit_once(' ').unwrap();
        let (name, labels) = series.split_once('{').unwrap_or((series, ""));
        let known = |metric: &&Metric| {
            let summary = metric.kind == MetricKind::Histogram;
            name == metric.name
                || summary
                    && ["_sum", "_count"]
                        .iter()
                        .any(|end| name == format!("{}{end}", metric.name))
        };
        let metric = CATALOGUE
            .iter()
            .find(known)
            .unwrap_or_else(|| panic!("{line}"));
        let labels: BTreeSet<&str> = labels
            .trim_end_matches('}')
            .split(',')
            .filter_map(|label| label.split_once('=').map(|(label, _)| label))
            .filter(|&label| label != "quantile")
            .collect();
        assert_eq!(labels, metric.labels.iter().copied().collect(), "{line}");
        seen.insert(metric.name);
    }
    assert_eq!(seen.len(), CATALOGUE.len(), "of {seen:?}");
}

#[test]
fn stats_are_the_numbers_that_were_counted() {
    let metrics = CacheMetrics::new(&TIERS);
    assert_eq!(metrics.stats(), CacheStats::default());
    assert_eq!(metrics.stats().hit_ratio(), None);
    everything(&metrics);
    let stats = metrics.stats();
    assert_eq!(stats.lookup_blocks, 10);
    let parts: u64 = stats.hits.values().chain(stats.misses.values()).sum();
    assert_eq!(stats.lookup_blocks, parts);
    assert_eq!(stats.hit_ratio(), Some(0.5));
    let queue = QueueStats {
        queue: Queue::Load,
        depth: 1,
        capacity: 64,
        offered: 3,
        refused: 1,
    };
    assert_eq!(stats.queues, [queue]);
    assert_eq!(stats.pinned, BTreeMap::from([(TierId::HOST, 4)]));
    let failed: Vec<u64> = stats.moves.iter().map(|route| route.failures).collect();
    assert_eq!(failed, [1, 0]);
    let text = serde_json::to_string(&stats).unwrap();
    assert_eq!(serde_json::from_str::<CacheStats>(&text).unwrap(), stats);
}

/// Pitfall 39: pins that are never released. The gauge of current pins returns to zero when they
/// are, and overdue pins have their own counter.
#[test]
fn pitfall_39_pins_that_are_not_released_stay_visible() {
    let metrics = CacheMetrics::new(&TIERS);
    metrics.pinned(TierId::HOST, 5);
    metrics.unpinned(TierId::HOST, 4);
    metrics.overdue(TierId::HOST, 1);
    let stats = metrics.stats();
    let one = BTreeMap::from([(TierId::HOST, 1)]);
    assert_eq!((stats.pinned, stats.pins_overdue), (one.clone(), one));
    metrics.unpinned(TierId::HOST, 1);
    assert_eq!(metrics.stats().pinned, BTreeMap::new());
}

#[test]
#[should_panic(expected = "2 taken from a gauge of 1")]
fn more_pins_released_than_taken_is_an_error_of_the_cache() {
    let metrics = CacheMetrics::new(&TIERS);
    metrics.pinned(TierId::HOST, 1);
    metrics.unpinned(TierId::HOST, 2);
}

#[test]
fn samples_have_every_metric_of_the_catalogue_with_all_its_labels() {
    let metrics = CacheMetrics::new(&TIERS);
    everything(&metrics);
    let samples = metrics.stats().samples(&TIERS);
    for metric in CATALOGUE {
        let of: Vec<&MetricSample> = samples
            .iter()
            .filter(|sample| sample.metric.name == metric.name)
            .collect();
        assert!(!of.is_empty(), "{}", metric.name);
        for sample in of {
            assert_eq!(sample.labels.len(), metric.labels.len(), "{sample:?}");
            let is_part = metric.kind == MetricKind::Histogram;
            assert_eq!(is_part, !sample.suffix.is_empty(), "{sample:?}");
        }
    }
    let value = |name: &str, labels: &[&str]| {
        let mut found = samples
            .iter()
            .filter(|sample| sample.metric.name == name && sample.labels == labels);
        let value = found.next().map(|sample| sample.value);
        assert!(found.next().is_none(), "{name} {labels:?} occurs twice");
        value
    };
    assert_eq!(value(catalogue::HITS, &["host"]), Some(3.0));
    assert_eq!(value(catalogue::MISSES, &["absent"]), Some(5.0));
    assert_eq!(value(catalogue::MISSES, &["late"]), Some(0.0));
    assert_eq!(
        value(catalogue::MOVED_BYTES, &["disk", "host"]),
        Some(4096.0)
    );
}
