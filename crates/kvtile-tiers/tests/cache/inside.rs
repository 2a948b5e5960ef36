//! What only the process that has the tiers can do or see: settings at opening, the clock of the caller,
//! memory of the process, and chains longer than a daemon's frames.

use std::{fs, sync::Arc, time::Duration};

use kvtile_blocks::events::TierId;
use kvtile_layout::Word;
use kvtile_tiers::{
    FolderError, MismatchError, SettingsError, TierError,
    cache::{
        Cache, CacheSettings, Clock, LoadOptions, LoadStop, StoreOptions, StoreStop, TierWrites,
    },
    metrics::MissReason,
};
use parking_lot::Mutex;

use super::{
    bounds::VirtualClock,
    common::{
        TestEngine, chain, engine_layout, identity, identity_with_base, settings, stride, with_disk,
    },
};

const DISK: u64 = 4 << 20;

#[test]
fn a_load_that_is_too_late_touches_nothing() {
    let clock = Arc::new(VirtualClock::default());
    let builder =
        Cache::builder(settings(8).workers(0)).clock(Arc::clone(&clock) as Arc<dyn Clock>);
    let cache = builder.open(engine_layout()).unwrap();
    let mut engine = TestEngine::new(&cache);
    let keys = chain(1, 2);
    engine.store(&keys, 0);
    engine.poison(20);
    let options = LoadOptions::new().within(Duration::from_millis(5));
    let found = cache.lookup(&keys);
    let load = cache.load_with(found, &[20, 21], &options).unwrap();
    clock.advance(Duration::from_millis(6));
    while cache.step() {}
    assert!(matches!(load.wait().stopped, Some(LoadStop::Deadline)));
    assert!(!engine.holds(&keys[0], 20));
    assert_eq!(cache.stats().lost_hits[&MissReason::Deadline], 2);
}

/// Held by a test that compares the memory of the process.
static MEMORY: Mutex<()> = Mutex::new(());

/// Resident bytes of this process.
fn resident_bytes() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:"));
    let kibibytes = line.and_then(|line| line.split_whitespace().nth(1));
    kibibytes.unwrap().parse::<u64>().unwrap() << 10
}

#[test]
fn prefault_makes_host_memory_resident_at_open() {
    const HOST: u64 = 512 << 20;
    let _turn = MEMORY.lock();
    let before = resident_bytes();
    let asked = CacheSettings::new(identity()).host_bytes(HOST).prefault();
    let cache = Cache::open(asked, engine_layout()).unwrap();
    let grown = resident_bytes().saturating_sub(before);
    // Other tests run concurrently and use some megabytes each.
    assert!(grown > HOST * 3 / 4, "the process grew by {grown} bytes");
    drop(cache);
}

/// Pitfall 23: stored bytes of another model are served.
#[test]
fn a_folder_of_another_identity_is_refused_by_the_field_that_differs() {
    let folder = tempfile::tempdir().unwrap();
    drop(Cache::open(with_disk(8, folder.path(), DISK), engine_layout()).unwrap());
    let other = CacheSettings::new(identity_with_base(500_000.0))
        .host_bytes(8 * stride())
        .disk(folder.path(), DISK);
    let error = Cache::open(other, engine_layout()).unwrap_err().to_string();
    assert!(error.contains("rope"), "{error}");
    assert!(
        error.contains("500000") && error.contains("10000"),
        "{error}"
    );
}

#[test]
fn a_folder_of_another_storage_order_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    drop(Cache::open(with_disk(8, folder.path(), DISK), engine_layout()).unwrap());
    let word: Word = "BLKNHC".parse().unwrap();
    let other = with_disk(8, folder.path(), DISK).storage_word(word);
    let error = Cache::open(other, engine_layout()).unwrap_err();
    assert!(
        matches!(
            error,
            TierError::Mismatch(MismatchError::FolderDiffers { .. })
        ),
        "{error}"
    );
}

#[test]
fn a_folder_that_is_in_use_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let first = Cache::open(with_disk(8, folder.path(), DISK), engine_layout()).unwrap();
    let second = Cache::open(with_disk(8, folder.path(), DISK), engine_layout());
    assert!(matches!(
        second,
        Err(TierError::Folder(FolderError::InUse { .. }))
    ));
    drop(first);
    assert!(Cache::open(with_disk(8, folder.path(), DISK), engine_layout()).is_ok());
}

#[test]
fn settings_out_of_range_are_refused() {
    let open = |settings| Cache::open(settings, engine_layout()).map(drop);
    let folder = tempfile::tempdir().unwrap();
    for rate in [0.0, -1.0, f64::NAN, f64::INFINITY] {
        let error = open(settings(8).recompute_tokens_per_second(rate)).unwrap_err();
        assert!(matches!(
            error,
            TierError::Settings(SettingsError::RecomputeRate { .. })
        ));
    }
    let small = open(settings(0)).unwrap_err();
    assert!(
        matches!(
            small,
            TierError::Settings(SettingsError::HostTooSmall { .. })
        ),
        "{small}"
    );
    let sets: [fn(&mut CacheSettings, u64); 5] = [
        |settings, number| settings.queue_capacity = usize::try_from(number).unwrap(),
        |settings, number| settings.event_capacity = usize::try_from(number).unwrap(),
        |settings, number| settings.workers = usize::try_from(number).unwrap(),
        |settings, number| settings.host_bytes = number,
        |settings, number| settings.disk.as_mut().unwrap().capacity_bytes = number,
    ];
    for set in sets {
        for number in [1 << 47, 1 << 62, u64::MAX] {
            let mut settings = with_disk(8, folder.path(), DISK);
            set(&mut settings, number);
            // The refusal comes before any allocation or thread.
            let error = open(settings).unwrap_err();
            assert!(error.to_string().contains(&number.to_string()), "{error}");
        }
    }
    for (queue, events) in [(0, 1), (1, 0), ((1 << 24) + 1, 1), (1, (1 << 24) + 1)] {
        let mut settings = settings(8).queue_capacity(queue);
        settings.event_capacity = events;
        let refused = open(settings).unwrap_err();
        assert!(
            matches!(
                refused,
                TierError::Settings(SettingsError::SettingOutOfRange { .. })
            ),
            "{refused}"
        );
    }
    let nameless = open(with_disk(8, std::path::Path::new(""), DISK)).unwrap_err();
    assert!(
        matches!(nameless, TierError::Settings(SettingsError::NoFolder)),
        "{nameless}"
    );
    assert!(!std::path::Path::new("lock").exists());
    let uses = with_disk(8, folder.path(), DISK).disk_writes(TierWrites::AfterUses(0));
    assert!(matches!(
        open(uses).unwrap_err(),
        TierError::Settings(SettingsError::ZeroUses)
    ));
    let word: Word = "LBKNHC".parse().unwrap();
    let scattered = open(settings(8).storage_word(word)).unwrap_err();
    assert!(matches!(
        scattered,
        TierError::Settings(SettingsError::StorageNotContiguous { .. })
    ));
}

#[test]
fn closing_releases_everything_while_matches_live() {
    const HOST: u64 = 512 << 20;
    let _turn = MEMORY.lock();
    let folder = tempfile::tempdir().unwrap();
    let mut settings = with_disk(16, folder.path(), DISK).prefault();
    settings.host_bytes = HOST;
    let cache = Cache::open(settings, engine_layout()).unwrap();
    let keys = chain(1, 8);
    TestEngine::new(&cache).store(&keys, 0);
    cache.evict(TierId::HOST, 4).unwrap();
    let nothing = cache.lookup(&chain(2, 3));
    let found = cache.lookup(&keys);
    assert_eq!((nothing.blocks(), found.blocks()), (0, 8));
    let before = resident_bytes();
    drop(cache);
    let released = before.saturating_sub(resident_bytes());
    assert!(released > HOST / 2, "{released} bytes were released");
    assert_eq!((nothing.blocks(), found.blocks()), (0, 0));
    assert_eq!(
        (found.blocks_in(TierId::HOST), found.tiers().count()),
        (0, 0)
    );
    let found = found.skip(1).truncate(3);
    let again = Cache::open(with_disk(16, folder.path(), DISK), engine_layout());
    let again = again.expect("the folder is free");
    assert_eq!(TestEngine::new(&again).load(&keys, 0), 8);
    let error = again.load(found, &[]).unwrap_err();
    assert!(error.to_string().contains("another cache"), "{error}");
}

#[test]
fn a_chain_of_a_million_keys_is_taken_at_once() {
    let cache = Cache::open(settings(4).workers(0), engine_layout()).unwrap();
    let keys = chain(1, 1_000_000);
    // Such a long chain is not looked up on the caller's thread.
    let lookups = cache.pool_stats(TierId::HOST).unwrap().lookups;
    let refused = cache.store_with(&keys, &[0, 1, 2], &StoreOptions::new().first(999_990));
    let store = refused.unwrap();
    assert!(!store.is_complete());
    assert_eq!(cache.pool_stats(TierId::HOST).unwrap().lookups, lookups);
    while cache.step() {}
    assert!(matches!(store.wait().stopped, Some(StoreStop::NoAncestors)));
}
