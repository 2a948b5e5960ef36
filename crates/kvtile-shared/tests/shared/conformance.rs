//! The conformance suite of tiers, over the stores of this crate.

use std::sync::Arc;

use kvtile_blocks::events::{TierId, TierKind};
use kvtile_shared::{
    memory::MemoryStore,
    store::SharedStore,
    tier::{SharedTier, SharedTierSettings},
};
use kvtile_testkit::{
    shared::{SimulatedStore, StoreFaults},
    tier::conformance::{OpenTierAt, check_tier, check_tier_groups},
};
use kvtile_tiers::tier::Tier;

use crate::stores::folder;

fn opener(store: Arc<dyn SharedStore>, bundle_blocks: u32) -> OpenTierAt {
    with_settings(
        store,
        SharedTierSettings::new().bundle_blocks(bundle_blocks),
    )
}

fn with_settings(store: Arc<dyn SharedStore>, settings: SharedTierSettings) -> OpenTierAt {
    Box::new(move |context| {
        let id = TierId::new(TierKind::Remote, "shared").unwrap();
        let tier = SharedTier::open(id, Arc::clone(&store), settings.clone(), context);
        tier.unwrap() as Arc<dyn Tier>
    })
}

#[test]
fn over_memory_without_threads() {
    for blocks in [1, 2, 4] {
        println!("bundles of {blocks}");
        check_tier(0, &|| opener(MemoryStore::new(), blocks));
    }
}

#[test]
fn over_memory_with_compression() {
    check_tier(0, &|| {
        let settings = SharedTierSettings::new().bundle_blocks(2).compress(true);
        with_settings(MemoryStore::new(), settings)
    });
}

#[test]
fn over_memory_with_threads() {
    for blocks in [1, 2, 4] {
        println!("bundles of {blocks}");
        check_tier(2, &|| opener(MemoryStore::new(), blocks));
    }
}

#[test]
fn over_memory_with_several_groups() {
    check_tier_groups(0, &|| opener(MemoryStore::new(), 1));
    check_tier_groups(2, &|| opener(MemoryStore::new(), 2));
}

#[test]
fn over_a_folder() {
    for blocks in [1, 2] {
        println!("bundles of {blocks}");
        check_tier(0, &|| opener(folder(true)(), blocks));
        check_tier(2, &|| opener(folder(true)(), blocks));
    }
    check_tier_groups(2, &|| opener(folder(false)(), 1));
}

#[test]
fn over_a_store_with_random_delays() {
    let slow = |seed| {
        let store = SimulatedStore::new(MemoryStore::new(), seed);
        store.set_faults(StoreFaults {
            slow: 4,
            ..StoreFaults::default()
        });
        store
    };
    for (seed, blocks) in [(1, 1), (2, 4)] {
        println!("bundles of {blocks}");
        check_tier(2, &|| opener(slow(seed), blocks));
    }
}
