//! The execution parameters of a plan: kinds of stores, kernels, number of threads.

use std::sync::OnceLock;

use kvtile_layout::CopyPlan;
use kvtile_memory::machine::DataCaches;

use super::{
    super::{
        bound::BoundLayout,
        kernel::{LevelKernels, SimdLevel, StoreKind},
        lane::TransferHints,
        nest::CopyManner,
    },
    pool::{CopyPool, CopyShare},
};

/// Executes plans with one pool of threads.
#[derive(Debug)]
pub(crate) struct CopyExecutor {
    pool: CopyPool,
    level: SimdLevel,
    level2_bytes: u64,
    last_level_bytes: u64,
}

/// Assumed size of the level-2 cache, if the machine does not report it.
const LEVEL2_BYTES: u64 = 1 << 20;

/// Assumed size of the last-level cache, if the machine does not report it.
const LAST_LEVEL_BYTES: u64 = 32 << 20;

impl CopyExecutor {
    /// An executor with at most `threads` threads per copy.
    pub(crate) fn new(threads: usize) -> CopyExecutor {
        let (level2_bytes, last_level_bytes) = cache_bytes();
        CopyExecutor {
            pool: CopyPool::new(threads),
            level: SimdLevel::of_machine(),
            level2_bytes,
            last_level_bytes,
        }
    }

    /// How threads share `plan`; `None` if it is too small for more than one.
    pub(super) fn share(&self, plan: &CopyPlan) -> Option<(&CopyPool, CopyShare)> {
        let share = self.pool.share(plan.bytes())?;
        Some((&self.pool, share))
    }

    /// The kernels and stores for a plan between two layouts.
    pub(super) fn manner(
        &self,
        plan: &CopyPlan,
        (source, destination): (&BoundLayout, &BoundLayout),
        hints: TransferHints,
    ) -> CopyManner {
        let bytes = plan.bytes().max(hints.bytes);
        let resident = source.bytes().saturating_add(destination.bytes());
        CopyManner {
            kernels: LevelKernels::new(self.level),
            stores: self.stores(bytes, resident, hints.read_next),
        }
    }

    /// Streaming stores save the read of overwritten lines, but leave the destination in memory.
    /// They pay off where the caches would not keep the destination anyway. `resident` is the size
    /// of both layouts.
    fn stores(&self, bytes: u64, resident: u64, read_next: bool) -> StoreKind {
        let half = self.last_level_bytes / 2;
        let fits = match read_next {
            true => bytes <= half,
            // Earlier copies may have left all of it in the caches.
            false => bytes <= self.level2_bytes || resident <= half,
        };
        match fits || !self.level.streams() {
            true => StoreKind::Ordinary,
            false => StoreKind::Streaming,
        }
    }
}

/// Sizes of the level-2 and the last-level cache, probed once.
fn cache_bytes() -> (u64, u64) {
    static BYTES: OnceLock<(u64, u64)> = OnceLock::new();
    *BYTES.get_or_init(|| match DataCaches::probe().known() {
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
        let executor = |level| CopyExecutor {
            level,
            level2_bytes: MIB,
            last_level_bytes: 32 * MIB,
            ..CopyExecutor::new(1)
        };
        let [none, some] = [SimdLevel::Portable, SimdLevel::Avx2].map(executor);
        for (bytes, resident, read_next, expected) in [
            (MIB, 1000 * MIB, false, StoreKind::Ordinary),
            (MIB + 1, 1000 * MIB, false, StoreKind::Streaming),
            (8 * MIB, 16 * MIB, false, StoreKind::Ordinary),
            (8 * MIB, 17 * MIB, false, StoreKind::Streaming),
            (16 * MIB, 1000 * MIB, true, StoreKind::Ordinary),
            (16 * MIB + 1, 1000 * MIB, true, StoreKind::Streaming),
        ] {
            assert_eq!(some.stores(bytes, resident, read_next), expected, "{bytes}");
            assert_eq!(none.stores(bytes, resident, read_next), StoreKind::Ordinary);
        }
    }
}
