//! The execution parameters of a plan: kinds of stores, kernels, number of threads.

use std::sync::OnceLock;

use kvtile_layout::CopyPlan;
use kvtile_memory::machine::Caches;

use super::{
    super::{
        bound::BoundLayout,
        kernel::{Kernels, Level, Stores},
        lane::Hints,
        nest::Manner,
    },
    pool::{CopyPool, Share},
};

/// Executes plans with one pool of threads.
#[derive(Debug)]
pub(crate) struct Executor {
    pool: CopyPool,
    level: Level,
    level2_bytes: u64,
    last_level_bytes: u64,
}

/// Assumed size of the level-2 cache, if the machine does not report it.
const LEVEL2_BYTES: u64 = 1 << 20;

/// Assumed size of the last-level cache, if the machine does not report it.
const LAST_LEVEL_BYTES: u64 = 32 << 20;

impl Executor {
    /// An executor with at most `threads` threads per copy.
    pub(crate) fn new(threads: usize) -> Executor {
        let (level2_bytes, last_level_bytes) = cache_bytes();
        Executor {
            pool: CopyPool::new(threads),
            level: Level::of_machine(),
            level2_bytes,
            last_level_bytes,
        }
    }

    /// How threads share `plan`; `None` if it is too small for more than one.
    pub(super) fn share(&self, plan: &CopyPlan) -> Option<(&CopyPool, Share)> {
        let share = self.pool.share(plan.bytes())?;
        Some((&self.pool, share))
    }

    /// The kernels and stores for a plan between two layouts.
    pub(super) fn manner(
        &self,
        plan: &CopyPlan,
        (source, destination): (&BoundLayout, &BoundLayout),
        hints: Hints,
    ) -> Manner {
        let bytes = plan.bytes().max(hints.bytes);
        let resident = source.bytes().saturating_add(destination.bytes());
        Manner {
            kernels: Kernels::new(self.level),
            stores: self.stores(bytes, resident, hints.read_next),
        }
    }

    /// Streaming stores save the read of overwritten lines, but leave the destination in memory.
    /// They pay off where the caches would not keep the destination anyway. `resident` is the size
    /// of both layouts.
    fn stores(&self, bytes: u64, resident: u64, read_next: bool) -> Stores {
        let half = self.last_level_bytes / 2;
        let fits = match read_next {
            true => bytes <= half,
            // Earlier copies may have left all of it in the caches.
            false => bytes <= self.level2_bytes || resident <= half,
        };
        match fits || !self.level.streams() {
            true => Stores::Ordinary,
            false => Stores::Streaming,
        }
    }
}

/// Sizes of the level-2 and the last-level cache, probed once.
fn cache_bytes() -> (u64, u64) {
    static BYTES: OnceLock<(u64, u64)> = OnceLock::new();
    *BYTES.get_or_init(|| match Caches::probe().known() {
        Some(caches) => (caches.level2_bytes, caches.last_level_bytes),
        None => (LEVEL2_BYTES, LAST_LEVEL_BYTES),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn copies_that_fit_the_caches_use_ordinary_stores_and_others_stream() {
        let executor = |level| Executor {
            level,
            level2_bytes: MIB,
            last_level_bytes: 32 * MIB,
            ..Executor::new(1)
        };
        let [none, some] = [Level::Portable, Level::Avx2].map(executor);
        for (bytes, resident, read_next, expected) in [
            (MIB, 1000 * MIB, false, Stores::Ordinary),
            (MIB + 1, 1000 * MIB, false, Stores::Streaming),
            (8 * MIB, 16 * MIB, false, Stores::Ordinary),
            (8 * MIB, 17 * MIB, false, Stores::Streaming),
            (16 * MIB, 1000 * MIB, true, Stores::Ordinary),
            (16 * MIB + 1, 1000 * MIB, true, Stores::Streaming),
        ] {
            assert_eq!(some.stores(bytes, resident, read_next), expected, "{bytes}");
            assert_eq!(none.stores(bytes, resident, read_next), Stores::Ordinary);
        }
    }
}
