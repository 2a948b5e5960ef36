//! Refused requests and settings, and the text of the refusals.

use kvtile_layout::Word;
use kvtile_tiers::{
    FolderError, MismatchError, RequestError, SettingsError, TierError,
    cache::{Cache, CacheSettings, TierWrites},
};

use super::common::{
    TestEngine, chain, engine_layout, identity_with_base, settings, stride, with_disk,
};

const DISK: u64 = 4 << 20;

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
fn blocks_that_the_engine_does_not_have_are_refused() {
    let cache = Cache::open(settings(8), engine_layout()).unwrap();
    let keys = chain(1, 2);
    let store = |blocks: &[usize]| cache.store(&keys, blocks);
    let outside = store(&[0, 64]).unwrap_err();
    assert!(matches!(
        outside,
        TierError::Request(RequestError::EngineBlockOutOfRange { block: 64, .. })
    ));
    assert!(matches!(
        store(&[3, 3]),
        Err(TierError::Request(RequestError::EngineBlockTwice {
            block: 3
        }))
    ));
    assert!(matches!(
        store(&[1, 2, 3]),
        Err(TierError::Request(RequestError::TooFewKeys { .. }))
    ));
    let found = cache.lookup(&keys);
    let load = cache.load(found, &[1]);
    assert!(matches!(
        load,
        Err(TierError::Request(RequestError::TooManyDestinations { .. }))
    ));
}

#[test]
fn a_full_queue_refuses_at_once_and_leaves_nothing_pinned() {
    let settings = settings(16).workers(0).queue_capacity(2);
    let cache = Cache::open(settings, engine_layout()).unwrap();
    let engine = TestEngine::new(&cache);
    let keys = chain(1, 3);
    engine.store(&keys, 0);
    let load = || {
        let found = cache.lookup(&keys);
        cache.load(found, &[20, 21, 22])
    };
    let waiting = [load().unwrap(), load().unwrap()];
    assert!(matches!(
        load(),
        Err(TierError::Request(RequestError::Busy {
            waiting: 2,
            capacity: 2
        }))
    ));
    let refused: u64 = cache.stats().queues.iter().map(|queue| queue.refused).sum();
    assert_eq!(refused, 1);
    while cache.step() {}
    for load in waiting {
        assert_eq!(load.wait().blocks, 3);
    }
    let evicted = cache.evict(kvtile_blocks::events::TierId::HOST, 16);
    assert_eq!(evicted.unwrap(), 3, "nothing stays pinned");
}

/// Pitfall 40: a metric without a denominator.
#[test]
fn every_looked_up_block_is_a_hit_or_a_miss_of_one_kind() {
    let folder = tempfile::tempdir().unwrap();
    let cache = Cache::open(with_disk(3, folder.path(), DISK), engine_layout()).unwrap();
    let mut engine = TestEngine::new(&cache);
    for number in 0..6 {
        engine.load(&chain(number % 4, 5), 0);
        engine.store(&chain(number % 4, 3), 10);
    }
    let stats = cache.stats();
    let hits: u64 = stats.hits.values().sum();
    let misses: u64 = stats.misses.values().sum();
    assert_eq!(hits + misses, stats.lookup_blocks, "{stats:?}");
    assert_eq!(stats.lookup_blocks, 6 * 5);
    assert!(hits > 0 && misses > 0);
    for queue in &stats.queues {
        assert!(queue.depth == 0 && queue.capacity > 0 && queue.offered >= queue.refused);
    }
}
