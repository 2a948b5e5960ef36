//! Connecting a cache over groups to a node daemon.

use std::{path::Path, sync::Arc};

use kvtile_layout::identity::{Fingerprint, ModelIdentity};
use kvtile_transfer::{LayoutHandle, PhysicalLayout, TransferManager};
use parking_lot::Mutex;

use super::{
    GroupCache, GroupCacheSettings, GroupsBackend,
    division::memory_bytes,
    settings::CacheGroup,
    shared::{GroupCounts, GroupsPlace, GroupsShared, facts_of},
};
use crate::{
    cache::{
        Cache, ConnectOffer, ConnectSettings, DaemonConnection,
        serving::{HelloBlocks, HelloGroup},
    },
    error::{SettingsError, TierError},
    opening::check_identity,
};

/// The groups of a model that a cache is connected for.
#[derive(Clone, Debug, PartialEq)]
pub struct ConnectGroups {
    /// The groups. The shares of the first client of a model divide the daemon's memory.
    pub groups: Vec<CacheGroup>,
    /// The chain of the model, as [`GroupCacheSettings::chain`].
    pub chain: Option<Fingerprint>,
}

/// The settings of a cache over groups that is connected to a daemon.
pub type GroupConnectSettings = ConnectSettings<ConnectGroups>;

impl GroupConnectSettings {
    /// The defaults for groups. Staging memory has at least room for two pages of each group.
    ///
    /// # Errors
    /// A group whose pages are too large.
    pub fn of_groups(groups: Vec<CacheGroup>) -> Result<GroupConnectSettings, TierError> {
        let mut needed: u64 = 0;
        for group in &groups {
            let page = memory_bytes(group.identity.shape().block_bytes()?)?;
            needed = needed.saturating_add(page.saturating_mul(2));
        }
        let chain = None;
        let mut settings = ConnectSettings::new(ConnectGroups { groups, chain });
        settings.staging_bytes = settings.staging_bytes.max(needed);
        Ok(settings)
    }

    /// The defaults for the groups of a model, with the keys of its chain.
    ///
    /// # Errors
    /// As for [`of_groups`](Self::of_groups).
    pub fn of_model(model: &ModelIdentity) -> Result<GroupConnectSettings, TierError> {
        let of_model = GroupCacheSettings::of_model(model);
        let mut settings = GroupConnectSettings::of_groups(of_model.groups)?;
        settings.identity.chain = of_model.chain;
        Ok(settings)
    }
}

impl GroupCache {
    /// Connects to the node daemon (`kvtile serve`) at `socket`, which owns host memory and the tiers below, for
    /// an engine whose blocks lie in `engines`: one layout for each group, in the order of the settings. All
    /// processes that connect with the same groups share the daemon's pages.
    ///
    /// If the connection ends later, lookups find nothing, stores and loads end with their reason, and the cache
    /// connects again by itself.
    ///
    /// # Errors
    /// Those of [`Cache::connect`]; another number of layouts than groups; groups that are not those of one cache.
    pub fn connect(
        socket: impl AsRef<Path>,
        settings: GroupConnectSettings,
        engines: Vec<PhysicalLayout>,
    ) -> Result<GroupCache, TierError> {
        let manager = Arc::new(TransferManager::new());
        let engines = engines.into_iter();
        let engines = engines.map(|engine| manager.register(engine).map(Some));
        let engines: Vec<Option<LayoutHandle>> = engines.collect::<Result<_, _>>()?;
        connect(socket.as_ref(), settings, (manager, &engines, true))
    }

    /// As [`connect`](Self::connect), for layouts that are registered with the engine's transfer manager. For a
    /// group without one, loads and stores give the layout of their pages.
    ///
    /// # Errors
    /// Those of [`connect`](Self::connect); a handle that the manager does not know.
    pub fn connect_registered(
        socket: impl AsRef<Path>,
        settings: GroupConnectSettings,
        manager: Arc<TransferManager>,
        engines: &[impl Copy + Into<Option<LayoutHandle>>],
    ) -> Result<GroupCache, TierError> {
        let engines: Vec<_> = engines.iter().map(|engine| (*engine).into()).collect();
        connect(socket.as_ref(), settings, (manager, &engines, false))
    }
}

fn connect(
    socket: &Path,
    settings: GroupConnectSettings,
    (manager, engines, is_owned): (Arc<TransferManager>, &[Option<LayoutHandle>], bool),
) -> Result<GroupCache, TierError> {
    let ConnectGroups { groups, chain } = settings.identity.clone();
    // The checks of groups that are not about memory.
    GroupCacheSettings::new(groups.clone()).check()?;
    if engines.len() != groups.len() {
        return Err(TierError::Settings(SettingsError::GroupLayouts {
            layouts: engines.len(),
            groups: groups.len(),
        }));
    }
    let mut pairs: Vec<(CacheGroup, Option<LayoutHandle>)> =
        groups.into_iter().zip(engines.iter().copied()).collect();
    // Clients that list the groups in another order share their pages, and events number them alike.
    pairs.sort_by(|(one, _), (other, _)| one.name.cmp(&other.name));
    for (group, engine) in &pairs {
        if group.storage_word.is_some() {
            return Err(TierError::Settings(SettingsError::ConnectStorageWord {
                group: group.name.clone(),
            }));
        }
        if let Some(engine) = engine {
            check_identity(&group.identity, &manager.layout(*engine)?)?;
        }
    }
    let groups: Vec<CacheGroup> = pairs.iter().map(|(group, _)| group.clone()).collect();
    let (facts, unit, stop_unit) = facts_of(&groups)?;
    let of_process = settings.with_identity(());
    let offer = offer(&groups, chain)?;
    let connection = DaemonConnection::open(socket, of_process, offer, Arc::clone(&manager))?;
    let mut caches = Vec::with_capacity(pairs.len());
    for ((group, engine), number) in pairs.iter().zip(0..) {
        let place = (number, &group.identity);
        let cache = Cache::of_connection(&connection, place, &manager, (*engine, is_owned));
        caches.push(cache.inspect_err(|_| connection.close())?);
    }
    let parts = caches.iter().filter_map(Cache::parts_of_connection);
    let parts = parts.map(Arc::downgrade).collect();
    Ok(GroupCache {
        shared: Arc::new(GroupsShared {
            facts,
            place: GroupsPlace::There(Arc::downgrade(&connection), parts),
            unit,
            chain,
            stop_unit,
            tiers: Vec::new(),
            recompute_tokens_per_second: settings.recompute_tokens_per_second,
            counts: GroupCounts::default(),
            book: Mutex::default(),
        }),
        caches,
        manager,
        backend: GroupsBackend::There(connection),
    })
}

/// What the daemon is to serve.
fn offer(groups: &[CacheGroup], chain: Option<Fingerprint>) -> Result<ConnectOffer, TierError> {
    let mut shapes = Vec::with_capacity(groups.len());
    for group in groups {
        let shape = group.identity.shape().with_num_blocks(1)?;
        shapes.push((group.identity.clone(), shape));
    }
    let hello = groups.iter().map(|group| HelloGroup {
        name: group.name.clone(),
        rule: group.rule,
        role: group.role,
        identity: group.identity.clone(),
        share: group.share,
    });
    Ok(ConnectOffer {
        blocks: HelloBlocks::Groups {
            chain,
            groups: hello.collect(),
        },
        groups: shapes,
    })
}
