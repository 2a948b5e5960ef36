//! The shared tier of a cache or a block store: its keywords, and stores that Python implements.

mod python_store;

use std::{sync::Arc, time::Duration};

use kvtile::shared::{
    parts::SharedParts,
    store::{Deadline, SharedStore, SharedStoreError},
    tier::{SharedTier, SharedTierSettings},
};
use kvtile::{
    LayoutError, Shape, Word,
    blocks::events::TierId,
    tiers::{
        TierError,
        cache::{CacheSettings, TierWrites},
        tier::{STORAGE_WORD, TierOpener, TierSettings},
    },
};
use pyo3::prelude::*;

use crate::error::python::SettingsError;

pub(crate) use python_store::PythonStore;

/// How long opening a store may take, if the settings do not say it.
const OPEN_WITHIN: Duration = Duration::from_secs(10);

/// The keywords of the shared tier, which may come in any order.
#[derive(Default)]
pub(crate) struct SharedKeywords {
    pub(crate) store: Option<SharedSource>,
    pub(crate) lifetime: Option<Duration>,
    pub(crate) bundle_blocks: Option<u32>,
    pub(crate) compress: Option<bool>,
    pub(crate) staging_bytes: Option<u64>,
    pub(crate) within: Option<Duration>,
}

/// Where the store comes from.
pub(crate) enum SharedSource {
    /// A URL, or the path of a folder.
    Url(String),
    /// An object of Python.
    Object(PythonStore),
}

/// A shared tier to open.
pub(crate) struct SharedOpening {
    source: SharedSource,
    settings: SharedTierSettings,
    within: Option<Duration>,
}

impl SharedKeywords {
    /// The tier, if there is one.
    pub(crate) fn opening(self) -> PyResult<Option<SharedOpening>> {
        let says_nothing = self.lifetime.is_none()
            && self.bundle_blocks.is_none()
            && self.compress.is_none()
            && self.staging_bytes.is_none()
            && self.within.is_none();
        let Some(source) = self.store else {
            return match says_nothing {
                true => Ok(None),
                false => Err(SettingsError::new_err(
                    "shared_lifetime, shared_bundle_blocks, shared_compress, shared_staging_bytes and shared_within have \
                     no effect without shared, the store",
                )),
            };
        };
        let mut settings = SharedTierSettings::new()
            .lifetime(self.lifetime)
            .bundle_blocks(self.bundle_blocks)
            .compress(self.compress.unwrap_or(false));
        settings.staging_bytes = self.staging_bytes.unwrap_or(settings.staging_bytes);
        settings.read_within = self.within.unwrap_or(settings.read_within);
        Ok(Some(SharedOpening {
            source,
            settings,
            within: self.within,
        }))
    }
}

impl SharedOpening {
    /// Whether a value has several blocks, so that the tier needs their chain.
    pub(crate) fn needs_chains(&self) -> bool {
        self.settings.bundle_blocks != Some(1)
    }

    /// Opens the store. Returns the settings and the opener of the tier, for the builder of a cache over
    /// groups or a block store. Called without the GIL.
    pub(crate) fn open(self) -> Result<(TierSettings, TierOpener), TierError> {
        let (store, settings) = self.open_store()?;
        Ok(own_tier(store, settings))
    }

    /// As [`open`](SharedOpening::open), for a cache of blocks of `shape`: with the tier of the parts that other ranks wrote
    /// behind the own one. A cache with the whole model has that tier only if there are such parts now.
    pub(crate) fn open_with_parts(
        self,
        cache: &CacheSettings,
        shape: &Shape,
    ) -> Result<Vec<(TierSettings, TierOpener)>, TierError> {
        let (store, settings) = self.open_store()?;
        let mut tiers = vec![own_tier(Arc::clone(&store), settings.clone())];
        if SharedParts::are_needed(&*store, &settings, &cache.identity) {
            let word = match &cache.storage_word {
                Some(word) => word.clone(),
                None => Word::parse(STORAGE_WORD).map_err(LayoutError::from)?,
            };
            let only_reads = tier_settings(&settings).writes(TierWrites::Never);
            let opener = SharedParts::opener(store, settings, (shape.clone(), word));
            tiers.push((only_reads, Box::new(opener)));
        }
        Ok(tiers)
    }

    fn open_store(self) -> Result<(Arc<dyn SharedStore>, SharedTierSettings), TierError> {
        let by = Deadline::within(self.within.unwrap_or(OPEN_WITHIN).max(OPEN_WITHIN));
        let store = self.source.open(by).map_err(TierError::outside)?;
        Ok((store, self.settings))
    }
}

fn tier_settings(settings: &SharedTierSettings) -> TierSettings {
    let tier = TierSettings::default().writes(TierWrites::AtOnce);
    tier.answer_within(settings.read_within.max(settings.write_within))
}

/// The tier of the part that the cache writes.
fn own_tier(
    store: Arc<dyn SharedStore>,
    settings: SharedTierSettings,
) -> (TierSettings, TierOpener) {
    let tier = tier_settings(&settings);
    let opener = SharedTier::opener(TierId::SHARED, store, settings);
    (tier, Box::new(opener))
}

impl SharedSource {
    fn open(self, by: Deadline) -> Result<Arc<dyn SharedStore>, SharedStoreError> {
        match self {
            SharedSource::Url(text) => kvtile_shared_open::open_store(&text, by),
            SharedSource::Object(store) => Ok(Arc::new(store)),
        }
    }
}
