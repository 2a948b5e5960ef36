//! Statistics of a cache as plain values, with the field names of the library's structures.

use std::sync::{Arc, Weak};

use kvtile::shared::tier::SharedTier;
use kvtile::{
    blocks::{
        events::TierId,
        pool::{PinReport, PoolStats},
    },
    tiers::{cache::Cache, disk::DiskTier, tier::Tier},
};
use kvtile_cli::output::escaped;
use pyo3::{
    prelude::*,
    types::{PyBool, PyDict, PyFloat, PyList, PyString},
};
use serde_json::{Value, json};

use super::PyCache;
use crate::slot::OpenSlot;

impl PyCache {
    /// Its slot, for an observer that does not keep it open.
    pub(crate) fn observed(&self) -> Weak<OpenSlot<Cache>> {
        self.slot.as_ref().map(Arc::downgrade).unwrap_or_default()
    }
}

/// The counters of the cache, with the ratios derived from them.
pub(super) fn of_cache(cache: &Cache) -> Value {
    let stats = cache.stats();
    let mut value = serde_json::to_value(&stats).unwrap_or_default();
    if let Value::Object(fields) = &mut value {
        fields.insert("hit_ratio".to_owned(), json!(stats.hit_ratio()));
        fields.insert(
            "disk_bytes_per_second".to_owned(),
            json!(cache.disk().and_then(DiskTier::bytes_per_second)),
        );
        fields.insert("shared".to_owned(), of_shared(cache.tier(TierId::SHARED)));
    }
    value
}

/// The counters of a shared tier; null without one.
pub(crate) fn of_shared(tier: Option<&Arc<dyn Tier>>) -> Value {
    let tier = tier.and_then(|tier| tier.as_any().downcast_ref::<SharedTier>());
    let Some(tier) = tier else {
        return Value::Null;
    };
    let fields = tier.counters().fields();
    let fields = fields
        .into_iter()
        .map(|(name, count)| (name.to_owned(), json!(count)));
    Value::Object(fields.collect())
}

/// The counters of a pool.
pub(super) fn of_pool(stats: &PoolStats) -> Value {
    json!({
        "blocks": stats.blocks,
        "free": stats.free,
        "cached": stats.cached,
        "lookups": stats.lookups,
        "looked_up_blocks": stats.looked_up_blocks,
        "hit_blocks": stats.hit_blocks,
        "lost_visits": stats.lost_visits,
        "allocations": stats.allocations,
        "allocated_blocks": stats.allocated_blocks,
        "refused_allocations": stats.refused_allocations,
        "registered_blocks": stats.registered_blocks,
        "duplicate_blocks": stats.duplicate_blocks,
        "evicted_for_room": stats.evicted_for_room,
        "evicted_for_quota": stats.evicted_for_quota,
        "evicted_on_request": stats.evicted_on_request,
        "removed_blocks": stats.removed_blocks,
        "cleared_blocks": stats.cleared_blocks,
        "open_claims": stats.open_claims,
        "tenants": stats.tenants.iter().map(|tenant| json!({
            "tenant": tenant.tenant.map(|tenant| tenant.0),
            "used": tenant.used,
            "limit": tenant.limit,
        })).collect::<Vec<Value>>(),
    })
}

/// Overdue pins; times are milliseconds of the cache's clock.
pub(super) fn of_pins(pins: &[PinReport]) -> Value {
    let pin = |pin: &PinReport| {
        json!({
            "owner": pin.owner.0,
            "blocks": pin.blocks,
            "since_milliseconds": pin.since.0,
            "deadline_milliseconds": pin.deadline.0,
        })
    };
    Value::Array(pins.iter().map(pin).collect())
}

/// Converts JSON to Python objects.
pub(crate) fn object(py: Python<'_>, value: &Value) -> PyResult<Py<PyAny>> {
    let object = match value {
        Value::Null => py.None().into_bound(py),
        Value::Bool(flag) => PyBool::new(py, *flag).to_owned().into_any(),
        Value::Number(number) => match (number.as_u64(), number.as_i64()) {
            (Some(number), _) => number.into_pyobject(py)?.into_any(),
            (None, Some(number)) => number.into_pyobject(py)?.into_any(),
            (None, None) => PyFloat::new(py, number.as_f64().unwrap_or(f64::NAN)).into_any(),
        },
        Value::String(text) => PyString::new(py, text).into_any(),
        Value::Array(values) => {
            let values: PyResult<Vec<_>> = values.iter().map(|value| object(py, value)).collect();
            PyList::new(py, values?)?.into_any()
        }
        Value::Object(fields) => {
            let dict = PyDict::new(py);
            for (name, value) in fields {
                dict.set_item(name, object(py, value)?)?;
            }
            dict.into_any()
        }
    };
    Ok(object.unbind())
}

/// `device to host: 2 blocks`.
fn moved(entry: &Value) -> Option<String> {
    let (from, to) = (
        entry.get("source")?.as_str()?,
        entry.get("destination")?.as_str()?,
    );
    let blocks = entry.get("blocks")?.as_u64()?;
    Some(format!("{from} to {to}: {blocks} blocks"))
}

/// The numbers of a cache as a small table for notebooks.
pub(super) fn html(title: &str, value: &Value) -> String {
    let mut rows = String::new();
    for (name, value) in value.as_object().into_iter().flatten() {
        let shown = match value {
            Value::Null => continue,
            Value::Array(entries) => {
                // Moves are one row each. Details of the queues are in stats() only.
                let moved = entries.iter().filter_map(moved);
                let moved: Vec<String> = moved.collect();
                if moved.is_empty() {
                    continue;
                }
                moved.join("; ")
            }
            Value::Object(fields) if fields.is_empty() => continue,
            Value::Object(fields) => {
                let fields = fields.iter().map(|(name, value)| format!("{name} {value}"));
                fields.collect::<Vec<_>>().join(", ")
            }
            Value::Number(number) if number.is_f64() => {
                format!("{:.4}", number.as_f64().unwrap_or_default())
            }
            Value::String(text) => text.clone(),
            other => other.to_string(),
        };
        rows.push_str(&format!(
            "<tr><th style=\"text-align:left\">{}</th><td style=\"text-align:left\">{}</td></tr>",
            escaped(&name.replace('_', " ")),
            escaped(&shown)
        ));
    }
    format!("<table><caption>{}</caption>{rows}</table>", escaped(title))
}
