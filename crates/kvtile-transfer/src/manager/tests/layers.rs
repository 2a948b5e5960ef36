//! Transfers and leases of different layers of one block.

use kvtile_layout::RangePair;

use super::world::{BLOCK_BYTES, LanesWorld, arrives, world};
use crate::{
    FillPattern, LayoutHandle, LeaseError, LeaseMode, TransferError, TransferOptions, lease::lock,
};

/// The bytes of a layer of block 3 of `flat`, under a lease of that layer alone.
fn layer_of(world: &LanesWorld, flat: LayoutHandle, layer: u64) -> Vec<u8> {
    let range = layer..layer + 1;
    let lease = world
        .manager
        .lease_layers(flat, &[3], range, LeaseMode::Read);
    lease.unwrap().part(3).unwrap().to_vec()
}

/// Layers of a block are loaded from a file. During that transfer, arrived layers are copied on,
/// and other layers come from memory. Each layer gets the bytes of its own transfer.
#[test]
fn transfers_of_different_layers_of_a_block_are_in_flight_at_once() {
    let world = world(4);
    let [flat, other] = [world.flat(), world.flat()];
    let ids: Vec<usize> = (0..8).collect();
    for (handle, seed) in [(world.disk, 11), (other, 12)] {
        let pattern = FillPattern::Distinct { seed };
        world.manager.fill(handle, &ids, pattern).unwrap();
    }
    let zeros = FillPattern::Constant(0);
    world.manager.fill(flat, &[3], zeros).unwrap();
    let copy = |from, to, layers| {
        let options = TransferOptions::new().layers(layers);
        world
            .manager
            .execute_transfer(from, &[3], to, &[3], options)
    };
    let gate = world.file.shut(1);
    // Layers 0 and 1 come from the file, and stop at the gate.
    let slow = copy(world.disk, flat, RangePair::same(0, 2)).unwrap();
    gate.wait_until_stopped(1);
    // During that transfer, layer 2 comes from memory, is copied on, and is read under a lease.
    for (from, to) in [(other, flat), (flat, world.b)] {
        let copied = copy(from, to, RangePair::same(2, 1)).unwrap();
        copied.wait().unwrap();
    }
    assert_eq!(layer_of(&world, flat, 2), layer_of(&world, other, 2));
    // Layer 3 is written through a lease.
    let write = world
        .manager
        .lease_layers(flat, &[3], 3..4, LeaseMode::Write);
    let mut write = write.unwrap();
    write.part_mut(3).unwrap().fill(0x77);
    lock(&world.manager.ledger).check_integrity();
    assert!(!slow.is_complete());
    for layers in [0..1, 1..2, 1..3, 0..4, 2..4] {
        let lease = world
            .manager
            .lease_layers(flat, &[3], layers, LeaseMode::Read);
        let held = lease.map(drop).unwrap_err();
        assert!(matches!(
            held,
            TransferError::Lease(LeaseError::BlockLeased { block: 3, .. })
        ));
    }
    let whole = world.manager.lease(flat, &[3], LeaseMode::Read);
    assert!(matches!(
        whole.map(drop),
        Err(TransferError::Lease(LeaseError::BlockLeased { .. }))
    ));
    // The source layers of the transfer are held too; other layers of the block are not.
    let source = |layers| {
        world
            .manager
            .lease_layers(world.disk, &[3], layers, LeaseMode::Write)
    };
    assert!(source(1..2).is_err() && source(2..4).is_ok());
    gate.open();
    arrives(&slow);
    drop(write);
    let expected = copy(world.disk, other, RangePair::same(0, 2)).unwrap();
    expected.wait().unwrap();
    for layer in 0..3 {
        let [found, expected] = [flat, other].map(|handle| layer_of(&world, handle, layer));
        assert_eq!(
            (found.len(), &found),
            (BLOCK_BYTES / 4, &expected),
            "layer {layer}"
        );
        assert_ne!(found, vec![0; found.len()]);
    }
    assert_eq!(layer_of(&world, flat, 3), vec![0x77; BLOCK_BYTES / 4]);
    lock(&world.manager.ledger).check_integrity();
}

/// A layer is written through a lease while a transfer reads another layer of the same block.
#[test]
fn a_layer_is_written_beside_a_transfer_that_reads_another() {
    let world = world(4);
    let flat = world.flat();
    let pattern = FillPattern::Distinct { seed: 21 };
    world.manager.fill(flat, &[3, 4], pattern).unwrap();
    let before: Vec<Vec<u8>> = (0..4).map(|layer| layer_of(&world, flat, layer)).collect();
    let gate = world.file.shut(1);
    let options = TransferOptions::new().layers(RangePair::same(0, 1));
    let disk = world.disk;
    let slow = world
        .manager
        .execute_transfer(flat, &[3], disk, &[3], options);
    let slow = slow.unwrap();
    gate.wait_until_stopped(1);
    let write = |layers| {
        world
            .manager
            .lease_layers(flat, &[3, 4], layers, LeaseMode::Write)
    };
    assert!(matches!(
        write(0..2).map(drop),
        Err(TransferError::Lease(LeaseError::BlockLeased {
            block: 3,
            ..
        }))
    ));
    let mut lease = write(1..2).unwrap();
    assert_eq!(lease.part(3).unwrap(), before[1]);
    lease.page_mut(3, 1).unwrap().fill(0x55);
    // A layer is copied to another layer of the same block, but never to itself.
    let inside = |source, destination| {
        let layers = RangePair {
            source,
            destination,
            count: 1,
        };
        let options = TransferOptions::new().layers(layers);
        let moved = world
            .manager
            .execute_transfer(flat, &[3], flat, &[3], options);
        moved.and_then(|moved| moved.wait()).map(drop)
    };
    inside(0, 3).unwrap();
    let itself = inside(2, 2);
    assert!(matches!(
        itself,
        Err(TransferError::Lease(LeaseError::SameBlock { block: 3 }))
    ));
    assert!(matches!(
        inside(3, 0),
        Err(TransferError::Lease(LeaseError::BlockLeased {
            block: 3,
            held: "being read",
            ..
        }))
    ));
    gate.open();
    arrives(&slow);
    drop(lease);
    // The file contains the bytes that the layer held.
    let options = TransferOptions::new().layers(RangePair::same(0, 1));
    let back = world
        .manager
        .execute_transfer(disk, &[3], flat, &[5], options);
    back.unwrap().wait().unwrap();
    let lease = world.manager.lease(flat, &[3, 5], LeaseMode::Read).unwrap();
    let layers = [(5, 0), (3, 0), (3, 1), (3, 2), (3, 3)];
    let found = layers.map(|(block, layer)| lease.page(block, layer).unwrap().to_vec());
    let written = vec![0x55; BLOCK_BYTES / 4];
    let kept = |layer: usize| before[layer].clone();
    assert_eq!(found, [kept(0), kept(0), written, kept(2), kept(0)]);
    lock(&world.manager.ledger).check_integrity();
}
