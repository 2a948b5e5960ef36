//! Clients that lie about groups, pages and stops.

use std::{
    io::{Read, Write},
    os::unix::net::UnixStream,
    path::Path,
    time::{Duration, Instant},
};

use kvtile_blocks::BlockKey;
use kvtile_daemon::{Daemon, DaemonSettings};
use kvtile_daemon_wire::{
    FoundStopFrame, FrameHeader, FrameKind, HoldFrame, LookupFrame, NO_TIME, NumberFrame,
    RefusalCode, RefusalFrame, StopListFrame, StopLookupFrame, StopNoteFrame, StoreFrame,
    WIRE_VERSION, read_frame,
};
use kvtile_layout::identity::GroupRole;
use kvtile_memory::{SharedMemory, SharedReadMemory};
use kvtile_tiers::cache::serving::{HelloBlocks, HelloGroup, HelloMessage, WelcomeMessage};

use super::common::{NAMES, chain, identity, rule, shape};

fn start(folder: &Path) -> Daemon {
    Daemon::start(DaemonSettings::new(folder.join("daemon.sock"), 1 << 20)).unwrap()
}

fn group(group: usize) -> HelloGroup {
    HelloGroup {
        name: NAMES[group].to_owned(),
        rule: rule(group),
        role: GroupRole::Target,
        identity: identity(group),
        share: None,
    }
}

fn send_hello(folder: &Path, groups: Vec<HelloGroup>) -> UnixStream {
    let message = HelloMessage {
        version: WIRE_VERSION,
        blocks: HelloBlocks::Groups {
            chain: None,
            groups,
        },
        name: "a test".to_owned(),
    };
    let json = serde_json::to_vec(&message).unwrap();
    let mut socket = UnixStream::connect(folder.join("daemon.sock")).unwrap();
    let within = Some(Duration::from_secs(20));
    socket.set_read_timeout(within).unwrap();
    let frame = FrameHeader::frame(FrameKind::Hello, 1, |out| out.extend_from_slice(&json));
    socket.write_all(&frame).unwrap();
    socket
}

fn stride(group: usize) -> u64 {
    let bytes = shape(group).block_bytes().unwrap();
    bytes.next_multiple_of(4096)
}

/// A client of the groups "full" and "state" up to the end of the handshake, with two pages of staging memory
/// each.
fn greeted(folder: &Path) -> (UnixStream, Vec<SharedMemory>) {
    let mut socket = send_hello(folder, vec![group(0), group(3)]);
    let (header, payload) = read_frame(&mut socket).unwrap();
    assert_eq!(header.kind, FrameKind::Welcome);
    let welcome: WelcomeMessage = serde_json::from_slice(&payload).unwrap();
    assert_eq!(welcome.groups.len(), 2);
    for _ in 0..2 {
        SharedReadMemory::receive(&socket).unwrap();
    }
    let staging = [0, 3].map(|group| {
        let bytes = usize::try_from(2 * stride(group)).unwrap();
        let memory = SharedMemory::create(bytes).unwrap();
        let frame = NumberFrame { number: 2 }.encode(FrameKind::Staging, 2);
        socket.write_all(&frame).unwrap();
        memory.send(&socket).unwrap();
        let (header, _) = read_frame(&mut socket).unwrap();
        assert_eq!(header.kind, FrameKind::Number);
        memory
    });
    (socket, staging.into())
}

fn refusal(socket: &mut UnixStream) -> RefusalFrame {
    let (header, payload) = read_frame(socket).unwrap();
    assert_eq!(header.kind, FrameKind::Refused);
    RefusalFrame::decode(&payload).unwrap()
}

fn is_closed(socket: &mut UnixStream) -> bool {
    let mut byte = [0];
    !matches!(socket.read(&mut byte), Ok(1))
}

fn lookup(keys: &[BlockKey]) -> StopLookupFrame {
    StopLookupFrame {
        at_most: NO_TIME,
        lookup: LookupFrame {
            owner: 0,
            hold_ms: NO_TIME,
            lifetime_ms: NO_TIME,
            expires: NO_TIME,
            within_ms: 0,
            tokens_per_second: 0.0,
            output_tokens: 0,
            priority: 0,
            partial_tail: false,
            keys: keys.iter().map(|key| *key.as_bytes()).collect(),
        },
    }
}

fn store(keys: &[BlockKey], slots: Vec<u32>) -> StoreFrame {
    StoreFrame {
        first: 0,
        tenant: 0,
        within_ms: NO_TIME,
        lifetime_ms: NO_TIME,
        expires: NO_TIME,
        output_tokens: 0,
        priority: 3,
        hint: 0,
        partial_tail: false,
        slots,
        keys: keys.iter().map(|key| *key.as_bytes()).collect(),
    }
}

/// Stores a stop at 8 tokens: two pages and a state.
fn store_a_stop(socket: &mut UnixStream, keys: &[BlockKey]) {
    let state = FrameHeader::to_group(store(&keys[1..2], vec![0]).encode(5), 1);
    let full = store(&keys[..2], vec![0, 1]).encode(6);
    for frame in [state, full] {
        socket.write_all(&frame).unwrap();
        let (header, _) = read_frame(socket).unwrap();
        assert_eq!(header.kind, FrameKind::Stored);
    }
}

fn find(socket: &mut UnixStream, frame: &StopLookupFrame, number: u64) -> FoundStopFrame {
    socket
        .write_all(&frame.encode(FrameKind::FindStop, number))
        .unwrap();
    let (header, payload) = read_frame(socket).unwrap();
    assert_eq!(
        (header.kind, header.request),
        (FrameKind::FoundStop, number)
    );
    FoundStopFrame::decode(&payload).unwrap()
}

fn stops(socket: &mut UnixStream, frame: &StopLookupFrame) -> Vec<u64> {
    socket
        .write_all(&frame.encode(FrameKind::ListStops, 9))
        .unwrap();
    let (_, payload) = read_frame(socket).unwrap();
    StopListFrame::decode(&payload).unwrap().stops
}

#[test]
fn groups_that_are_none_of_one_cache_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let _daemon = start(folder.path());
    let many = |count: usize| {
        let of = |number: usize| HelloGroup {
            name: format!("group {number:03}").replace(' ', "-"),
            ..group(3)
        };
        (0..count).map(of).collect::<Vec<HelloGroup>>()
    };
    let draft = HelloGroup {
        role: GroupRole::Draft,
        ..group(0)
    };
    let share = HelloGroup {
        share: Some(f64::MAX),
        ..group(0)
    };
    for groups in [
        vec![],
        vec![group(3), group(0)],
        vec![group(0), group(0)],
        vec![draft],
        vec![share],
        many(65),
        // Host memory of 1 MiB has no room for a stop of them.
        vec![HelloGroup {
            rule: kvtile_layout::GroupRule::Window {
                tokens: (1 << 40).try_into().unwrap(),
            },
            ..group(1)
        }],
    ] {
        let count = groups.len();
        let mut socket = send_hello(folder.path(), groups);
        let refused = refusal(&mut socket);
        assert_eq!(refused.code, RefusalCode::Settings, "{count}: {refused:?}");
        assert!(is_closed(&mut socket));
    }
    // More staging memory than the daemon takes, over all groups.
    let mut socket = send_hello(folder.path(), vec![group(0), group(3)]);
    read_frame(&mut socket).unwrap();
    for _ in 0..2 {
        SharedReadMemory::receive(&socket).unwrap();
    }
    let frame = NumberFrame {
        number: (1 << 30) / stride(0) + 1,
    };
    socket
        .write_all(&frame.encode(FrameKind::Staging, 2))
        .unwrap();
    assert_eq!(refusal(&mut socket).code, RefusalCode::Settings);
    // The groups that are good are served after all of them.
    let (mut socket, _staging) = greeted(folder.path());
    let keys = chain(1, 0, 0, 4);
    store_a_stop(&mut socket, &keys);
    assert_eq!(find(&mut socket, &lookup(&keys), 7).stop, 8);
}

#[test]
fn requests_about_groups_that_a_client_does_not_have_end_its_session() {
    let folder = tempfile::tempdir().unwrap();
    let _daemon = start(folder.path());
    let keys = chain(1, 0, 0, 4);
    for number in [2, 64, u16::MAX] {
        for frame in [
            store(&keys, vec![0]).encode(5),
            lookup(&keys).encode(FrameKind::FindStop, 5),
            NumberFrame { number: 1 }.encode(FrameKind::Check, 5),
        ] {
            let (mut socket, _staging) = greeted(folder.path());
            let frame = FrameHeader::to_group(frame, number);
            socket.write_all(&frame).unwrap();
            assert_eq!(refusal(&mut socket).code, RefusalCode::Protocol);
            assert!(is_closed(&mut socket));
        }
    }
}

#[test]
fn a_match_of_one_group_is_none_of_another_one() {
    let folder = tempfile::tempdir().unwrap();
    let daemon = start(folder.path());
    let (mut socket, _staging) = greeted(folder.path());
    let keys = chain(1, 0, 0, 4);
    store_a_stop(&mut socket, &keys);
    let found = find(&mut socket, &lookup(&keys), 20);
    assert_eq!((found.stop, found.groups.len()), (8, 2));
    let hold = |found, first, blocks| HoldFrame {
        found,
        first,
        blocks,
        priority: 3,
        within_ms: NO_TIME,
    };
    // More pages than the group's match, pages of the other group, another number, a group twice.
    for (group, hold) in [
        (0, hold(20, 0, 3)),
        (1, hold(20, 1, 1)),
        (1, hold(20, 0, 2)),
        (0, hold(21, 0, 1)),
        (0, hold(20, u32::MAX, u32::MAX)),
    ] {
        let frame = FrameHeader::to_group(hold.encode(30), group);
        socket.write_all(&frame).unwrap();
        assert_eq!(refusal(&mut socket).code, RefusalCode::Revoked, "{hold:?}");
    }
    for (group, blocks) in [(0, 2), (1, 1)] {
        let frame = FrameHeader::to_group(hold(20, 0, blocks).encode(31 + u64::from(group)), group);
        socket.write_all(&frame).unwrap();
        let (header, _) = read_frame(&mut socket).unwrap();
        assert_eq!(header.kind, FrameKind::Loaded);
    }
    // Slots of the staging memory of a group that it does not have.
    for (group, slots) in [(0, vec![2]), (1, vec![u32::MAX]), (1, vec![0, 0])] {
        let frame = store(&chain(9, 0, 0, 4), slots).encode(40);
        socket
            .write_all(&FrameHeader::to_group(frame, group))
            .unwrap();
        assert_eq!(refusal(&mut socket).code, RefusalCode::Failed);
    }
    drop(socket);
    let begin = Instant::now();
    let pinned = || {
        let caches = daemon.status().caches;
        let pins = caches.iter().flat_map(|cache| cache.stats.pinned.values());
        pins.sum::<u64>()
    };
    while pinned() > 0 || !daemon.status().sessions.is_empty() {
        assert!(begin.elapsed() < Duration::from_secs(60), "pins are left");
        std::thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn stops_that_are_none_change_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let daemon = start(folder.path());
    let (mut socket, _staging) = greeted(folder.path());
    let keys = chain(1, 0, 0, 4);
    store_a_stop(&mut socket, &keys);
    for is_stored in [true, false, true] {
        for stops in [vec![], vec![0, 1, 7, 24, 1 << 40, u64::MAX], vec![8; 1000]] {
            let frame = StopNoteFrame {
                is_stored,
                stops,
                keys: keys.iter().map(|key| *key.as_bytes()).collect(),
            };
            socket.write_all(&frame.encode(0)).unwrap();
        }
    }
    assert_eq!(stops(&mut socket, &lookup(&keys)), [8]);
    for (at_most, stop) in [(0, 0), (7, 0), (8, 8), (NO_TIME - 1, 8), (NO_TIME, 8)] {
        let frame = StopLookupFrame {
            at_most,
            ..lookup(&keys)
        };
        assert_eq!(find(&mut socket, &frame, 50).stop, stop, "{at_most}");
    }
    assert_eq!(find(&mut socket, &lookup(&[]), 51).stop, 0);
    let served = daemon.caches().remove(0).1;
    let groups = served.group_cache().unwrap();
    assert_eq!(groups.stats().known_stops, 1);
    groups.check_integrity();
}
