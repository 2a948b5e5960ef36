//! The settings of a cache as keywords.

use std::{path::PathBuf, sync::Arc, time::Duration};

use kvtile::{
    blocks::{
        policy::{EvictionHints, PolicyKind},
        pool::{TenantId, TenantQuota},
    },
    identity::Identity,
    layout::{LayoutError, Word},
    tiers::{
        TierError,
        cache::{Cache, CacheSettings, ConnectSettings, DiskSettings, Priority, TierWrites},
    },
    transfer::LayoutHandle,
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
        python::{ArgumentError, RequestError, SettingsError},
        raise,
    },
    shared::{PythonStore, SharedKeywords, SharedOpening, SharedSource},
    transfer::manager,
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

/// Where the host memory and the tiers of a cache are.
pub(super) enum CacheOpening {
    /// In this process.
    Here(Box<CacheSettings>, Option<Box<SharedOpening>>),
    /// In the daemon at a socket.
    There(PathBuf, Box<ConnectSettings>),
}

impl CacheOpening {
    /// Opens the cache, or connects it.
    pub(super) fn open(self, engine: LayoutHandle) -> Result<Cache, TierError> {
        let manager = Arc::clone(manager());
        let (settings, shared) = match self {
            CacheOpening::There(socket, settings) => {
                return Cache::connect_registered(socket, *settings, manager, engine);
            }
            CacheOpening::Here(settings, shared) => (settings, shared),
        };
        let tiers = match shared {
            None => Vec::new(),
            Some(shared) => shared.open_with_parts(&settings, manager.layout(engine)?.shape())?,
        };
        let mut builder = Cache::builder(*settings);
        for (tier, opener) in tiers {
            builder = builder.tier(tier, opener);
        }
        builder.open_registered(manager, engine)
    }
}

/// The keywords of a connection.
#[derive(Default)]
pub(crate) struct ConnectKeywords {
    pub(crate) socket: Option<PathBuf>,
    staging_bytes: Option<u64>,
    within: Option<Duration>,
}

impl ConnectKeywords {
    /// Reads one of them; false for another keyword.
    pub(crate) fn read(&mut self, name: &str, value: &Bound<'_, PyAny>) -> PyResult<bool> {
        match name {
            "connect" => self.socket = Some(path_of(name, "the path of a socket", value)?),
            "connect_staging_bytes" => self.staging_bytes = Some(number(name, value)?),
            "connect_within" => self.within = time::connect_within(value)?,
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// Gives a connection its settings.
    pub(crate) fn apply<T>(&self, connect: &mut ConnectSettings<T>) {
        connect.staging_bytes = self.staging_bytes.unwrap_or(connect.staging_bytes);
        connect.answer_within = self.within.unwrap_or(connect.answer_within);
    }

    /// The settings of the connection, with what it has in common with a cache in this process.
    fn opening(self, socket: PathBuf, settings: CacheSettings) -> CacheOpening {
        let mut connect = ConnectSettings::new(settings.identity);
        connect.workers = settings.workers;
        connect.queue_capacity = settings.queue_capacity;
        connect.recompute_tokens_per_second = settings.recompute_tokens_per_second;
        self.apply(&mut connect);
        CacheOpening::There(socket, Box::new(connect))
    }

    /// Refuses settings of a connection without a socket.
    pub(crate) fn check_none(&self) -> PyResult<()> {
        match self.staging_bytes.is_none() && self.within.is_none() {
            true => Ok(()),
            false => Err(SettingsError::new_err(
                "connect_staging_bytes and connect_within have no effect without connect, the daemon's socket",
            )),
        }
    }
}

/// The keywords that a connection can have.
pub(crate) const CONNECTED: &[&str] = &[
    "connect",
    "connect_staging_bytes",
    "connect_within",
    "workers",
    "queue_capacity",
    "recompute_tokens_per_second",
];

/// Refuses a keyword whose setting the daemon has. `own` are those of a connection.
pub(crate) fn check_connected(names: &[String], own: &[&str]) -> PyResult<()> {
    match names.iter().find(|name| !own.contains(&name.as_str())) {
        None => Ok(()),
        Some(name) => Err(SettingsError::new_err(format!(
            "{name} has no effect with connect: the daemon's settings decide it; a connected cache has {}",
            own.join(", ")
        ))),
    }
}

/// Builds settings from keywords. Unknown keywords are refused.
pub(super) fn read(
    identity: Identity,
    keywords: Option<&Bound<'_, PyDict>>,
) -> PyResult<CacheOpening> {
    let mut settings = CacheSettings::new(identity);
    let mut connect = ConnectKeywords::default();
    let mut given = Vec::new();
    let mut disk = DiskKeywords::default();
    let mut shared = SharedKeywords::default();
    for (name, value) in keywords.into_iter().flatten() {
        let name = text::read("the name of a setting", &name)?;
        if value.is_none() {
            check_name(&name)?;
            continue;
        }
        given.push(name.to_string());
        if connect.read(&name, &value)? {
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
    if let Some(socket) = connect.socket.take() {
        check_connected(&given, CONNECTED)?;
        return Ok(connect.opening(socket, settings));
    }
    connect.check_none()?;
    settings.disk = disk.settings()?;
    Ok(CacheOpening::Here(
        Box::new(settings),
        shared.opening()?.map(Box::new),
    ))
}

/// All keywords.
const NAMES: [&str; 24] = [
    "connect",
    "connect_staging_bytes",
    "connect_within",
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
    "shared_compress",
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

fn path_of(name: &str, wanted: &str, value: &Bound<'_, PyAny>) -> PyResult<PathBuf> {
    let path = value.extract::<PathBuf>();
    path.map_err(|_| wrong_type(name, wanted, value))
}

/// The path of a folder.
pub(crate) fn folder_of(value: &Bound<'_, PyAny>) -> PyResult<PathBuf> {
    path_of("disk", "the path of a folder", value)
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
        "shared_compress" => shared.compress = Some(flag::read(name, value)?),
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

pub(crate) fn rate_of(name: &str, value: &Bound<'_, PyAny>) -> PyResult<f64> {
    let rate = real(name, "a number of tokens per second", value)?;
    rate.ok_or_else(|| SettingsError::new_err(format!("{name} is larger than any number")))
}

/// When blocks are written to the disk.
pub(crate) fn writes_of(value: &Bound<'_, PyAny>) -> PyResult<TierWrites> {
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

/// The hints of a lookup or a store.
pub(crate) fn hints(priority: i8, output_tokens: u32, partial_tail: bool) -> EvictionHints {
    let mut hints = EvictionHints::default();
    hints.priority = priority;
    hints.output_tokens = output_tokens;
    hints.partial_tail = partial_tail;
    hints
}

/// The priority of a name.
pub(crate) fn priority_of(name: &str) -> PyResult<Priority> {
    match name {
        "background" => Ok(Priority::Background),
        "low" => Ok(Priority::Low),
        "normal" => Ok(Priority::Normal),
        "urgent" => Ok(Priority::Urgent),
        other => Err(RequestError::new_err(format!(
            "there is no priority {other:?}; there are background, low, normal and urgent"
        ))),
    }
}
