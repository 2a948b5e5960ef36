//! A cache of recently used routes: the part of a transfer's preparation that depends only on the
//! two layouts.
//!
//! It maps keys to routes; `transfer` defines what a route is.

use std::sync::Arc;

use kvtile_layout::RangePair;

use super::{LayoutHandle, TransferRoute};

/// Maximum number of cached routes.
const ROUTES_MAX: usize = 64;

/// The key of a route.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RouteKey {
    pub(crate) source: LayoutHandle,
    pub(crate) destination: LayoutHandle,
    pub(crate) layers: Option<RangePair>,
    pub(crate) heads: Option<RangePair>,
}

/// An LRU cache of routes.
#[derive(Default)]
pub(crate) struct RouteCache {
    kept: Vec<CachedRoute>,
    clock: u64,
}

struct CachedRoute {
    key: RouteKey,
    route: Arc<TransferRoute>,
    used: u64,
}

impl RouteCache {
    pub(crate) fn find(&mut self, key: &RouteKey) -> Option<Arc<TransferRoute>> {
        let kept = self.kept.iter_mut().find(|kept| kept.key == *key)?;
        self.clock += 1;
        kept.used = self.clock;
        Some(Arc::clone(&kept.route))
    }

    /// Caches `route`. A full cache evicts the least recently used route.
    pub(crate) fn keep(&mut self, key: RouteKey, route: &Arc<TransferRoute>) {
        if self.kept.iter().any(|kept| kept.key == key) {
            return;
        }
        if self.kept.len() >= ROUTES_MAX {
            let oldest = self.kept.iter().enumerate().min_by_key(|(_, k)| k.used);
            if let Some((index, _)) = oldest {
                self.kept.swap_remove(index);
            }
        }
        self.clock += 1;
        self.kept.push(CachedRoute {
            key,
            route: Arc::clone(route),
            used: self.clock,
        });
    }

    /// Removes the routes from and to a layout.
    pub(crate) fn forget(&mut self, handle: LayoutHandle) {
        self.kept
            .retain(|kept| kept.key.source != handle && kept.key.destination != handle);
    }

    #[cfg(test)]
    pub(crate) fn keys(&self) -> impl Iterator<Item = &RouteKey> {
        self.kept.iter().map(|kept| &kept.key)
    }
}
