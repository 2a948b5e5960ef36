//! The events of caches, as a subscriber over loopback receives them.
#![expect(clippy::unwrap_used, clippy::panic, reason = "tests")]

use std::{
    collections::BTreeSet,
    thread,
    time::{Duration, Instant},
};

use kvtile_blocks::{BlockKey, events::TierId};
use kvtile_events_publish::{
    EventHashes, EventPublisher, EventPublisherSettings, EventSockets, PublishError, UnknownTokens,
};
use kvtile_events_wire::{SubscriberSettings, WireBatch, WireEvent, WireSubscriber, WireValue};
use kvtile_layout::{Shape, identity::Identity};
use kvtile_tiers::{
    TokenHasher,
    cache::{Cache, CacheSettings},
};
use kvtile_transfer::PhysicalLayout;

const LONG: Duration = Duration::from_secs(20);
const PAGE: u32 = 4;

fn shape() -> Shape {
    Shape::key_value(64, 2, 4, 2, 8, "f32").unwrap()
}

fn identity() -> Identity {
    Identity::new("a-model", "main", &shape()).unwrap()
}

fn cache(blocks: u64, adjust: impl FnOnce(CacheSettings) -> CacheSettings) -> Cache {
    let engine = PhysicalLayout::builder()
        .with_shape(shape())
        .layout("L|BH(kCN,vNC)")
        .allocate_system()
        .build()
        .unwrap();
    let settings = CacheSettings::new(identity()).host_bytes(blocks * 4096);
    Cache::open(adjust(settings), engine).unwrap()
}

fn keys(tokens: &[u32]) -> Vec<BlockKey> {
    TokenHasher::new(&identity()).unwrap().keys(tokens)
}

fn store(cache: &Cache, tokens: &[u32]) {
    let keys = keys(tokens);
    let blocks: Vec<usize> = (0..keys.len()).collect();
    assert!(
        cache
            .store(&keys, &blocks)
            .unwrap()
            .wait()
            .stopped
            .is_none()
    );
}

fn settings() -> EventPublisherSettings {
    EventPublisherSettings::new("tcp://127.0.0.1:0")
        .replay("tcp://127.0.0.1:0")
        .topic("kv@pod-1@a-model")
        .rank(3)
}

/// A router: it follows what it receives, from the publisher's past on.
struct FollowingRouter {
    subscriber: WireSubscriber,
    batches: Vec<WireBatch>,
    /// Medium and hash.
    blocks: BTreeSet<(String, u64)>,
}

impl FollowingRouter {
    fn of(publisher: &EventPublisher) -> FollowingRouter {
        let mut settings = SubscriberSettings::new(&format!("tcp://{}", publisher.address()));
        settings.replay_endpoint = publisher.replay_address().map(|at| format!("tcp://{at}"));
        settings.topic = "kv@".to_owned();
        let before = publisher.stats().subscribers;
        let subscriber = WireSubscriber::connect(&settings).unwrap();
        let end = Instant::now() + LONG;
        while publisher.stats().subscribers == before {
            assert!(Instant::now() < end);
            thread::sleep(Duration::from_millis(2));
        }
        FollowingRouter {
            subscriber,
            batches: Vec::new(),
            blocks: BTreeSet::new(),
        }
    }

    /// Receives until it has this many batches.
    fn receive(&mut self, batches: u64) {
        while (self.batches.len() as u64) < batches {
            let received = self.subscriber.next(LONG).unwrap();
            assert_eq!((received.missed, received.is_restart), (0, false));
            assert_eq!(received.topic, "kv@pod-1@a-model");
            for event in &received.batch.events {
                follow(&mut self.blocks, event);
            }
            self.batches.push(received.batch);
        }
    }

    fn blocks_in(&self, medium: &str) -> usize {
        self.blocks.iter().filter(|(of, _)| of == medium).count()
    }
}

fn follow(blocks: &mut BTreeSet<(String, u64)>, event: &WireEvent) {
    let hashes = match event.field("block_hashes") {
        Some(WireValue::List(hashes)) => hashes.clone(),
        _ => Vec::new(),
    };
    let medium = || match event.field("medium") {
        Some(WireValue::Text(medium)) => medium.clone(),
        other => panic!("{other:?}"),
    };
    for hash in hashes {
        let WireValue::Number(hash) = hash else {
            panic!("{hash:?}");
        };
        match event.kind() {
            "BlockStored" => assert!(blocks.insert((medium(), hash))),
            "BlockRemoved" => assert!(blocks.remove(&(medium(), hash))),
            other => panic!("{other}"),
        }
    }
    if event.kind() == "AllBlocksCleared" {
        blocks.clear();
    }
}

fn hash(key: &BlockKey) -> WireValue {
    WireValue::Number(u64::from_be_bytes(key.as_bytes()[8..].try_into().unwrap()))
}

#[test]
fn a_subscriber_of_bound_sockets_receives_the_events_of_the_cache_that_opens_later() {
    let sockets = EventSockets::bind(&settings()).unwrap();
    let mut of = SubscriberSettings::new(&format!("tcp://{}", sockets.address()));
    of.replay_endpoint = sockets.replay_address().map(|at| format!("tcp://{at}"));
    let mut subscriber = WireSubscriber::connect(&of).unwrap();
    assert!(subscriber.next(Duration::from_millis(50)).is_none());
    let cache = cache(32, |settings| settings);
    let sockets = sockets.topic("kv@pod-2@b-model");
    let publisher = EventPublisher::start_on(sockets, cache.event_source()).unwrap();
    store(&cache, &(0..PAGE * 3).collect::<Vec<u32>>());
    let mut kinds = Vec::new();
    while kinds.len() < 2 {
        let received = subscriber.next(LONG).unwrap();
        assert_eq!(
            (received.missed, received.topic.as_str()),
            (0, "kv@pod-2@b-model")
        );
        let events = received.batch.events.iter();
        kinds.extend(events.map(|event| event.kind().to_owned()));
    }
    assert_eq!(kinds, ["AllBlocksCleared", "BlockStored"]);
    assert!(publisher.close(LONG));
}

#[test]
fn a_chain_is_one_event_with_its_tokens_and_parents() {
    let cache = cache(32, |settings| settings);
    let tokens: Vec<u32> = (0..PAGE * 3 + 1).collect();
    store(&cache, &tokens[..4]);
    let publisher = EventPublisher::start(cache.event_source(), &settings()).unwrap();
    assert!(publisher.catch_up(LONG));
    assert_eq!(publisher.give_tokens(&keys(&tokens), &tokens).unwrap(), 3);
    store(&cache, &tokens);
    assert!(publisher.catch_up(LONG));
    let mut router = FollowingRouter::of(&publisher);
    publisher.publish_again();
    assert!(publisher.catch_up(LONG));
    // All cleared, the block that was there, the new ones, all once more.
    let mut past = Vec::new();
    for _ in 0..4 {
        past.push(router.subscriber.next(LONG).unwrap().batch);
    }
    assert!(past.iter().all(|batch| batch.data_parallel_rank == Some(3)));
    let events: Vec<WireEvent> = past.into_iter().flat_map(|batch| batch.events).collect();
    let kinds: Vec<&str> = events.iter().map(WireEvent::kind).collect();
    assert_eq!(
        kinds,
        [
            "AllBlocksCleared",
            "BlockStored",
            "BlockStored",
            "BlockStored"
        ]
    );
    let keys = keys(&tokens);
    let hashes = |keys: &[BlockKey]| WireValue::List(keys.iter().map(hash).collect());
    let numbers =
        |range: std::ops::Range<u64>| WireValue::List(range.map(WireValue::Number).collect());
    for (event, blocks, parent) in [(1, 0..1, None), (2, 1..3, Some(0)), (3, 0..3, None)] {
        let event: &WireEvent = &events[event];
        assert_eq!(
            event.field("block_hashes"),
            Some(&hashes(&keys[blocks.clone()]))
        );
        let parent = parent.map_or(WireValue::Nil, |at: usize| hash(&keys[at]));
        assert_eq!(event.field("parent_block_hash"), Some(&parent));
        let known = numbers(4 * blocks.start as u64..4 * blocks.end as u64);
        let tokens = match parent == WireValue::Nil && blocks.end == 1 {
            true => numbers(0..0), // stored before its tokens were given
            false => known,
        };
        assert_eq!(event.field("token_ids"), Some(&tokens));
        assert_eq!(event.field("block_size"), Some(&WireValue::Number(4)));
        assert_eq!(
            event.field("medium"),
            Some(&WireValue::Text("CPU".to_owned()))
        );
        assert_eq!(
            event.field("tier"),
            Some(&WireValue::Text("host".to_owned()))
        );
        assert_eq!(event.field("group_idx"), None);
    }
    let stats = publisher.stats();
    assert_eq!(
        (stats.blocks, stats.stored_blocks, stats.without_tokens),
        (3, 6, 1)
    );
    assert!(publisher.close(LONG));
    assert_eq!(
        router.subscriber.next(LONG).unwrap().batch.events,
        [WireEvent::all_cleared()]
    );
}

#[test]
fn removed_blocks_and_a_cleared_cache_reach_the_router() {
    let folder = std::env::temp_dir().join(format!("kvtile-publish-{}", std::process::id()));
    let cache = cache(8, |settings| settings.disk(&folder, 1 << 20));
    let publisher = EventPublisher::start(cache.event_source(), &settings()).unwrap();
    let mut router = FollowingRouter::of(&publisher);
    store(&cache, &(0..PAGE * 8).collect::<Vec<u32>>());
    assert!(cache.flush().durable);
    assert_eq!(cache.evict(TierId::HOST, 3).unwrap(), 3);
    assert!(publisher.catch_up(LONG));
    router.receive(publisher.stats().batches);
    assert_eq!((router.blocks_in("CPU"), router.blocks_in("DISK")), (5, 8));
    cache.clear().unwrap();
    assert!(publisher.catch_up(LONG));
    router.receive(publisher.stats().batches);
    assert!(router.blocks.is_empty());
    let stats = publisher.stats();
    assert_eq!((stats.blocks, stats.gaps, stats.without_tokens), (0, 0, 16));
    drop(cache);
    std::fs::remove_dir_all(&folder).unwrap();
    // A closed cache has no blocks: the publisher publishes that, and answers replays until it is closed.
    router.receive(stats.batches + 1);
    assert_eq!(
        router.batches.last().unwrap().events,
        [WireEvent::all_cleared()]
    );
    assert!(publisher.close(LONG));
}

/// The log keeps 8 events, and the publisher reads it seldom.
#[test]
fn a_gap_of_the_log_is_mended_by_the_difference() {
    let cache = cache(24, |mut settings| {
        settings.event_capacity = 8;
        settings
    });
    let rarely = settings().every(Duration::from_millis(50));
    let publisher = EventPublisher::start(cache.event_source(), &rarely).unwrap();
    let mut router = FollowingRouter::of(&publisher);
    let (mut rounds, end) = (0, Instant::now() + LONG);
    while publisher.stats().gaps < 3 {
        rounds += 1;
        assert!(Instant::now() < end, "{:?}", publisher.stats());
        store(
            &cache,
            &(rounds * 100..rounds * 100 + PAGE * 12).collect::<Vec<u32>>(),
        );
    }
    assert!(publisher.catch_up(LONG));
    router.receive(publisher.stats().batches);
    assert_eq!(publisher.stats().clears, 1, "no gap clears what is stored");
    let stored = cache.snapshot().blocks;
    let stored: BTreeSet<(String, u64)> = stored
        .iter()
        .map(|block| match hash(&block.key) {
            WireValue::Number(number) => ("CPU".to_owned(), number),
            _ => panic!(),
        })
        .collect();
    assert_eq!(router.blocks, stored);
}

#[test]
fn hashes_of_bytes_and_blocks_that_are_left_out() {
    let cache = cache(32, |settings| settings);
    let bytes = settings()
        .hashes(EventHashes::Bytes)
        .unknown_tokens(UnknownTokens::LeaveOut);
    let publisher = EventPublisher::start(cache.event_source(), &bytes).unwrap();
    let (known, unknown): (Vec<u32>, Vec<u32>) = ((0..8).collect(), (100..108).collect());
    publisher.give_tokens(&keys(&known), &known).unwrap();
    store(&cache, &known);
    store(&cache, &unknown);
    assert!(publisher.catch_up(LONG));
    let stats = publisher.stats();
    assert_eq!(
        (stats.stored_blocks, stats.left_out, stats.without_tokens),
        (2, 2, 0)
    );
    let mut subscriber = FollowingRouter::of(&publisher).subscriber;
    cache.clear().unwrap();
    let mut last = None;
    while last.is_none_or(|last| last == 0_u64) || last == Some(1) {
        let received = subscriber.next(LONG).unwrap();
        last = Some(received.sequence);
        if let Some(WireValue::List(hashes)) = received.batch.events[0].field("block_hashes") {
            let ours: Vec<WireValue> = keys(&known)
                .iter()
                .map(|key| WireValue::Bytes(key.as_bytes().to_vec()))
                .collect();
            assert_eq!(hashes, &ours);
        }
    }
}

#[test]
fn wrong_tokens_and_endpoints_are_refused() {
    let cache = cache(8, |settings| settings);
    let publisher = EventPublisher::start(cache.event_source(), &settings()).unwrap();
    let tokens: Vec<u32> = (0..12).collect();
    let three = keys(&tokens);
    for (keys, tokens) in [(&three[..], &tokens[..11]), (&three[..2], &tokens[..])] {
        let refused = publisher.give_tokens(keys, tokens).unwrap_err();
        assert!(matches!(refused, PublishError::Tokens { page_size: 4, .. }));
        assert!(
            refused.to_string().contains("a block has 4 tokens"),
            "{refused}"
        );
    }
    let taken = format!("tcp://{}", publisher.address());
    for endpoint in ["ipc:///tmp/x", "tcp://127.0.0.1", taken.as_str()] {
        let settings = EventPublisherSettings::new(endpoint);
        let refused = EventPublisher::start(cache.event_source(), &settings).unwrap_err();
        assert!(matches!(refused, PublishError::Wire(_)), "{refused}");
        assert!(refused.to_string().contains(endpoint), "{refused}");
    }
}
