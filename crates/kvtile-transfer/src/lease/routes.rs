//! Routes that were used lately: what a transfer between two layouts need not work out again.
//!
//! It keeps routes by what they are for; what a route is, is the business of `transfer`.

use std::sync::Arc;

use kvtile_layout::RangePair;

use super::{LayoutHandle, Route};

/// Most routes that are kept.
const ROUTES_MAX: usize = 64;

/// What a route is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RouteKey {
    pub(crate) source: LayoutHandle,
    pub(crate) destination: LayoutHandle,
    pub(crate) layers: Option<RangePair>,
    pub(crate) heads: Option<RangePair>,
}

/// See the module.
#[derive(Default)]
pub(crate) struct Routes {
    kept: Vec<Kept>,
    clock: u64,
}

struct Kept {
    key: RouteKey,
    route: Arc<Route>,
    used: u64,
}

impl Routes {
    pub(crate) fn find(&mut self, key: &RouteKey) -> Option<Arc<Route>> {
        let kept = self.kept.iter_mut().find(|kept| kept.key == *key)?;
        self.clock += 1;
        kept.used = self.clock;
        Some(Arc::clone(&kept.route))
    }

    /// Keeps `route`, in the place of the one that was used least lately if there are many.
    pub(crate) fn keep(&mut self, key: RouteKey, route: &Arc<Route>) {
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
        self.kept.push(Kept {
            key,
            route: Arc::clone(route),
            used: self.clock,
        });
    }

    /// Forgets the routes from and to a layout.
    pub(crate) fn forget(&mut self, handle: LayoutHandle) {
        self.kept
            .retain(|kept| kept.key.source != handle && kept.key.destination != handle);
    }

    #[cfg(test)]
    pub(crate) fn keys(&self) -> impl Iterator<Item = &RouteKey> {
        self.kept.iter().map(|kept| &kept.key)
    }
}
