//! Two processes over the same memory.
#![expect(clippy::unwrap_used, reason = "tests")]

mod child;
mod common;

use std::{
    io::{Read, Write},
    os::unix::net::{UnixListener, UnixStream},
    sync::Arc,
};

use common::in_memory;
use kvtile_layout::{Shape, Unit, Word};
use kvtile_memory::SharedMemory;
use kvtile_transfer::{
    FillPattern, LayoutDescriptor, LeaseError, LeaseMode, PhysicalLayout, TransferError,
    TransferManager, TransferOptions,
};

fn shape() -> Shape {
    Shape::key_value(5, 4, 16, 2, 64, Unit::raw(2).unwrap()).unwrap()
}

const WORD: &str = "L|KBNHC";

/// The parent fills a shared layout and sends its descriptor. The child binds the same layout to
/// the received memory, copies blocks into another order, and sends their digests.
#[test]
fn another_process_reads_blocks_through_shared_memory() {
    if let Some((role, path)) = child::role() {
        assert_eq!(role, "reader");
        return reader(&path);
    }
    let folder = common::folder();
    let path = folder.path().join("socket");
    let listener = UnixListener::bind(&path).unwrap();
    let name = "another_process_reads_blocks_through_shared_memory";
    let child = child::spawn(name, "reader", path.to_str().unwrap());

    let layout = PhysicalLayout::builder()
        .with_aligned_shape(shape(), 256)
        .layout(WORD.parse::<Word>().unwrap())
        .allocate_shared()
        .build()
        .unwrap();
    let manager = TransferManager::new();
    let shared = manager.register(layout.clone()).unwrap();
    let blocks: Vec<usize> = (0..5).collect();
    manager
        .fill(shared, &blocks, FillPattern::Distinct { seed: 8 })
        .unwrap();

    let lease = manager.lease(shared, &[0], LeaseMode::Read).unwrap();
    let lent = lease.page(0, 0);
    assert!(
        matches!(lent, Err(TransferError::Lease(LeaseError::SharedPages))),
        "{lent:?}"
    );
    drop(lease);

    let ours: Vec<_> = blocks
        .iter()
        .map(|&block| manager.block_digest(shared, block).unwrap())
        .collect();

    let (mut socket, _) = listener.accept().unwrap();
    layout.shared_memory().unwrap().send(&socket).unwrap();
    let json = layout.to_descriptor().to_json_bytes().unwrap();
    socket
        .write_all(&(json.len() as u64).to_le_bytes())
        .unwrap();
    socket.write_all(&json).unwrap();
    for (block, ours) in ours.iter().enumerate() {
        let mut theirs = [0; 16];
        socket.read_exact(&mut theirs).unwrap();
        assert_eq!(&theirs, ours.as_bytes(), "block {block}");
    }
    // The child wrote block 4 over block 0 through its mapping.
    socket.read_exact(&mut [0; 1]).unwrap();
    assert_eq!(Some(&manager.block_digest(shared, 0).unwrap()), ours.last());
    drop(socket);
    child::passes(child);
}

fn reader(path: &str) {
    let mut socket = UnixStream::connect(path).unwrap();
    let memory = SharedMemory::receive(&socket).unwrap();
    let mut length = [0; 8];
    socket.read_exact(&mut length).unwrap();
    let mut json = vec![0; usize::try_from(u64::from_le_bytes(length)).unwrap()];
    socket.read_exact(&mut json).unwrap();
    let descriptor = LayoutDescriptor::from_json_bytes(&json).unwrap();
    let told = PhysicalLayout::from_descriptor(descriptor).unwrap();
    assert!(told.is_remote());

    let shared = PhysicalLayout::builder()
        .with_aligned_shape(told.shape().clone(), 256)
        .layout(told.strided().word().unwrap().clone())
        .over_memory(Arc::new(memory))
        .build()
        .unwrap();
    assert_eq!(shared.layout_fingerprint(), told.layout_fingerprint());
    let manager = TransferManager::new();
    let shared = manager.register(shared).unwrap();
    let mine = manager.register(in_memory(&shape(), "BHLKNC")).unwrap();
    let blocks = [0, 1, 2, 3, 4];
    let turned = [4, 2, 0, 3, 1];
    let done = manager.execute_transfer(shared, &blocks, mine, &turned, TransferOptions::new());
    done.unwrap().wait().unwrap();
    for block in turned {
        let digest = manager.block_digest(mine, block).unwrap();
        socket.write_all(digest.as_bytes()).unwrap();
    }
    let done = manager.execute_transfer(mine, &turned[4..], shared, &[0], TransferOptions::new());
    done.unwrap().wait().unwrap();
    socket.write_all(b"!").unwrap();
    // Waits until the parent has checked.
    assert_eq!(socket.read(&mut [0; 1]).unwrap(), 0);
}
