//! The settings of a block store as keywords.

use std::time::Duration;

use kvtile::tiers::block_store::{BlockStoreSettings, StoreGroup};
use pyo3::{prelude::*, types::PyDict};

use crate::{
    arguments::{flag, keywords, text, time},
    cache::settings::{DiskKeywords, folder_of, number, policy_of, read_shared},
    error::python::ArgumentError,
    shared::{SharedKeywords, SharedOpening},
};

/// All keywords.
const NAMES: [&str; 17] = [
    "disk",
    "disk_bytes",
    "disk_policy",
    "read_only",
    "close_within",
    "answer_within",
    "shared",
    "shared_lifetime",
    "shared_bundle_blocks",
    "shared_compress",
    "shared_staging_bytes",
    "shared_within",
    "staging_bytes",
    "stage_within",
    "workers",
    "queue_capacity",
    "event_capacity",
];

/// Builds settings from keywords. Unknown keywords are refused.
pub(super) fn read(
    groups: Vec<StoreGroup>,
    keywords: Option<&Bound<'_, PyDict>>,
) -> PyResult<(BlockStoreSettings, Option<SharedOpening>)> {
    let mut settings = BlockStoreSettings::new(groups);
    let mut disk = DiskKeywords::default();
    let mut shared = SharedKeywords::default();
    for (name, value) in keywords.into_iter().flatten() {
        let name = text::read("the name of a setting", &name)?;
        if !NAMES.contains(&&*name) {
            return Err(ArgumentError::new_err(format!(
                "a block store has no setting {name:?}{}; it has {}",
                keywords::meant(&name, &NAMES),
                NAMES.join(", ")
            )));
        }
        if value.is_none() {
            continue;
        }
        match &*name {
            "disk" => disk.folder = Some(folder_of(&value)?),
            "disk_bytes" => disk.bytes = Some(number(&name, &value)?),
            "disk_policy" => disk.policy = Some(policy_of(&name, &value)?),
            "close_within" => disk.close_within = time::close_within(&value)?,
            "answer_within" => disk.answer_within = time::answer_within(&value)?,
            name if name.starts_with("shared") => read_shared(&mut shared, name, &value)?,
            "read_only" => settings.read_only = flag::read(&name, &value)?,
            "staging_bytes" => settings.staging_bytes = number(&name, &value)?,
            "stage_within" => {
                settings.stage_within = time::stage_within(&value)?.unwrap_or(Duration::MAX);
            }
            "workers" => settings.workers = number(&name, &value)?,
            "queue_capacity" => settings.queue_capacity = number(&name, &value)?,
            _ => settings.event_capacity = number(&name, &value)?,
        }
    }
    if settings.read_only && disk.folder.is_some() {
        // The capacity is the writer's.
        disk.bytes.get_or_insert(0);
    }
    settings.disk = disk.settings()?;
    if shared.store.is_some() {
        // Each block is found by itself, so it is a value of its own.
        shared.bundle_blocks.get_or_insert(1);
    }
    Ok((settings, shared.opening()?))
}
