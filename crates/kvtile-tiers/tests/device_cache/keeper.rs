//! The keeper of the caches under test: this process, with the engine in memory of a device of the stand-in driver.

use std::sync::{Arc, OnceLock};

use kvtile_standin::{PtxEngine, Standin, StandinOptions};
use kvtile_tiers::{TierError, cache::CacheSettings};
use kvtile_transfer::{HasLayout, PhysicalLayout, PhysicalLayoutBuilder};

pub(crate) use kvtile_tiers::cache::{Cache as TestCache, CacheBuilder as TestBuilder};

/// By how much fewer random seeds a scenario runs than with the fastest keeper.
pub(crate) const SLOWER: u64 = 40;

/// How often a process is killed.
pub(crate) const KILLS: u64 = 8;

const BYTES: usize = 256 << 20;

/// The driver of the process, which the threads of its tests share.
fn standin() -> &'static Standin {
    static STANDIN: OnceLock<&'static Standin> = OnceLock::new();
    STANDIN.get_or_init(|| {
        let options = StandinOptions {
            device_bytes: BYTES,
            pinned_bytes: BYTES,
            kernels: Some(Arc::new(PtxEngine::new())),
            ..StandinOptions::seeded(11)
        };
        Box::leak(Box::new(Standin::start(options)))
    })
}

/// Builds the engine's layout, in memory of the device. Nothing before has left a complaint of the checker.
pub(crate) fn engine(layout: PhysicalLayoutBuilder<HasLayout>) -> PhysicalLayout {
    let standin = standin();
    assert_eq!(standin.complaints(), []);
    let device = standin.driver().unwrap().device(0).unwrap();
    layout.allocate_device(&device).build().unwrap()
}

/// Opens a cache.
pub(crate) fn open(
    settings: CacheSettings,
    engine: PhysicalLayout,
) -> Result<TestCache, TierError> {
    TestCache::open(settings, engine)
}

/// A builder of a cache.
pub(crate) fn builder(settings: CacheSettings) -> TestBuilder {
    TestCache::builder(settings)
}
