//! The settings of a cache over groups as arguments: groups with their rules, layouts, keywords.

use std::{num::NonZeroU64, sync::Arc};

use kvtile::{
    layout::GroupRule,
    tiers::groups::{CacheGroup, GroupCacheSettings},
};
use pyo3::{
    prelude::*,
    types::{PyDict, PyTuple},
};

use crate::{
    arguments::{ArgumentRefusal, flag, keywords, object, text, time, wrong_type},
    cache::settings::{DiskKeywords, folder_of, number, policy_of, word_of, writes_of},
    error::python::ArgumentError,
    identity::PyIdentity,
    layout::{PyLayout, PyLayoutShared},
};

/// All keywords.
const NAMES: [&str; 14] = [
    "host_bytes",
    "prefault",
    "shares",
    "disk",
    "disk_bytes",
    "disk_writes",
    "disk_policy",
    "close_within",
    "answer_within",
    "policy",
    "storage_words",
    "workers",
    "queue_capacity",
    "event_capacity",
];

/// The settings of a cache over groups, and the layouts of its groups.
pub(super) struct GroupOpening {
    pub(super) settings: GroupCacheSettings,
    pub(super) layouts: Vec<Arc<PyLayoutShared>>,
}

/// Reads groups, layouts and keywords.
pub(super) fn read(
    groups: &Bound<'_, PyDict>,
    layouts: &Bound<'_, PyDict>,
    keywords: Option<&Bound<'_, PyDict>>,
) -> PyResult<GroupOpening> {
    let mut of_groups = Vec::with_capacity(groups.len());
    let mut of_layouts = Vec::with_capacity(groups.len());
    for (name, value) in groups {
        let name = text::read("the name of a group", &name)?;
        of_groups.push(group_of(&name, &value)?);
        let layout = layouts.get_item(&*name)?;
        let layout = layout.ok_or_else(|| {
            ArgumentError::new_err(format!("layouts has none for the group {name:?}"))
        })?;
        let layout = layout
            .cast::<PyLayout>()
            .map_err(|_| wrong_type(&format!("layouts[{name:?}]"), "a Layout", &layout))?;
        of_layouts.push(layout.get().shared()?);
    }
    for (name, _) in layouts {
        let name = text::read("the name of a group", &name)?;
        check_group(&of_groups, "layouts", &name)?;
    }
    let mut settings = GroupCacheSettings::new(of_groups);
    let mut disk = DiskKeywords::default();
    for (name, value) in keywords.into_iter().flatten() {
        let name = text::read("the name of a setting", &name)?;
        if !NAMES.contains(&&*name) {
            return Err(ArgumentError::new_err(format!(
                "a cache over groups has no setting {name:?}{}; it has {}",
                keywords::meant(&name, &NAMES),
                NAMES.join(", ")
            )));
        }
        if !value.is_none() {
            set(&mut settings, &mut disk, (&name, &value))?;
        }
    }
    settings.disk = disk.settings()?;
    Ok(GroupOpening {
        settings,
        layouts: of_layouts,
    })
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

/// A group: a pair of an identity and a rule.
fn group_of(name: &str, value: &Bound<'_, PyAny>) -> PyResult<CacheGroup> {
    let argument = format!("groups[{name:?}]");
    let wrong = || wrong_type(&argument, "a pair of an Identity and a rule", value);
    let pair = value.cast::<PyTuple>().map_err(|_| wrong())?;
    let (identity, rule): (Bound<'_, PyAny>, Bound<'_, PyAny>) =
        pair.extract().map_err(|_| wrong())?;
    let identity = identity.cast::<PyIdentity>().map_err(|_| wrong())?;
    let rule = rule_of(&text::read(&format!("the rule of {name:?}"), &rule)?)?;
    Ok(CacheGroup::new(name, rule, identity.get().0.clone()))
}

/// A rule by its text.
pub(crate) fn rule_of(text: &str) -> PyResult<GroupRule> {
    let refused = || {
        ArgumentRefusal::Setting.error(format!(
            "there is no rule {text:?}; there are \"full\", \"window:TOKENS\", \"chunk:TOKENS\" and \"stop\""
        ))
    };
    let (kind, tokens) = match text.split_once(':') {
        None => (text, None),
        Some((kind, tokens)) => {
            let tokens = tokens.parse::<NonZeroU64>().map_err(|_| refused())?;
            (kind, Some(tokens))
        }
    };
    match (kind, tokens) {
        ("full", None) => Ok(GroupRule::Full),
        ("window", Some(tokens)) => Ok(GroupRule::Window { tokens }),
        ("chunk", Some(tokens)) => Ok(GroupRule::Chunk { tokens }),
        ("stop", None) => Ok(GroupRule::Stop),
        _ => Err(refused()),
    }
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
