//! The settings of a cache as keywords.

use std::{path::PathBuf, time::Duration};

use kvtile::{
    blocks::{
        policy::PolicyKind,
        pool::{TenantId, TenantQuota},
    },
    identity::Identity,
    layout::{LayoutError, Word},
    tiers::cache::{CacheSettings, DiskSettings, TierWrites},
};
use pyo3::{
    prelude::*,
    types::{PyBool, PyDict, PyInt, PyString},
};

use crate::{
    arguments::{
        ArgumentRefusal, flag, keywords,
        number::whole,
        object::mapping,
        text,
        time::{self, real},
        wrong_type,
    },
    error::{
        CallFailure,
        python::{ArgumentError, SettingsError},
        raise,
    },
    shared::{PythonStore, SharedKeywords, SharedOpening, SharedSource},
};

/// The keywords of the disk tier, which may come in any order.
#[derive(Default)]
pub(crate) struct DiskKeywords {
    pub(crate) folder: Option<PathBuf>,
    pub(crate) bytes: Option<u64>,
    pub(crate) writes: Option<TierWrites>,
    pub(crate) policy: Option<PolicyKind>,
    pub(crate) close_within: Option<Duration>,
    pub(crate) answer_within: Option<Duration>,
}

/// Builds settings from keywords. Unknown keywords are refused.
pub(super) fn read(
    identity: Identity,
    keywords: Option<&Bound<'_, PyDict>>,
) -> PyResult<(CacheSettings, Option<SharedOpening>)> {
    let mut settings = CacheSettings::new(identity);
    let mut disk = DiskKeywords::default();
    let mut shared = SharedKeywords::default();
    for (name, value) in keywords.into_iter().flatten() {
        let name = text::read("the name of a setting", &name)?;
        if value.is_none() {
            check_name(&name)?;
            continue;
        }
        match &*name {
            "host_bytes" => settings.host_bytes = number(&name, &value)?,
            "prefault" => settings.prefault = flag::read(&name, &value)?,
            "disk" => disk.folder = Some(folder_of(&value)?),
            "disk_bytes" => disk.bytes = Some(number(&name, &value)?),
            "disk_writes" => disk.writes = Some(writes_of(&value)?),
            "close_within" => disk.close_within = time::close_within(&value)?,
            "answer_within" => disk.answer_within = time::answer_within(&value)?,
            "disk_policy" => disk.policy = Some(policy_of(&name, &value)?),
            name if name.starts_with("shared") && NAMES.contains(&name) => {
                read_shared(&mut shared, name, &value)?;
            }
            "policy" => settings.policy = policy_of(&name, &value)?,
            "storage_word" => settings.storage_word = Some(word_of(&value)?),
            "quotas" => settings.quotas = quotas_of(&value)?,
            "workers" => settings.workers = number(&name, &value)?,
            "queue_capacity" => settings.queue_capacity = number(&name, &value)?,
            "recompute_tokens_per_second" => {
                settings.recompute_tokens_per_second = Some(rate_of(&name, &value)?);
            }
            "event_capacity" => settings.event_capacity = number(&name, &value)?,
            _ => return Err(check_name(&name).err().unwrap_or_else(|| unknown(&name))),
        }
    }
    settings.disk = disk.settings()?;
    Ok((settings, shared.opening()?))
}

/// All keywords.
const NAMES: [&str; 20] = [
    "host_bytes",
    "prefault",
    "disk",
    "disk_bytes",
    "disk_writes",
    "disk_policy",
    "close_within",
    "answer_within",
    "shared",
    "shared_lifetime",
    "shared_bundle_blocks",
    "shared_staging_bytes",
    "shared_within",
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
    ArgumentError::new_err(format!(
        "a cache has no setting {name:?}{}; it has {}",
        keywords::meant(name, &NAMES),
        NAMES.join(", ")
    ))
}

impl DiskKeywords {
    /// The settings of the disk tier, if there is one.
    pub(crate) fn settings(self) -> PyResult<Option<DiskSettings>> {
        let says_nothing = self.says_nothing();
        match (self.folder, self.bytes) {
            (Some(folder), Some(bytes)) => {
                let mut disk = DiskSettings::new(folder, bytes);
                disk.writes = self.writes.unwrap_or_default();
                disk.policy = self.policy.unwrap_or_default();
                disk.close_within = self.close_within.unwrap_or(disk.close_within);
                disk.answer_within = self.answer_within.unwrap_or(disk.answer_within);
                Ok(Some(disk))
            }
            (None, None) if says_nothing => Ok(None),
            (Some(_), None) => Err(SettingsError::new_err(
                "a disk tier needs disk_bytes, the limit for the total size of its files",
            )),
            (None, _) => Err(SettingsError::new_err(
                "disk_bytes, disk_writes, disk_policy, close_within and answer_within have no effect without disk, the folder",
            )),
        }
    }

    fn says_nothing(&self) -> bool {
        let has_times = self.close_within.is_some() || self.answer_within.is_some();
        self.writes.is_none() && self.policy.is_none() && !has_times
    }
}

/// An integer setting. The library itself checks narrower limits.
pub(crate) fn number<T: TryFrom<i128>>(name: &str, value: &Bound<'_, PyAny>) -> PyResult<T> {
    whole(
        name,
        value,
        (0, i128::from(i64::MAX)),
        ArgumentRefusal::Setting,
    )
}

/// The path of a folder.
pub(crate) fn folder_of(value: &Bound<'_, PyAny>) -> PyResult<PathBuf> {
    let folder = value.extract::<PathBuf>();
    folder.map_err(|_| wrong_type("disk", "the path of a folder", value))
}

/// Reads one keyword of the shared tier, which begins with `shared`.
pub(crate) fn read_shared(
    shared: &mut SharedKeywords,
    name: &str,
    value: &Bound<'_, PyAny>,
) -> PyResult<()> {
    match name {
        "shared" => shared.store = Some(source_of(value)?),
        "shared_lifetime" => shared.lifetime = time::shared_lifetime(value)?,
        "shared_bundle_blocks" => shared.bundle_blocks = Some(number(name, value)?),
        "shared_staging_bytes" => shared.staging_bytes = Some(number(name, value)?),
        _ => shared.within = time::shared_within(value)?,
    }
    Ok(())
}

/// The value of the keyword `shared`: text, a path, or a `kvtile.SharedTier`.
fn source_of(value: &Bound<'_, PyAny>) -> PyResult<SharedSource> {
    if value.is_instance_of::<PyString>() {
        return Ok(SharedSource::Url(text::read("shared", value)?.into_owned()));
    }
    if let Ok(path) = value.extract::<PathBuf>() {
        let path = path.into_os_string().into_string();
        let path = path.map_err(|_| wrong_type("shared", "a path that is text", value))?;
        return Ok(SharedSource::Url(path));
    }
    match PythonStore::of(value)? {
        Some(store) => Ok(SharedSource::Object(store)),
        None => {
            let wanted = "a URL, the path of a folder, or a kvtile.SharedTier";
            Err(wrong_type("shared", wanted, value))
        }
    }
}

fn rate_of(name: &str, value: &Bound<'_, PyAny>) -> PyResult<f64> {
    let rate = real(name, "a number of tokens per second", value)?;
    rate.ok_or_else(|| SettingsError::new_err(format!("{name} is larger than any number")))
}

fn writes_of(value: &Bound<'_, PyAny>) -> PyResult<TierWrites> {
    let wanted = "\"on_eviction\", \"at_once\" or a number of uses";
    if value.is_instance_of::<PyString>() {
        return match &*text::read("disk_writes", value)? {
            "on_eviction" => Ok(TierWrites::OnEviction),
            "at_once" => Ok(TierWrites::AtOnce),
            other => Err(SettingsError::new_err(format!(
                "disk_writes is {wanted}, not {other:?}"
            ))),
        };
    }
    if value.is_instance_of::<PyBool>() || !value.is_instance_of::<PyInt>() {
        return Err(wrong_type("disk_writes", wanted, value));
    }
    let limits = (1, i128::from(u32::MAX));
    whole("disk_writes", value, limits, ArgumentRefusal::Setting).map(TierWrites::AfterUses)
}

/// An eviction policy by its name.
pub(crate) fn policy_of(name: &str, value: &Bound<'_, PyAny>) -> PyResult<PolicyKind> {
    let policy = text::read(name, value)?.parse::<PolicyKind>();
    policy.map_err(|error| SettingsError::new_err(error.to_string()))
}

/// A layout word.
pub(crate) fn word_of(value: &Bound<'_, PyAny>) -> PyResult<Word> {
    word_of_text(value.py(), &text::read("storage_word", value)?)
}

/// A layout word.
pub(crate) fn word_of_text(py: Python<'_>, text: &str) -> PyResult<Word> {
    let word = Word::parse(text);
    word.map_err(|error| raise(py, CallFailure::from(LayoutError::from(error))))
}

fn quotas_of(value: &Bound<'_, PyAny>) -> PyResult<Vec<TenantQuota>> {
    let Some(quotas) = mapping("quotas", value)? else {
        return Ok(Vec::new());
    };
    let quota = |(tenant, blocks): (Bound<'_, PyAny>, Bound<'_, PyAny>)| {
        let limits = (0, i128::from(u32::MAX));
        let tenant = whole(
            "a tenant of quotas",
            &tenant,
            limits,
            ArgumentRefusal::Setting,
        )?;
        Ok(TenantQuota {
            tenant: TenantId(tenant),
            blocks: number(&format!("quotas[{tenant}]"), &blocks)?,
        })
    };
    quotas.iter().map(quota).collect()
}
