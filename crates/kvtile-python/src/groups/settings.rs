//! The settings of a cache over groups as arguments: the model, layouts of its groups, keywords.

use std::{path::PathBuf, sync::Arc};

use kvtile::{
    TierError,
    identity::ModelIdentity,
    layout::GroupRule,
    tiers::groups::{CacheGroup, GroupCache, GroupCacheSettings, GroupConnectSettings},
    transfer::LayoutHandle,
};
use pyo3::{prelude::*, types::PyDict};

use super::blocks::GroupLayouts;
use crate::{
    arguments::{flag, keywords, object, text, time},
    cache::settings::{
        CONNECTED, ConnectKeywords, DiskKeywords, check_connected, folder_of, number, policy_of,
        rate_of, read_shared, word_of, writes_of,
    },
    error::{python::ArgumentError, raise},
    layout::PyLayoutShared,
    shared::{SharedKeywords, SharedOpening},
    transfer::manager,
};

/// All keywords.
const NAMES: [&str; 24] = [
    "connect",
    "connect_staging_bytes",
    "connect_within",
    "host_bytes",
    "prefault",
    "shares",
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
    "storage_words",
    "workers",
    "queue_capacity",
    "recompute_tokens_per_second",
    "event_capacity",
];

/// Where the pages of a cache over groups are.
pub(super) enum GroupPlaceOpening {
    /// In this process.
    Here(Box<GroupCacheSettings>, Option<Box<SharedOpening>>),
    /// In the daemon at a socket.
    There(PathBuf, Box<GroupConnectSettings>),
}

impl GroupPlaceOpening {
    /// Opens the cache, or connects it.
    pub(super) fn open(self, engines: &[Option<LayoutHandle>]) -> Result<GroupCache, TierError> {
        let manager = Arc::clone(manager());
        let (settings, shared) = match self {
            GroupPlaceOpening::There(socket, settings) => {
                return GroupCache::connect_registered(socket, *settings, manager, engines);
            }
            GroupPlaceOpening::Here(settings, shared) => (settings, shared),
        };
        let mut builder = GroupCache::builder(*settings);
        if let Some(shared) = shared {
            let (tier, opener) = shared.open()?;
            builder = builder.tier(tier, opener);
        }
        builder.open_registered(manager, engines)
    }
}

/// The settings of a cache over groups, and the layouts of its groups in their order.
pub(super) struct GroupOpening {
    pub(super) place: GroupPlaceOpening,
    pub(super) layouts: Vec<Option<Arc<PyLayoutShared>>>,
}

/// Reads the model, layouts and keywords.
pub(super) fn read(
    model: &ModelIdentity,
    layouts: GroupLayouts,
    keywords: Option<&Bound<'_, PyDict>>,
) -> PyResult<GroupOpening> {
    let mut settings = GroupCacheSettings::of_model(model);
    let mut of_groups = vec![None; settings.groups.len()];
    for (name, layout) in layouts {
        let at = check_group(&settings.groups, "layouts", &name)?;
        if let Some(of_group) = of_groups.get_mut(at) {
            *of_group = Some(layout);
        }
    }
    let mut disk = DiskKeywords::default();
    let mut shared = SharedKeywords::default();
    let mut connect = ConnectKeywords::default();
    let mut given = Vec::new();
    for (name, value) in keywords.into_iter().flatten() {
        let name = text::read("the name of a setting", &name)?;
        if !NAMES.contains(&&*name) {
            return Err(ArgumentError::new_err(format!(
                "a cache over groups has no setting {name:?}{}; it has {}",
                keywords::meant(&name, &NAMES),
                NAMES.join(", ")
            )));
        }
        if value.is_none() {
            continue;
        }
        given.push(name.to_string());
        if connect.read(&name, &value)? {
            continue;
        }
        if name.starts_with("shared") {
            read_shared(&mut shared, &name, &value)?;
        } else {
            set(&mut settings, &mut disk, (&name, &value))?;
        }
    }
    let place = match connect.socket.take() {
        Some(socket) => {
            let own = [CONNECTED, &["shares"]].concat();
            check_connected(&given, &own)?;
            let connect = connection(settings, &connect)?;
            GroupPlaceOpening::There(socket, Box::new(connect))
        }
        None => {
            connect.check_none()?;
            settings.disk = disk.settings()?;
            let shared = shared.opening()?.map(Box::new);
            GroupPlaceOpening::Here(Box::new(settings), shared)
        }
    };
    Ok(GroupOpening {
        place,
        layouts: of_groups,
    })
}

/// The settings of a connection, with what it has in common with a cache in this process.
fn connection(
    settings: GroupCacheSettings,
    keywords: &ConnectKeywords,
) -> PyResult<GroupConnectSettings> {
    let connect = GroupConnectSettings::of_groups(settings.groups);
    let mut connect = Python::attach(|py| connect.map_err(|error| raise(py, error)))?;
    connect.identity.chain = settings.chain;
    connect.workers = settings.workers;
    connect.queue_capacity = settings.queue_capacity;
    connect.recompute_tokens_per_second = settings.recompute_tokens_per_second;
    keywords.apply(&mut connect);
    Ok(connect)
}

fn set(
    settings: &mut GroupCacheSettings,
    disk: &mut DiskKeywords,
    (name, value): (&str, &Bound<'_, PyAny>),
) -> PyResult<()> {
    match name {
        "host_bytes" => settings.host_bytes = number(name, value)?,
        "prefault" => settings.prefault = flag::read(name, value)?,
        "shares" => {
            for (group, share) in object::mapping("shares", value)?.into_iter().flatten() {
                let group = text::read("the name of a group", &group)?;
                let at = check_group(&settings.groups, "shares", &group)?;
                let name = format!("shares[{group:?}]");
                let share = time::real(&name, "a number", &share)?;
                if let Some(of) = settings.groups.get_mut(at) {
                    of.share = share;
                }
            }
        }
        "storage_words" => {
            for (group, word) in object::mapping("storage_words", value)?
                .into_iter()
                .flatten()
            {
                let group = text::read("the name of a group", &group)?;
                let at = check_group(&settings.groups, "storage_words", &group)?;
                let word = word_of(&word)?;
                if let Some(of) = settings.groups.get_mut(at) {
                    of.storage_word = Some(word);
                }
            }
        }
        "disk" => disk.folder = Some(folder_of(value)?),
        "disk_bytes" => disk.bytes = Some(number(name, value)?),
        "disk_writes" => disk.writes = Some(writes_of(value)?),
        "disk_policy" => disk.policy = Some(policy_of(name, value)?),
        "close_within" => disk.close_within = time::close_within(value)?,
        "answer_within" => disk.answer_within = time::answer_within(value)?,
        "policy" => settings.policy = policy_of(name, value)?,
        "workers" => settings.workers = number(name, value)?,
        "queue_capacity" => settings.queue_capacity = number(name, value)?,
        "recompute_tokens_per_second" => {
            settings.recompute_tokens_per_second = Some(rate_of(name, value)?);
        }
        _ => settings.event_capacity = number(name, value)?,
    }
    Ok(())
}

/// The place of a group in a list.
fn check_group(groups: &[CacheGroup], argument: &str, name: &str) -> PyResult<usize> {
    let at = groups.iter().position(|group| group.name == name);
    at.ok_or_else(|| {
        let names: Vec<&str> = groups.iter().map(|group| group.name.as_str()).collect();
        ArgumentError::new_err(format!(
            "{argument} has the group {name:?}, and the groups are {}",
            names.join(", ")
        ))
    })
}

/// The text of a rule.
pub(super) fn text_of(rule: GroupRule) -> String {
    match rule {
        GroupRule::Full => "full".to_owned(),
        GroupRule::Window { tokens } => format!("window:{tokens}"),
        GroupRule::Chunk { tokens } => format!("chunk:{tokens}"),
        GroupRule::Stop => "stop".to_owned(),
    }
}
