//! Peers that send anything.

use std::{
    io::{Read, Write},
    os::unix::net::UnixStream,
    time::Duration,
};

use kvtile_daemon::Daemon;
use kvtile_daemon_wire::{
    FrameHeader, FrameKind, HoldFrame, LookupFrame, NO_TIME, NumberFrame, RefusalCode,
    RefusalFrame, StoreFrame, WIRE_VERSION, read_frame,
};
use kvtile_memory::{SharedMemory, SharedReadMemory};
use kvtile_tiers::cache::serving::{HelloBlocks, HelloMessage, WelcomeMessage};

use super::common::{Node, chain, eventually, identity, is_idle, load, shape, store, stride};

fn hello(version: u32) -> Vec<u8> {
    let message = HelloMessage {
        version,
        blocks: HelloBlocks::Plain {
            identity: Box::new(identity()),
            shape: Box::new(shape(1)),
        },
        name: "a test".to_owned(),
    };
    let json = serde_json::to_vec(&message).unwrap();
    FrameHeader::frame(FrameKind::Hello, 1, |out| out.extend_from_slice(&json))
}

fn connect(node: &Node) -> UnixStream {
    let socket = UnixStream::connect(node.socket()).unwrap();
    let within = Some(Duration::from_secs(20));
    socket.set_read_timeout(within).unwrap();
    socket
}

/// A client up to the end of the handshake, with staging memory of `slots` blocks.
fn greeted(node: &Node, slots: u64) -> (UnixStream, SharedMemory) {
    let mut socket = connect(node);
    socket.write_all(&hello(WIRE_VERSION)).unwrap();
    let (header, payload) = read_frame(&mut socket).unwrap();
    assert_eq!(header.kind, FrameKind::Welcome);
    let _: WelcomeMessage = serde_json::from_slice(&payload).unwrap();
    let _pool = SharedReadMemory::receive(&socket).unwrap();
    let bytes = usize::try_from(slots * stride()).unwrap();
    let staging = SharedMemory::create(bytes).unwrap();
    let frame = NumberFrame { number: slots };
    socket
        .write_all(&frame.encode(FrameKind::Staging, 2))
        .unwrap();
    staging.send(&socket).unwrap();
    let (header, _) = read_frame(&mut socket).unwrap();
    assert_eq!(header.kind, FrameKind::Number);
    (socket, staging)
}

fn refusal(socket: &mut UnixStream) -> RefusalFrame {
    let (header, payload) = read_frame(socket).unwrap();
    assert_eq!(header.kind, FrameKind::Refused);
    RefusalFrame::decode(&payload).unwrap()
}

/// Whether the daemon has closed the socket.
fn is_closed(socket: &mut UnixStream) -> bool {
    let mut byte = [0];
    !matches!(socket.read(&mut byte), Ok(1))
}

#[test]
fn other_bytes_end_the_session_and_hurt_no_other() {
    let node = Node::new();
    let daemon = node.start(16);
    let cache = node.connect();
    let keys = chain(1, 3);
    store(&cache, &keys, 0);
    let mut bytes = vec![0_u8; 400];
    for (index, byte) in bytes.iter_mut().enumerate() {
        *byte = index.wrapping_mul(37).to_le_bytes()[0];
    }
    for garbage in [&bytes[..], b"GET / HTTP/1.1\r\n\r\n", &[0xff; 64], &[0; 64]] {
        let mut socket = connect(&node);
        let _ = socket.write_all(garbage);
        let _ = socket.shutdown(std::net::Shutdown::Write);
        let mut rest = Vec::new();
        let _ = socket.read_to_end(&mut rest);
        // After the handshake too.
        let (mut socket, _staging) = greeted(&node, 2);
        let _ = socket.write_all(garbage);
        let _ = socket.shutdown(std::net::Shutdown::Write);
        let _ = socket.read_to_end(&mut rest);
    }
    assert_eq!(load(&cache, &keys, 20).blocks, 3);
    eventually("sessions are left", || daemon.status().sessions.len() == 1);
}

#[test]
fn a_handshake_out_of_order_is_refused() {
    let node = Node::new();
    let _daemon = node.start(4);
    let mut socket = connect(&node);
    socket.write_all(&hello(WIRE_VERSION + 1)).unwrap();
    let refused = refusal(&mut socket);
    assert_eq!(refused.code, RefusalCode::Version);
    assert_eq!(refused.first, u64::from(WIRE_VERSION));
    assert!(is_closed(&mut socket));
    let mut socket = connect(&node);
    let frame = NumberFrame { number: 1 };
    socket
        .write_all(&frame.encode(FrameKind::Check, 1))
        .unwrap();
    assert_eq!(refusal(&mut socket).code, RefusalCode::Protocol);
    // Staging memory that is smaller than its blocks, and too large.
    for (slots, bytes) in [(4, 4096), (1 << 40, 4096), (0, 4096)] {
        let mut socket = connect(&node);
        socket.write_all(&hello(WIRE_VERSION)).unwrap();
        read_frame(&mut socket).unwrap();
        let _pool = SharedReadMemory::receive(&socket).unwrap();
        let frame = NumberFrame { number: slots };
        socket
            .write_all(&frame.encode(FrameKind::Staging, 2))
            .unwrap();
        let _ = SharedMemory::create(bytes).unwrap().send(&socket);
        assert_eq!(refusal(&mut socket).code, RefusalCode::Settings, "{slots}");
        assert!(is_closed(&mut socket));
    }
}

#[test]
fn requests_for_what_a_client_does_not_have_are_refused() {
    let node = Node::new();
    let daemon = node.start(16);
    let cache = node.connect();
    let keys = chain(1, 3);
    store(&cache, &keys, 0);
    let (mut socket, _staging) = greeted(&node, 2);
    let mut lookup = LookupFrame {
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
    };
    socket
        .write_all(&lookup.encode(FrameKind::Lookup, 10))
        .unwrap();
    read_frame(&mut socket).unwrap();
    // More blocks than the match has, and a match of another client's number.
    for (found, first, blocks) in [(10, 0, 4), (10, u32::MAX, u32::MAX), (11, 0, 1)] {
        let hold = HoldFrame {
            found,
            first,
            blocks,
            priority: 255,
            within_ms: NO_TIME,
        };
        socket.write_all(&hold.encode(12)).unwrap();
        assert_eq!(refusal(&mut socket).code, RefusalCode::Revoked);
    }
    // Slots that are not there, twice, and more of them than keys.
    for slots in [vec![2], vec![u32::MAX], vec![0, 0], vec![0, 1, 2, 3, 4]] {
        let frame = StoreFrame {
            first: 0,
            tenant: 0,
            within_ms: NO_TIME,
            lifetime_ms: NO_TIME,
            expires: NO_TIME,
            output_tokens: 0,
            priority: 0,
            hint: 0,
            partial_tail: false,
            slots,
            keys: chain(9, 3).iter().map(|key| *key.as_bytes()).collect(),
        };
        socket.write_all(&frame.encode(13)).unwrap();
        assert_eq!(refusal(&mut socket).code, RefusalCode::Failed);
    }
    assert_eq!(cache.lookup(&chain(9, 3)).blocks(), 0);
    // A seek that waits for ever, and then the end of the client.
    lookup.within_ms = NO_TIME;
    socket
        .write_all(&lookup.encode(FrameKind::Seek, 14))
        .unwrap();
    drop(socket);
    eventually("pins are left", || is_idle(&daemon));
    assert_eq!(load(&cache, &keys, 20).blocks, 3);
}

#[test]
fn a_client_that_floods_is_refused_and_one_that_reads_nothing_ends() {
    let node = Node::new();
    let daemon = Daemon::start(node.settings(16).requests_max(4)).unwrap();
    let cache = node.connect();
    let keys = chain(1, 3);
    store(&cache, &keys, 0);
    let (mut socket, _staging) = greeted(&node, 2);
    let lookup = LookupFrame {
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
    };
    // Matches above the limit have no blocks.
    for number in 0..100 {
        socket
            .write_all(&lookup.encode(FrameKind::Lookup, number))
            .unwrap();
        read_frame(&mut socket).unwrap();
    }
    let matches = |daemon: &Daemon| {
        let sessions = daemon.status().sessions;
        sessions.iter().map(|session| session.matches).max()
    };
    assert_eq!(matches(&daemon), Some(4));
    // Requests whose replies nothing reads: the socket fills up, and the session ends.
    socket
        .set_write_timeout(Some(Duration::from_secs(30)))
        .unwrap();
    let frame = lookup.encode(FrameKind::Lookup, 1);
    while socket.write_all(&frame).is_ok() {}
    drop(socket);
    eventually("pins are left", || is_idle(&daemon));
    assert_eq!(load(&cache, &keys, 20).blocks, 3);
}
