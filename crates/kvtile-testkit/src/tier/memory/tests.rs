//! The order of evictions of a memory tier.

use super::*;
use crate::tier::HostMemory;
use kvtile_tiers::{cache::SystemClock, tier::TierGroup};

#[test]
fn the_least_recently_used_leaf_is_evicted_first_and_a_hold_counts_as_no_use() {
    let host = HostMemory::new(4).unwrap();
    let context = TierContext {
        groups: vec![TierGroup::new("kv", host.identity().clone())],
        events: Arc::new(EventLog::new(8.try_into().unwrap()).unwrap()),
        clock: Arc::new(SystemClock::default()),
        threads: 0,
    };
    let tier = MemoryTier::new(TierId::DISK, 3, &context).unwrap();
    let keys: Vec<BlockKey> = (1..4).map(|n| BlockKey::from_bytes([n; 16])).collect();
    let write = |key: &BlockKey| {
        let name = BlockName {
            group: GroupId(0),
            key: *key,
        };
        tier.write(vec![BlockWrite {
            name,
            parent: None,
            position: 0,
            tenant: 0,
            from: host.filled(&name).1,
        }])
    };
    for key in &keys {
        assert!(write(key).wait().blocks[0].is_ok());
    }
    drop(tier.find(GroupId(0), &keys[..1], &PinClaim::default()));
    drop(tier.hold(GroupId(0), &keys[1..2]));
    assert_eq!(tier.evict(1, Tick(0)), 1);
    let there: Vec<bool> = keys.iter().map(|key| tier.has(GroupId(0), key)).collect();
    assert_eq!(there, [true, false, true]);
    assert_eq!(tier.evict(1, Tick(0)), 1);
    assert!(tier.has(GroupId(0), &keys[0]));
    tier.check_integrity();
}
