//! Blocks and layers while their transfers are in flight.

use std::{
    collections::HashSet,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

use kvtile_layout::{RangePair, Shape, StridedLayout, Unit, Word, identity::Fingerprint};
use kvtile_memory::{OwnedMemoryRegion, SystemMemory};
use kvtile_random::SplitMix64;
use kvtile_transfer::{
    FillPattern, LayoutHandle, LeaseError, LeaseMode, PhysicalLayout, RegisterError, TransferError,
    TransferManager, TransferOptions,
};

use crate::{
    block_on,
    common::in_memory,
    end,
    gated::{GatedManager, gated},
    shape,
};

/// Pitfall 20: a block in flight can be neither read nor written, and is free when the completion
/// reports the end.
#[test]
fn blocks_in_flight_are_refused_until_the_completion() {
    let gated = gated(3);
    let GatedManager {
        manager,
        file,
        memory,
        ..
    } = &gated;
    let gate = gated.shut();
    let completion = gated.start(&[0, 1]);
    let lease = |handle: LayoutHandle, block, mode| manager.lease(handle, &[block], mode).map(drop);
    for block in [0, 1] {
        let reused = lease(*memory, block, LeaseMode::Write).unwrap_err();
        assert!(
            matches!(&reused, TransferError::Lease(LeaseError::BlockLeased { block: b, .. }) if *b == block as u64),
            "{reused}"
        );
        lease(*memory, block, LeaseMode::Read).unwrap();
        lease(*file, block, LeaseMode::Read).unwrap_err();
        lease(*file, block, LeaseMode::Write).unwrap_err();
    }
    lease(*memory, 2, LeaseMode::Write).unwrap();
    lease(*file, 2, LeaseMode::Write).unwrap();
    let overlapping = [
        (*memory, 2, *file, 1),
        (*file, 1, *memory, 2),
        (*file, 2, *memory, 0),
    ];
    for (from, source, to, target) in overlapping {
        let options = TransferOptions::new();
        let refused = manager.execute_transfer(from, &[source], to, &[target], options);
        assert!(matches!(
            refused,
            Err(TransferError::Lease(LeaseError::BlockLeased { .. }))
        ));
    }
    assert!(matches!(
        manager.unregister(*memory),
        Err(TransferError::Register(RegisterError::LayoutInUse {
            leases: 1,
            ..
        }))
    ));
    let fill = manager.fill(*memory, &[2, 1], FillPattern::Constant(0));
    assert!(matches!(
        fill,
        Err(TransferError::Lease(LeaseError::BlockLeased {
            block: 1,
            ..
        }))
    ));
    gate.open();
    end(&completion).unwrap();
    for handle in [*memory, *file] {
        lease(handle, 0, LeaseMode::Write).unwrap();
    }
    manager.unregister(*memory).unwrap();
}

/// The guarantee of `wait_layer(n)`, checked from another thread that reads the memory directly, as
/// an engine does. All bytes of layer n have arrived; later layers may still be in flight.
#[test]
fn a_layer_that_is_done_is_at_its_destination() {
    let shape = shape(6);
    let word: Word = "L|KBNHC".parse().unwrap();
    let strided = StridedLayout::resolve(&word, &shape, 1).unwrap();
    let regions: Vec<OwnedMemoryRegion> = strided
        .region_bytes()
        .iter()
        .map(|&bytes| {
            let bytes = usize::try_from(bytes).unwrap();
            Arc::new(SystemMemory::allocate(bytes).unwrap()) as OwnedMemoryRegion
        })
        .collect();
    let engine = PhysicalLayout::builder()
        .with_shape(shape.clone())
        .layout(word)
        .with_memory_regions(regions.clone())
        .build()
        .unwrap();
    let manager = TransferManager::new();
    let engine = manager.register(engine).unwrap();
    let host = manager.register(in_memory(&shape, "L|KBNHC")).unwrap();
    let ids: Vec<usize> = (0..6).collect();
    for round in 0..20 {
        let pattern = FillPattern::Distinct { seed: round };
        manager.fill(host, &ids, pattern).unwrap();
        let options = TransferOptions::new().layer_by_layer(true);
        let layers = RangePair::same(1, 5);
        let options = options.layers(layers);
        let done = manager
            .execute_transfer(host, &ids, engine, &ids, options)
            .unwrap();
        assert_eq!(done.num_layers(), 5);
        for layer in 0..5 {
            done.wait_layer(layer).unwrap();
            assert!(done.layers_done() > layer);
            let region = regions.get(layer + 1).unwrap();
            let pointer = std::ptr::with_exposed_provenance::<u8>(region.addr());
            // SAFETY: the region lives, and a completed layer is not written any more.
            let found = unsafe { std::slice::from_raw_parts(pointer, region.size()) }.to_vec();
            let lease = manager.lease(host, &ids, LeaseMode::Read).unwrap();
            let expected = lease_region(&manager, host, &lease, layer + 1);
            assert!(found == expected, "layer {layer} of round {round}");
        }
        end(&done).unwrap();
    }
}

/// The bytes of one region of a leased layout.
fn lease_region(
    manager: &TransferManager,
    handle: LayoutHandle,
    lease: &kvtile_transfer::BlockLease,
    region: usize,
) -> Vec<u8> {
    assert_eq!(lease.mode(), LeaseMode::Read);
    let layout = manager.layout(handle).unwrap();
    let region = layout.memory_regions().get(region).unwrap();
    let pointer = std::ptr::with_exposed_provenance::<u8>(region.addr());
    // SAFETY: the region lives, and the lease on all blocks keeps writers away.
    unsafe { std::slice::from_raw_parts(pointer, region.size()) }.to_vec()
}

/// Threads that copy, lease and fill concurrently: every refusal is a lease conflict, and every
/// copied block holds one pattern from its first to its last byte.
#[test]
fn threads_on_one_manager_never_see_mixed_blocks() {
    let shape = Shape::key_value(8, 2, 16, 4, 256, Unit::raw(2).unwrap()).unwrap();
    let manager = Arc::new(TransferManager::new());
    let words = ["L|KBNHC", "BHLKNC", "BLKNHC"];
    let handles = words.map(|word| manager.register(in_memory(&shape, word)).unwrap());
    for handle in handles {
        let ids: Vec<usize> = (0..8).collect();
        manager
            .fill(handle, &ids, FillPattern::Constant(0))
            .unwrap();
    }
    let known: HashSet<Fingerprint> = (0..=250)
        .map(|byte| {
            let [handle, ..] = handles;
            manager
                .fill(handle, &[0], FillPattern::Constant(byte))
                .unwrap();
            manager.block_digest(handle, 0).unwrap()
        })
        .collect();
    let copied = AtomicUsize::new(0);
    thread::scope(|scope| {
        for seed in 0..4u64 {
            let (manager, copied, known) = (&manager, &copied, &known);
            scope.spawn(move || {
                wander((manager, known, copied), handles, seed);
            });
        }
    });
    assert!(copied.load(Ordering::Relaxed) > 50);
    for handle in handles {
        manager.unregister(handle).unwrap();
    }
}

/// One thread of the test above: 300 random steps.
fn wander(
    (manager, known, copied): (&TransferManager, &HashSet<Fingerprint>, &AtomicUsize),
    handles: [LayoutHandle; 3],
    seed: u64,
) {
    let mut numbers = SplitMix64::new(seed);
    let mut below = move |count: usize| numbers.index(count);
    for step in 0..300u64 {
        let (from, to) = (
            *handles.get(below(3)).unwrap(),
            *handles.get(below(3)).unwrap(),
        );
        let (a, b) = (below(8), below(8));
        let byte = u8::try_from((step * 4 + seed) % 251).unwrap();
        let refused = match below(3) {
            0 => manager.fill(to, &[b], FillPattern::Constant(byte)).err(),
            1 => match manager.block_digest(to, b) {
                Ok(digest) => {
                    assert!(known.contains(&digest), "mixed content in block {b}");
                    None
                }
                Err(error) => Some(error),
            },
            _ => {
                let options = TransferOptions::new().verify(true);
                match manager.execute_transfer(from, &[a], to, &[b], options) {
                    Ok(done) => {
                        block_on(done).unwrap();
                        copied.fetch_add(1, Ordering::Relaxed);
                        None
                    }
                    Err(error) => Some(error),
                }
            }
        };
        let lease = |e: &TransferError| {
            matches!(
                e,
                TransferError::Lease(LeaseError::BlockLeased { .. })
                    | TransferError::Lease(LeaseError::SameBlock { .. })
            )
        };
        assert!(refused.as_ref().is_none_or(lease), "{refused:?}");
    }
}
