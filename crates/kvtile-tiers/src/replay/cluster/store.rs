//! The shared tier of a replayed cluster, without bytes: bundles in the order of their eviction.
//!
//! A bundle is named by its last block, which stands for all blocks before it.

use kvtile_layout::broken;

use super::settings::{ClusterEvicts, ClusterShared, ClusterWrites};

/// No bundle.
const NONE: u32 = u32::MAX;

/// The neighbours of a stored bundle in the order of eviction.
#[derive(Clone, Copy, Debug)]
struct BundleLink {
    older: u32,
    newer: u32,
}

/// Stored bundles, from the one that is evicted first to the one that is evicted last.
#[derive(Debug)]
pub(super) struct ClusterStore {
    /// Blocks of a bundle.
    bundle: usize,
    /// Bundles that it holds; `None` for any number.
    capacity: Option<u64>,
    pub(super) writes: ClusterWrites,
    evicts: ClusterEvicts,
    /// For each block of the trace, whether a stored bundle ends with it.
    links: Vec<Option<BundleLink>>,
    oldest: u32,
    newest: u32,
    stored: u64,
    pub(super) puts: u64,
    pub(super) gets: u64,
    pub(super) evicted: u64,
    pub(super) stored_max: u64,
}

impl ClusterStore {
    /// An empty store for a trace of so many distinct blocks.
    pub(super) fn new(settings: &ClusterShared, distinct: usize) -> ClusterStore {
        let bundle = settings.bundle_blocks;
        ClusterStore {
            bundle: usize::try_from(bundle).unwrap_or(usize::MAX),
            capacity: settings
                .capacity_blocks
                .map(|blocks| blocks / u64::from(bundle).max(1)),
            writes: settings.writes,
            evicts: settings.evicts,
            links: vec![None; distinct],
            oldest: NONE,
            newest: NONE,
            stored: 0,
            puts: 0,
            gets: 0,
            evicted: 0,
            stored_max: 0,
        }
    }

    /// Bundles that it holds.
    pub(super) fn stored(&self) -> u64 {
        self.stored
    }

    /// The position behind the last block that the tier adds to a prefix of `from` blocks, bundle by bundle.
    pub(super) fn read(&mut self, blocks: &[u32], from: usize) -> usize {
        let mut at = from;
        loop {
            let end = (at / self.bundle + 1).saturating_mul(self.bundle);
            let last = end.checked_sub(1).and_then(|last| blocks.get(last));
            let Some(&last) = last.filter(|last| self.has(**last)) else {
                return at;
            };
            self.gets += 1;
            if self.evicts == ClusterEvicts::Use {
                self.unlink(last);
                self.link(last);
            }
            at = end;
        }
    }

    /// Positions behind the complete bundles of a chain of which `held` leading blocks can be written.
    pub(super) fn ends(&self, held: usize) -> impl Iterator<Item = usize> + use<> {
        let bundle = self.bundle;
        (1..=held / bundle).map(move |count| count * bundle)
    }

    /// Writes the bundle that ends with this block, unless the tier holds it.
    pub(super) fn put(&mut self, last: u32) {
        if self.has(last) {
            return;
        }
        if self
            .capacity
            .is_some_and(|capacity| self.stored >= capacity)
        {
            self.unlink(self.oldest);
            self.stored -= 1;
            self.evicted += 1;
        }
        self.link(last);
        self.stored += 1;
        self.puts += 1;
        self.stored_max = self.stored_max.max(self.stored);
    }

    fn has(&self, last: u32) -> bool {
        matches!(self.links.get(last as usize), Some(Some(_)))
    }

    /// Puts a bundle at the end of the order.
    fn link(&mut self, last: u32) {
        let older = self.newest;
        match self.links.get_mut(older as usize) {
            Some(Some(link)) => link.newer = last,
            _ => self.oldest = last,
        }
        let Some(link) = self.links.get_mut(last as usize) else {
            broken(format_args!("block {last} is not in the trace"))
        };
        *link = Some(BundleLink { older, newer: NONE });
        self.newest = last;
    }

    fn unlink(&mut self, last: u32) {
        let link = self.links.get_mut(last as usize).and_then(Option::take);
        let Some(BundleLink { older, newer }) = link else {
            broken(format_args!("no stored bundle ends with block {last}"))
        };
        match self.links.get_mut(older as usize) {
            Some(Some(link)) => link.newer = newer,
            _ => self.oldest = newer,
        }
        match self.links.get_mut(newer as usize) {
            Some(Some(link)) => link.older = older,
            _ => self.newest = older,
        }
    }
}
