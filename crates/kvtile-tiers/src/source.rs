//! The events of a cache or a block store, for readers that must not keep it open.

use std::sync::{Arc, Weak};

use kvtile_blocks::{
    GroupId,
    events::{EventLog, EventSnapshot, EventSubscriber, StoredBlock},
};

/// Lists the blocks of all tiers, each under the lock under which its events are appended.
pub(crate) trait ListStoredBlocks: Send + Sync {
    /// Appends them.
    fn list_stored(&self, blocks: &mut Vec<StoredBlock>);
}

/// The events of a cache or a block store. It keeps neither open, and frees nothing that they use.
///
/// ```
/// use kvtile_layout::{Shape, identity::Identity};
/// use kvtile_tiers::cache::{Cache, CacheSettings};
/// use kvtile_transfer::PhysicalLayout;
///
/// let shape = Shape::key_value(8, 2, 16, 2, 64, "bf16")?;
/// let engine = PhysicalLayout::builder()
///     .with_shape(shape.clone())
///     .layout("L|BH(kCN,vNC)")
///     .allocate_system()
///     .build()?;
/// let identity = Identity::new("a-model", "main", &shape)?;
/// let cache = Cache::open(CacheSettings::new(identity).host_bytes(16 << 20), engine)?;
/// let source = cache.event_source();
/// assert_eq!(source.snapshot().map(|snapshot| snapshot.blocks.len()), Some(0));
/// drop(cache);
/// assert!(!source.is_open() && source.snapshot().is_none());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone)]
pub struct EventSource {
    log: Arc<EventLog>,
    list: Weak<dyn ListStoredBlocks>,
    /// Lives as long as the cache or the store.
    owner: Weak<()>,
    /// Tokens of a block, by group.
    page_sizes: Arc<[u64]>,
}

impl std::fmt::Debug for EventSource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut shown = f.debug_struct("EventSource");
        shown.field("is_open", &self.is_open());
        shown.finish_non_exhaustive()
    }
}

impl EventSource {
    pub(crate) fn new(
        log: &Arc<EventLog>,
        list: Weak<dyn ListStoredBlocks>,
        owner: &Arc<()>,
        page_sizes: impl IntoIterator<Item = u64>,
    ) -> EventSource {
        EventSource {
            log: Arc::clone(log),
            list,
            owner: Arc::downgrade(owner),
            page_sizes: page_sizes.into_iter().collect(),
        }
    }

    /// Subscribes to the events of all tiers from now on.
    #[must_use]
    pub fn subscribe(&self) -> EventSubscriber {
        self.log.subscribe()
    }

    /// All stored blocks, and the position in the log at which this list is true; `None` once the
    /// cache or the store is closed.
    #[must_use]
    pub fn snapshot(&self) -> Option<EventSnapshot> {
        let list = self.list.upgrade().filter(|_| self.is_open())?;
        Some(self.log.snapshot(|blocks| list.list_stored(blocks)))
    }

    /// The sequence number of the next event.
    #[must_use]
    pub fn next_sequence(&self) -> u64 {
        self.log.next_sequence()
    }

    /// Whether the cache or the store is open. Once it is closed, no event follows those in the log.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.owner.strong_count() > 0
    }

    /// Tokens of a block of a group; `None` for a group that is not there.
    #[must_use]
    pub fn page_size(&self, group: GroupId) -> Option<u64> {
        let at = usize::try_from(group.0).ok()?;
        self.page_sizes.get(at).copied()
    }

    /// The number of groups.
    #[must_use]
    pub fn groups(&self) -> usize {
        self.page_sizes.len()
    }
}
