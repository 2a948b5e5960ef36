//! Runs the conformance suite on each implementation, without and with worker threads.

use std::sync::Arc;

use kvtile_blocks::{
    events::{TierId, TierKind},
    policy::PolicyKind,
};
use kvtile_testkit::{
    disk::SimulatedDisk,
    tier::{
        MemoryTier, MisbehavingTier, TierFaults,
        conformance::{OpenTierAt, check_tier, check_tier_groups},
    },
};
use kvtile_tiers::{
    cache::DiskSettings,
    disk::{DiskTier, medium::Medium},
    tier::{Tier, TierContext},
};

/// Room for 47 blocks of one page each, or for 20 of each of two groups.
const DISK_BYTES: u64 = 52 * 4096;

fn memory() -> OpenTierAt {
    let id = TierId::new(TierKind::Remote, "memory").unwrap();
    Box::new(move |context: &TierContext| {
        Arc::new(MemoryTier::new(id, 40, context).unwrap()) as Arc<dyn Tier>
    })
}

/// A memory tier that other caches may write to.
fn shared() -> OpenTierAt {
    let id = TierId::new(TierKind::Remote, "shared").unwrap();
    Box::new(move |context: &TierContext| {
        Arc::new(MemoryTier::shared(id, 40, context).unwrap()) as Arc<dyn Tier>
    })
}

fn folder() -> OpenTierAt {
    let folder = tempfile::tempdir().unwrap();
    Box::new(move |context: &TierContext| {
        let settings = DiskSettings::new(folder.path().join("tier"), DISK_BYTES);
        Arc::new(DiskTier::open(&settings, context).unwrap()) as Arc<dyn Tier>
    })
}

fn simulated(policy: PolicyKind) -> OpenTierAt {
    let disk = SimulatedDisk::new(1);
    Box::new(move |context: &TierContext| {
        let mut settings = DiskSettings::new("simulated", DISK_BYTES);
        settings.policy = policy;
        let medium: Arc<dyn Medium> = Arc::new(disk.clone());
        let tier = DiskTier::open_on(medium, &settings, context).unwrap();
        Arc::new(tier) as Arc<dyn Tier>
    })
}

#[test]
fn memory_without_threads_keeps_the_contract() {
    check_tier(0, &memory);
}

#[test]
fn memory_with_a_thread_keeps_the_contract() {
    check_tier(2, &memory);
}

#[test]
fn a_shared_tier_keeps_the_contract() {
    check_tier(0, &shared);
    check_tier(2, &shared);
}

#[test]
fn a_folder_without_threads_keeps_the_contract() {
    check_tier(0, &folder);
}

#[test]
fn a_folder_with_threads_keeps_the_contract() {
    check_tier(2, &folder);
}

#[test]
fn a_disk_keeps_the_contract_with_each_policy() {
    for policy in [PolicyKind::default(), PolicyKind::Lru] {
        check_tier(0, &|| simulated(policy));
        check_tier(2, &|| simulated(policy));
    }
}

#[test]
fn tiers_with_several_groups_keep_the_contract_for_each_of_them() {
    for threads in [0, 2] {
        check_tier_groups(threads, &memory);
        check_tier_groups(threads, &shared);
        check_tier_groups(threads, &folder);
        for policy in [PolicyKind::default(), PolicyKind::Lru] {
            check_tier_groups(threads, &|| simulated(policy));
        }
        check_tier_groups(threads, &|| misbehaving(TierFaults::default()));
    }
}

/// A memory tier that misbehaves in one way.
fn misbehaving(faults: TierFaults) -> OpenTierAt {
    let id = TierId::new(TierKind::Remote, "bad").unwrap();
    Box::new(move |context: &TierContext| {
        let inner = MemoryTier::new(id, 40, context).unwrap();
        let tier = MisbehavingTier::new(Arc::new(inner), 1);
        tier.set_faults(faults);
        Arc::new(tier) as Arc<dyn Tier>
    })
}

#[test]
fn a_tier_that_could_misbehave_and_does_not_keeps_the_contract() {
    check_tier(0, &|| misbehaving(TierFaults::default()));
    check_tier(2, &|| misbehaving(TierFaults::default()));
}

/// The suite must fail for each kind of misbehaviour.
#[test]
fn the_suite_finds_each_way_to_misbehave() {
    let of = |set: fn(&mut TierFaults)| {
        let mut faults = TierFaults::default();
        set(&mut faults);
        faults
    };
    let each = [
        of(|faults| faults.slow = 2),
        of(|faults| faults.no_answer = 3),
        of(|faults| faults.no_sync_answer = 1),
        of(|faults| faults.lossy = 3),
        of(|faults| faults.vanishing = 9),
        of(|faults| faults.wrong_bytes = 9),
        of(|faults| faults.read_error = 9),
        of(|faults| faults.write_error = 9),
        of(|faults| faults.sync_error = 1),
        of(|faults| faults.denial = 9),
        of(|faults| faults.wrong_count = 9),
        of(|faults| faults.keeps_memory = 9),
    ];
    std::thread::scope(|scope| {
        let checks = each.map(|faults| {
            let check = move || check_tier(0, &|| misbehaving(faults));
            (faults, scope.spawn(check))
        });
        for (faults, check) in checks {
            assert!(check.join().is_err(), "the suite passes {faults:?}");
        }
    });
}
