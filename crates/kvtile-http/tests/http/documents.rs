//! The table of metrics in the documents, and the dashboard for Grafana, name what the server has.

use std::{collections::BTreeSet, path::Path};

use kvtile::tiers::metrics::{CATALOGUE, MetricKind};
use kvtile_http::{PAGE_METRICS, shared_metrics};
use serde_json::Value;

fn document(name: &str) -> String {
    let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs");
    std::fs::read_to_string(docs.join(name)).unwrap()
}

/// The names, with the parts of histograms.
fn names() -> BTreeSet<String> {
    let catalogue = CATALOGUE.iter().flat_map(|metric| match metric.kind {
        MetricKind::Histogram => vec![
            format!("{}_sum", metric.name),
            format!("{}_count", metric.name),
        ],
        _ => vec![metric.name.to_owned()],
    });
    let page = PAGE_METRICS.iter().map(|metric| metric.name.to_owned());
    let shared = shared_metrics().into_iter().map(|(name, _, _)| name);
    catalogue.chain(page).chain(shared).collect()
}

#[test]
fn the_table_of_metrics_is_that_of_the_code() {
    let row = |name: &str, labels: &[&str], help: &str| {
        let labels: Vec<String> = labels.iter().map(|label| format!("`{label}`")).collect();
        format!("| `{name}` | {} | {help} |\n", labels.join(", "))
    };
    let mut table = String::new();
    for metric in CATALOGUE {
        let labels: Vec<&str> = ["cache"].iter().chain(metric.labels).copied().collect();
        table.push_str(&row(metric.name, &labels, metric.help));
    }
    for (name, labels, help) in shared_metrics() {
        table.push_str(&row(&name, &labels, help));
    }
    for metric in PAGE_METRICS {
        table.push_str(&row(metric.name, metric.labels, metric.help));
    }
    let page = document("observing.md");
    assert!(
        page.contains(&table),
        "docs/observing.md needs these rows:\n{table}"
    );
    let rows = page.lines().filter(|line| line.starts_with("| `kvtile_"));
    assert_eq!(rows.count(), table.lines().count());
}

/// The words of an expression of PromQL that begin as a metric.
fn metrics_of(expression: &str) -> Vec<&str> {
    let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let words = expression.split(|c: char| !is_name(c));
    words.filter(|word| word.starts_with("kvtile_")).collect()
}

fn expressions(value: &Value, found: &mut Vec<String>) {
    match value {
        Value::Object(fields) => {
            for (name, value) in fields {
                match (name.as_str(), value) {
                    ("expr" | "definition", Value::String(text)) => {
                        found.push(text.clone());
                    }
                    _ => expressions(value, found),
                }
            }
        }
        Value::Array(values) => values.iter().for_each(|value| expressions(value, found)),
        _ => {}
    }
}

#[test]
fn the_dashboard_asks_for_metrics_that_the_server_has() {
    let dashboard: Value = serde_json::from_str(&document("grafana.json")).unwrap();
    let mut found = Vec::new();
    expressions(&dashboard, &mut found);
    let names = names();
    let mut used = BTreeSet::new();
    for expression in &found {
        let metrics = metrics_of(expression);
        assert!(!metrics.is_empty(), "{expression}");
        for metric in metrics {
            assert!(names.contains(metric), "{metric} in {expression}");
            used.insert(metric);
        }
        let open = expression.matches(['(', '{', '[']).count();
        assert_eq!(
            open,
            expression.matches([')', '}', ']']).count(),
            "{expression}"
        );
    }
    assert!(used.len() >= 25, "{} metrics", used.len());
    let panels = dashboard["panels"].as_array().unwrap();
    let mut places = BTreeSet::new();
    for panel in panels {
        let place = &panel["gridPos"];
        let place = ["x", "y", "w", "h"].map(|name| place[name].as_u64().unwrap());
        assert!(place[0] + place[2] <= 24, "{panel}");
        assert!(places.insert((place[0], place[1])), "{panel}");
        assert!(
            panel["title"]
                .as_str()
                .is_some_and(|title| !title.is_empty())
        );
    }
}
