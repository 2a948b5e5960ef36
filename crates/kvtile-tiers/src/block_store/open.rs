//! Opening a block store.

use std::{
    collections::HashMap,
    num::NonZeroUsize,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
};

use kvtile_blocks::{
    GroupId,
    events::{EventLog, TierId},
};
use kvtile_layout::{broken, identity::LayoutIdentity};
use kvtile_memory::Prefault;
use kvtile_transfer::{PhysicalLayout, TransferManager};
use parking_lot::{Mutex, RwLock};

use super::{
    BlockStore, BlockStoreSettings, StoreGroup,
    finished::FinishedJobs,
    parts::{BlockStoreParts, GroupParts, StoreTier},
    staging::GroupStaging,
    work,
};
use crate::{
    clock::{Clock, SystemClock},
    disk::{self, DiskFollower, medium::Medium},
    error::{SettingsError, TierError},
    metrics::{CacheMetrics, Queue},
    opening,
    queue::JobQueue,
    tier::{BlockPieces, StoreIdentity, Tier, TierContext, TierGroup, TierOpener, TierSettings},
};

/// Opens a [`BlockStore`] with other components than the defaults.
#[must_use = "a builder does nothing until `open` is called"]
pub struct BlockStoreBuilder {
    settings: BlockStoreSettings,
    clock: Arc<dyn Clock>,
    medium: Option<Arc<dyn Medium>>,
    manager: Option<Arc<TransferManager>>,
    tiers: Vec<(TierSettings, TierOpener)>,
}

/// The number of the next store of this process.
static NEXT_STORE: AtomicU64 = AtomicU64::new(0);

impl BlockStore {
    /// Opens a store with the tiers of its settings.
    ///
    /// # Errors
    /// Settings out of range; no tier; groups without distinct names; staging memory too small for
    /// two blocks of each group; memory that the system refuses; a folder that is in use, has
    /// another identity or layout (the message names the first field that differs), or cannot be
    /// read or written.
    pub fn open(settings: BlockStoreSettings) -> Result<BlockStore, TierError> {
        BlockStore::builder(settings).open()
    }

    /// Starts a builder for a store with other components.
    pub fn builder(settings: BlockStoreSettings) -> BlockStoreBuilder {
        BlockStoreBuilder {
            settings,
            clock: Arc::new(SystemClock::default()),
            medium: None,
            manager: None,
            tiers: Vec::new(),
        }
    }
}

/// The blocks of a group: their staging memory and their identity.
struct OpenedGroup {
    staging: PhysicalLayout,
    blocks: usize,
    tier_group: TierGroup,
}

impl BlockStoreBuilder {
    /// Sets the clock.
    pub fn clock(mut self, clock: Arc<dyn Clock>) -> BlockStoreBuilder {
        self.clock = clock;
        self
    }

    /// Sets the medium that stores the files of the disk tier, instead of the folder of the
    /// settings.
    pub fn medium(mut self, medium: Arc<dyn Medium>) -> BlockStoreBuilder {
        self.medium = Some(medium);
        self
    }

    /// Sets the transfer manager, so that layouts which are registered with it can be rows
    /// (default: one of its own).
    pub fn manager(mut self, manager: Arc<TransferManager>) -> BlockStoreBuilder {
        self.manager = Some(manager);
        self
    }

    /// Adds a tier below the existing ones. Loads look for blocks in the tiers in the order in
    /// which they were added, after the disk of the settings. Stores write to all of them.
    pub fn tier(
        mut self,
        settings: TierSettings,
        open: impl FnOnce(&TierContext) -> Result<Arc<dyn Tier>, TierError> + Send + 'static,
    ) -> BlockStoreBuilder {
        self.tiers.push((settings, Box::new(open)));
        self
    }

    /// Opens the store.
    ///
    /// # Errors
    /// Those of [`BlockStore::open`]; two tiers with the same name; a tier that does not verify; an
    /// error of a tier.
    pub fn open(self) -> Result<BlockStore, TierError> {
        let settings = self.settings;
        settings.check()?;
        let manager = self.manager.unwrap_or_default();
        let Some(capacity) = NonZeroUsize::new(settings.event_capacity) else {
            broken(format_args!("a log of 0 events passed the check"))
        };
        let events = Arc::new(EventLog::new(capacity)?);
        let opened = groups(&settings)?;
        let tier_groups: Vec<TierGroup> = opened
            .iter()
            .map(|group| group.tier_group.clone())
            .collect();
        disk::check_groups(&tier_groups)?;
        let context = TierContext {
            groups: tier_groups,
            events: Arc::clone(&events),
            clock: Arc::clone(&self.clock),
            threads: settings.workers,
        };
        let below = tiers(&settings, self.medium, self.tiers, &context)?;
        check_tiers(&below)?;
        let finished = FinishedJobs::new()?;
        // Last: a store that is not opened leaves nothing in the manager.
        let groups = register(opened, &manager)?;
        let mut tiers = vec![TierId::DEVICE, TierId::HOST];
        tiers.extend(below.iter().map(|below| below.id));
        let names = groups.iter().zip(0..);
        let names: HashMap<String, GroupId> = names
            .map(|(group, id)| (group.name.clone(), GroupId(id)))
            .collect();
        let metrics = Arc::new(CacheMetrics::new(&tiers));
        for queue in [Queue::Load, Queue::Store] {
            metrics.queue_capacity(queue, settings.queue_capacity as u64);
        }
        let parts = BlockStoreParts {
            number: NEXT_STORE.fetch_add(1, Ordering::Relaxed),
            manager,
            groups,
            names,
            seen: below.iter().map(|_| Mutex::default()).collect(),
            below,
            loads: JobQueue::new(settings.queue_capacity),
            stores: JobQueue::new(settings.queue_capacity),
            jobs: Arc::default(),
            unwritten: Arc::default(),
            failed: AtomicUsize::new(0),
            removals: Arc::default(),
            removing: RwLock::default(),
            clock: self.clock,
            settings,
            metrics,
            events,
        };
        let store = BlockStore {
            parts: Arc::new(parts),
            finished,
            threads: Vec::new(),
            is_closed: false,
            owner: Arc::new(()),
        };
        store.start()
    }
}

impl BlockStore {
    /// Starts the threads: those of loads, one of stores, and one for each tier.
    fn start(self) -> Result<BlockStore, TierError> {
        let mut store = self;
        for number in 0..store.parts.settings.workers {
            store.spawn(format!("kvtile-load-{number}"), work::load)?;
        }
        store.spawn("kvtile-store".to_owned(), work::store)?;
        for (tier, below) in store.parts.below.iter().enumerate() {
            let name = format!("kvtile-{}", below.id.name());
            let parts = Arc::clone(&store.parts);
            let serve = move || work::serve_tier(&parts, tier);
            let thread = std::thread::Builder::new().name(name).spawn(serve);
            store.threads.push(thread.map_err(TierError::thread)?);
        }
        Ok(store)
    }

    /// Starts a thread. If that fails, the caller drops the store, which ends the threads that are
    /// running.
    fn spawn(&mut self, name: String, run: fn(&BlockStoreParts)) -> Result<(), TierError> {
        let parts = Arc::clone(&self.parts);
        let thread = std::thread::Builder::new().name(name);
        let thread = thread.spawn(move || run(&parts));
        self.threads.push(thread.map_err(TierError::thread)?);
        Ok(())
    }
}

/// Opens the tiers: the disk, or a follower of its folder, and then the others.
fn tiers(
    settings: &BlockStoreSettings,
    medium: Option<Arc<dyn Medium>>,
    mut tiers: Vec<(TierSettings, TierOpener)>,
    context: &TierContext,
) -> Result<Vec<StoreTier>, TierError> {
    match &settings.disk {
        Some(disk) if settings.read_only => {
            let (disk, follows) = (disk.clone(), disk.follower());
            let open: TierOpener = Box::new(move |context| {
                Ok(Arc::new(match medium {
                    Some(medium) => DiskFollower::open_on(medium, &disk, context)?,
                    None => DiskFollower::open(&disk, context)?,
                }))
            });
            tiers.insert(0, (follows, open));
            opening::open_below(None, None, tiers, context)
        }
        disk => opening::open_below(disk.as_ref(), medium, tiers, context),
    }
}

/// Refuses a store without tiers, and tiers that do not verify.
fn check_tiers(below: &[StoreTier]) -> Result<(), TierError> {
    if below.is_empty() {
        return Err(TierError::Settings(SettingsError::NoTier));
    }
    match below.iter().find(|below| !below.abilities.verifies) {
        Some(below) => Err(TierError::Settings(SettingsError::TierDoesNotVerify {
            tier: below.id,
        })),
        None => Ok(()),
    }
}

/// Allocates the staging memory of all groups: the same number of bytes for each, and at least two
/// blocks.
fn groups(settings: &BlockStoreSettings) -> Result<Vec<OpenedGroup>, TierError> {
    let mut strides = Vec::with_capacity(settings.groups.len());
    for group in &settings.groups {
        let block_bytes = group.shape.block_bytes()?;
        strides.push(block_bytes.next_multiple_of(opening::ALIGNMENT));
    }
    let needed_bytes: u64 = strides.iter().map(|stride| stride.saturating_mul(2)).sum();
    let staging_bytes = settings.staging_bytes;
    if staging_bytes < needed_bytes {
        return Err(TierError::Settings(SettingsError::StagingTooSmall {
            staging_bytes,
            needed_bytes,
        }));
    }
    // What remains after two blocks of each group is divided equally.
    let groups = settings.groups.len().max(1) as u64;
    let each = (staging_bytes - needed_bytes) / groups;
    let groups = settings.groups.iter().zip(strides);
    groups
        .map(|(group, stride)| open_group(group, 2 + each / stride))
        .collect()
}

fn open_group(group: &StoreGroup, blocks: u64) -> Result<OpenedGroup, TierError> {
    let shape = group.shape.with_num_blocks(blocks)?;
    opening::check_shape(&group.identity, &shape)?;
    let word = group.storage_word.as_ref();
    let staging = opening::storage(
        shape,
        &group.identity,
        word,
        opening::StorageMemory::Own(Prefault::None),
    )?;
    let identity = StoreIdentity {
        logical: group.identity.clone(),
        block_layout: LayoutIdentity::of_block(staging.strided()),
        pieces: BlockPieces::of_layout(staging.strided())?,
    };
    Ok(OpenedGroup {
        tier_group: TierGroup::new(&group.name, identity).share(group.share),
        blocks: usize::try_from(blocks).unwrap_or(usize::MAX),
        staging,
    })
}

/// Registers the staging memory of all groups.
fn register(
    opened: Vec<OpenedGroup>,
    manager: &TransferManager,
) -> Result<Vec<GroupParts>, TierError> {
    let register = |group: OpenedGroup| {
        let shape = group.staging.shape().clone();
        let TierGroup { name, identity, .. } = group.tier_group;
        let handle = manager.register(group.staging)?;
        Ok(GroupParts {
            name,
            block_bytes: identity.block_bytes(),
            identity: identity.logical,
            block_layout: identity.block_layout,
            shape,
            staging: Arc::new(GroupStaging::new(handle, group.blocks)),
        })
    };
    opened.into_iter().map(register).collect()
}
