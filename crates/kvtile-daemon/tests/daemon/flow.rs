//! What clients do, and that it is what a cache in process does.

use std::{sync::Arc, time::Duration};

use kvtile_blocks::{
    events::{EventMirror, TierId},
    policy::PolicyKind,
    pool::{TenantId, TenantQuota},
};
use kvtile_daemon::{Daemon, DaemonError, DaemonStatus};
use kvtile_tiers::{
    RequestError, TierError,
    cache::{Cache, CacheSettings, LookupOptions, StoreOptions, StoreStop},
    metrics::MissReason,
};

use super::common::{
    ENGINE_BLOCKS, Node, chain, connect_settings, engine_layout, eventually, identity, identity_of,
    is_idle, load, store, stride,
};

#[test]
fn a_client_stores_and_another_client_loads() {
    let node = Node::new();
    let daemon = node.start(32);
    let (first, second) = (node.connect(), node.connect());
    let keys = chain(1, 6);
    assert_eq!(load(&second, &keys, 0).blocks, 0);
    let stored = store(&first, &keys, 0);
    assert!(stored.stopped.is_none(), "{stored:?}");
    assert_eq!((stored.stored, stored.present, stored.dropped), (6, 0, 0));
    let report = load(&second, &keys, 20);
    assert!(report.stopped.is_none(), "{report:?}");
    assert_eq!((report.blocks, report.from_host), (6, 6));
    // Both processes' blocks count once.
    let again = store(&second, &keys, 0);
    assert_eq!((again.stored, again.present, again.bytes), (0, 6, 0));
    let host = first.tier_stats(TierId::HOST).unwrap();
    assert_eq!((host.present, host.capacity), (6, 32));
    eventually("pins are left", || is_idle(&daemon));
    drop((first, second));
    eventually("sessions are left", || daemon.status().sessions.is_empty());
}

/// The same calls in process and through a daemon give the same reports and counters.
#[test]
fn reports_and_counters_are_those_of_a_cache_in_process() {
    let node = Node::new();
    let _daemon = node.start(16);
    let settings = CacheSettings::new(identity()).host_bytes(16 * stride());
    let here = Cache::open(settings, engine_layout()).unwrap();
    let there = node.connect();
    let seen = [here, there].map(|cache| {
        let keys = chain(3, 10);
        let mut seen = Vec::new();
        let stored = store(&cache, &keys[..6], 0);
        seen.push(format!(
            "{:?}",
            (stored.stored, stored.present, stored.bytes)
        ));
        // A longer chain, whose first blocks are present.
        let stored = store(&cache, &keys, 10);
        seen.push(format!(
            "{:?}",
            (stored.stored, stored.present, stored.bytes)
        ));
        // A tail without its parent.
        let orphan = chain(4, 3);
        let options = StoreOptions::new().first(1);
        let stored = cache.store_with(&orphan, &[30, 31], &options);
        let stored = stored.unwrap().wait();
        assert!(matches!(stored.stopped, Some(StoreStop::NoAncestors)));
        seen.push(format!("{:?}", (stored.stored, stored.dropped)));
        let report = load(&cache, &keys, 20);
        seen.push(format!(
            "{:?}",
            (report.blocks, report.wanted, report.from_host, report.bytes)
        ));
        // The middle of a match.
        let found = cache.lookup(&keys).skip(2).truncate(5);
        seen.push(format!(
            "{:?}",
            (found.blocks(), found.blocks_in(TierId::HOST))
        ));
        let report = cache.load(found, &[40, 41, 42]).unwrap();
        for layer in 0..3 {
            assert!(report.wait_layer(layer).is_ok());
        }
        let report = report.wait();
        seen.push(format!("{:?}", (report.blocks, report.wanted)));
        seen.push(format!(
            "{:?}",
            cache.prefetch(&keys).unwrap().wait().blocks
        ));
        let sought = cache.seek(&keys, Duration::from_millis(50)).wait();
        seen.push(format!("{:?}", sought.tiers().collect::<Vec<_>>()));
        drop(sought);
        seen.push(format!("{:?}", cache.tiers()));
        seen.push(format!("{:?}", cache.evict(TierId::HOST, 3).unwrap()));
        seen.push(format!("{:?}", cache.flush()));
        eventually("pins are left", || {
            cache.stats().pinned.values().all(|pins| *pins == 0)
        });
        let mut stats = cache.stats();
        let is_host = |m: &&kvtile_tiers::metrics::MoveStats| m.blocks > 0;
        let moves: Vec<_> = stats.moves.iter().filter(is_host).collect();
        let moves: Vec<_> = moves
            .iter()
            .map(|m| (m.source, m.destination, m.blocks, m.bytes))
            .collect();
        seen.push(format!("{moves:?}"));
        // Times and the capacities of queues differ.
        stats.moves.clear();
        stats.queues.clear();
        seen.push(format!("{stats:?}"));
        seen.push(format!("{:?}", cache.clear().unwrap()));
        seen.push(format!("{:?}", cache.lookup(&keys).blocks()));
        seen
    });
    let [here, there] = seen;
    assert_eq!(here, there);
}

#[test]
fn refusals_are_those_of_a_cache_in_process() {
    let node = Node::new();
    let _daemon = node.start(16);
    let (cache, other) = (node.connect(), node.connect());
    let keys = chain(1, 3);
    store(&cache, &keys, 0);
    let refused = cache.load(cache.lookup(&keys), &[1, 2, 3, 4]);
    assert!(matches!(
        refused,
        Err(TierError::Request(RequestError::TooManyDestinations {
            destinations: 4,
            blocks: 3
        }))
    ));
    let refused = cache.load(cache.lookup(&keys), &[1, 1]);
    assert!(matches!(
        refused,
        Err(TierError::Request(RequestError::EngineBlockTwice {
            block: 1
        }))
    ));
    let refused = cache.store(&keys, &[1, 2, usize::try_from(ENGINE_BLOCKS).unwrap()]);
    assert!(matches!(
        refused,
        Err(TierError::Request(
            RequestError::EngineBlockOutOfRange { .. }
        ))
    ));
    let refused = other.load(cache.lookup(&keys), &[1]);
    assert!(matches!(
        refused,
        Err(TierError::Request(RequestError::OtherCache))
    ));
    let refused = cache.store(&keys, &[1, 2, 3, 4]);
    assert!(matches!(
        refused,
        Err(TierError::Request(RequestError::TooFewKeys { .. }))
    ));
    let refused = cache.evict(TierId::DISK, 1);
    assert!(matches!(
        refused,
        Err(TierError::Request(RequestError::NoSuchTier {
            tier: TierId::DISK
        }))
    ));
    assert!(matches!(
        cache.host_memory(),
        Err(TierError::Request(RequestError::Connected { .. }))
    ));
}

/// A disk below: blocks come back after a restart of the daemon, to clients that live through it.
#[test]
fn a_client_outlives_its_daemon_and_the_disk_has_the_blocks() {
    let node = Node::new();
    let disk = node.folder.path().join("disk");
    let start = || Daemon::start(node.settings(16).disk(&disk, 4 << 20)).unwrap();
    let daemon = start();
    let cache = node.connect();
    let keys = chain(7, 9);
    assert_eq!(store(&cache, &keys, 0).stored, 9);
    let flushed = cache.flush();
    assert_eq!((flushed.written, flushed.durable), (9, true), "{flushed:?}");
    let closed = daemon.stop();
    assert_eq!(closed.len(), 1);
    assert!(closed[0].1.durable, "{closed:?}");
    assert!(!node.socket().exists());
    // Without a daemon every call ends.
    eventually("the connection goes on", || !cache.is_connected());
    assert_eq!(cache.lookup(&keys).blocks(), 0);
    assert_eq!(cache.seek(&keys, Duration::from_secs(1)).wait().blocks(), 0);
    assert!(matches!(
        store(&cache, &keys, 0).stopped,
        Some(StoreStop::Closed)
    ));
    assert!(!cache.flush().durable);
    assert!(cache.clear().is_err());
    assert_eq!(cache.stats().misses[&MissReason::Late], 18);
    let _daemon = start();
    eventually("it does not connect again", || cache.is_connected());
    let found = cache.lookup(&keys);
    assert_eq!(found.blocks_in(TierId::DISK), 9);
    drop(found);
    let report = load(&cache, &keys, 20);
    assert_eq!((report.blocks, report.blocks_from(TierId::DISK)), (9, 9));
    assert_eq!(load(&cache, &keys, 40).from_host, 9);
}

/// Chains that are larger than staging memory, and than host memory.
#[test]
fn stores_pass_through_staging_memory_of_any_size() {
    let node = Node::new();
    let _daemon = node.start(64);
    for slots in [1, 2, 3, 50] {
        let cache = node.connect_with(connect_settings().staging_bytes(slots * stride()));
        let keys = chain(slots, 20);
        assert_eq!(store(&cache, &keys, 0).stored, 20, "{slots} slots");
        assert_eq!(load(&cache, &keys, 30).blocks, 20, "{slots} slots");
        let _ = cache.clear().unwrap();
    }
}

#[test]
fn each_identity_has_its_share_and_one_more_is_refused() {
    let node = Node::new();
    let daemon = Daemon::start(node.settings(32).identities_max(2)).unwrap();
    let connect = |base| {
        let settings = kvtile_tiers::cache::ConnectSettings::new(identity_of(base));
        Cache::connect(node.socket(), settings, engine_layout())
    };
    let (first, second) = (connect(1e4).unwrap(), connect(1e5).unwrap());
    let keys = chain(1, 4);
    store(&first, &keys, 0);
    assert_eq!(second.lookup(&keys).blocks(), 0, "of another identity");
    let host = second.tier_stats(TierId::HOST).unwrap();
    assert_eq!(host.capacity, 16);
    let refused = connect(1e6).unwrap_err().to_string();
    assert!(refused.contains("2 identities"), "{refused}");
    assert!(refused.contains("a-model"), "{refused}");
    assert_eq!(daemon.caches().len(), 2);
    let status = DaemonStatus::of(&node.socket(), Duration::from_secs(5)).unwrap();
    assert_eq!((status.caches.len(), status.sessions.len()), (2, 2));
}

#[test]
fn a_daemon_has_an_eviction_policy_and_quotas_of_tenants() {
    let node = Node::new();
    let quota = |tenant, blocks| TenantQuota {
        tenant: TenantId(tenant),
        blocks,
    };
    for (quotas, problem) in [
        (vec![quota(7, 0)], "a quota"),
        (vec![quota(7, 1), quota(7, 2)], "tenant 7 has two quotas"),
    ] {
        let refused = Daemon::start(node.settings(16).quotas(quotas)).unwrap_err();
        assert!(refused.to_string().contains(problem), "{refused}");
    }
    let settings = node.settings(16).quotas(vec![quota(7, 4)]);
    let settings = settings.disk(node.folder.path().join("disk"), 1 << 20);
    let mut settings = settings.policy(PolicyKind::Lru);
    settings.disk.as_mut().unwrap().policy = PolicyKind::S3Fifo;
    let maker = |of_cache: CacheSettings| {
        assert_eq!(of_cache.policy, PolicyKind::Lru);
        assert_eq!(of_cache.disk.as_ref().unwrap().policy, PolicyKind::S3Fifo);
        Ok(Cache::builder(of_cache))
    };
    let daemon = Daemon::start_with(settings, Arc::new(maker)).unwrap();
    let client = node.connect();
    let (_, served) = daemon.caches().remove(0);
    // One tenant does not push out another.
    let theirs = chain(1, 10);
    store(&client, &theirs, 0);
    let options = StoreOptions::new().tenant(TenantId(7));
    for number in 10..20 {
        let stored = client.store_with(&chain(number, 2), &[20, 21], &options);
        assert_eq!(stored.unwrap().wait().stored, 2);
    }
    let found = client.lookup(&theirs);
    assert_eq!(found.blocks_in(TierId::HOST), 10);
    served.cache().check_integrity();
}

#[test]
fn a_socket_has_one_daemon_and_a_dead_ones_socket_is_replaced() {
    let node = Node::new();
    let daemon = node.start(4);
    let refused = Daemon::start(node.settings(4)).unwrap_err();
    assert!(matches!(refused, DaemonError::InUse { .. }), "{refused}");
    drop(daemon);
    // The file of a daemon that was killed.
    drop(std::os::unix::net::UnixListener::bind(node.socket()).unwrap());
    let daemon = node.start(4);
    drop(node.connect());
    drop(daemon);
    std::fs::write(node.socket(), "text").unwrap();
    let refused = Daemon::start(node.settings(4)).unwrap_err();
    assert!(matches!(refused, DaemonError::NotASocket { .. }));
    assert_eq!(std::fs::read(node.socket()).unwrap(), b"text");
    let refused = Cache::connect(
        node.folder.path().join("none"),
        connect_settings(),
        engine_layout(),
    );
    let refused = refused.unwrap_err().to_string();
    assert!(refused.contains("kvtile serve"), "{refused}");
}

/// Snapshots and events of a client follow the daemon's tiers, also over a restart of the daemon.
#[test]
fn a_client_follows_the_events_of_the_tiers() {
    let node = Node::new();
    let daemon = node.start(16);
    let (writer, reader) = (node.connect(), node.connect());
    let keys = chain(1, 4);
    store(&writer, &keys, 0);
    let mut subscriber = reader.subscribe();
    let snapshot = reader.snapshot();
    let mut stored: Vec<_> = snapshot.blocks.iter().map(|block| block.key).collect();
    stored.sort();
    assert_eq!(stored, keys);
    assert_eq!(
        snapshot
            .blocks
            .iter()
            .filter(|b| b.parent.is_none())
            .count(),
        1
    );
    let mirror = std::cell::RefCell::new(EventMirror::from_snapshot(&snapshot));
    subscriber.resynchronise(&snapshot);
    let subscriber = std::cell::RefCell::new(subscriber);
    let follows = |blocks: usize| {
        let mut events = Vec::new();
        subscriber.borrow_mut().poll(&mut events, 1000).unwrap();
        let mut mirror = mirror.borrow_mut();
        assert!(events.iter().all(|event| mirror.apply(event)));
        mirror.len(TierId::HOST) == blocks
    };
    store(&writer, &chain(2, 3), 10);
    eventually("stored blocks do not come", || follows(7));
    let _ = writer.clear().unwrap();
    eventually("the clearing does not come", || follows(0));
    store(&writer, &keys, 0);
    eventually("stored blocks do not come", || follows(4));
    drop(daemon);
    eventually("blocks of a daemon that is gone stay", || follows(0));
    let _daemon = node.start(16);
    eventually("it does not connect again", || writer.is_connected());
    store(&writer, &chain(3, 5), 20);
    eventually("events of the next daemon do not come", || follows(5));
}

#[test]
fn a_lookup_has_its_options() {
    let node = Node::new();
    let daemon = node.start(16);
    let cache = node.connect();
    let keys = chain(1, 3);
    store(&cache, &keys, 0);
    let options = LookupOptions::new()
        .owner(kvtile_blocks::pool::OwnerId(77))
        .hold(Duration::from_millis(1));
    let found = cache.lookup_with(&keys, &options);
    eventually("no pin is overdue", || !cache.overdue().is_empty());
    assert_eq!(cache.overdue()[0].owner.0, 77);
    drop(found);
    eventually("pins are left", || is_idle(&daemon));
}
