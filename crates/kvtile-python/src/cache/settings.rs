//! The settings of a cache as keywords.

use std::path::PathBuf;

use kvtile::{
    blocks::{
        policy::PolicyKind,
        pool::{Quota, TenantId},
    },
    identity::LogicalIdentity,
    layout::{LayoutError, Word},
    tiers::cache::{CacheSettings, DiskSettings, DiskWrites},
};
use pyo3::{exceptions::PyTypeError, prelude::*, types::PyDict};

use crate::error::{Failure, python::SettingsError, raise};

/// What is said of the disk tier, which may be said in any order.
#[derive(Default)]
struct Disk {
    folder: Option<PathBuf>,
    bytes: Option<u64>,
    writes: Option<DiskWrites>,
    policy: Option<PolicyKind>,
}

/// The settings that keywords say; others than these are refused.
pub(super) fn read(
    identity: LogicalIdentity,
    keywords: Option<&Bound<'_, PyDict>>,
) -> PyResult<CacheSettings> {
    let mut settings = CacheSettings::new(identity);
    let mut disk = Disk::default();
    for (name, value) in keywords.into_iter().flatten() {
        let name: String = name.extract()?;
        if value.is_none() {
            check_name(&name)?;
            continue;
        }
        match name.as_str() {
            "host_bytes" => settings.host_bytes = value.extract()?,
            "prefault" => settings.prefault = value.extract()?,
            "disk" => disk.folder = Some(value.extract()?),
            "disk_bytes" => disk.bytes = Some(value.extract()?),
            "disk_writes" => disk.writes = Some(writes_of(&value)?),
            "disk_policy" => disk.policy = Some(policy_of(&value)?),
            "policy" => settings.policy = policy_of(&value)?,
            "storage_word" => settings.storage_word = Some(word_of(&value)?),
            "quotas" => settings.quotas = quotas_of(&value.cast_into::<PyDict>()?)?,
            "workers" => settings.workers = value.extract()?,
            "queue_capacity" => settings.queue_capacity = value.extract()?,
            "recompute_tokens_per_second" => {
                settings.recompute_tokens_per_second = Some(value.extract()?);
            }
            "event_capacity" => settings.event_capacity = value.extract()?,
            _ => return Err(check_name(&name).err().unwrap_or_else(|| unknown(&name))),
        }
    }
    settings.disk = disk.settings()?;
    Ok(settings)
}

/// All keywords.
const NAMES: [&str; 13] = [
    "host_bytes",
    "prefault",
    "disk",
    "disk_bytes",
    "disk_writes",
    "disk_policy",
    "policy",
    "storage_word",
    "quotas",
    "workers",
    "queue_capacity",
    "recompute_tokens_per_second",
    "event_capacity",
];

fn check_name(name: &str) -> PyResult<()> {
    if NAMES.contains(&name) {
        return Ok(());
    }
    Err(unknown(name))
}

fn unknown(name: &str) -> PyErr {
    PyTypeError::new_err(format!(
        "a cache has no setting {name:?}; it has {}",
        NAMES.join(", ")
    ))
}

impl Disk {
    fn settings(self) -> PyResult<Option<DiskSettings>> {
        match (self.folder, self.bytes) {
            (Some(folder), Some(bytes)) => {
                let mut disk = DiskSettings::new(folder, bytes);
                disk.writes = self.writes.unwrap_or_default();
                disk.policy = self.policy.unwrap_or_default();
                Ok(Some(disk))
            }
            (None, None) if self.writes.is_none() && self.policy.is_none() => Ok(None),
            (Some(_), None) => Err(SettingsError::new_err(
                "a disk tier needs disk_bytes: what all its files take at most",
            )),
            (None, _) => Err(SettingsError::new_err(
                "disk_bytes, disk_writes and disk_policy say nothing without disk, the folder",
            )),
        }
    }
}

fn writes_of(value: &Bound<'_, PyAny>) -> PyResult<DiskWrites> {
    if let Ok(uses) = value.extract::<u32>() {
        return Ok(DiskWrites::AfterUses(uses));
    }
    match value.extract::<String>()?.as_str() {
        "on_eviction" => Ok(DiskWrites::OnEviction),
        "at_once" => Ok(DiskWrites::AtOnce),
        other => Err(SettingsError::new_err(format!(
            "disk_writes is \"on_eviction\", \"at_once\" or a number of uses, not {other:?}"
        ))),
    }
}

fn policy_of(value: &Bound<'_, PyAny>) -> PyResult<PolicyKind> {
    let policy = value.extract::<String>()?.parse::<PolicyKind>();
    policy.map_err(|error| SettingsError::new_err(error.to_string()))
}

fn word_of(value: &Bound<'_, PyAny>) -> PyResult<Word> {
    let word = Word::parse(&value.extract::<String>()?);
    word.map_err(|error| raise(value.py(), Failure::from(LayoutError::from(error))))
}

fn quotas_of(quotas: &Bound<'_, PyDict>) -> PyResult<Vec<Quota>> {
    let quota = |(tenant, blocks): (Bound<'_, PyAny>, Bound<'_, PyAny>)| {
        Ok(Quota {
            tenant: TenantId(tenant.extract()?),
            blocks: blocks.extract()?,
        })
    };
    quotas.iter().map(quota).collect()
}
