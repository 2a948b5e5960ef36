//! Damaged bytes of a file with checksums never reach memory of a device: they are verified in memory of the host.

use std::fs;

use kvtile_layout::{Shape, Unit, identity::Identity};
use kvtile_memory::MemoryRegion;
use kvtile_standin::{Standin, StandinLeaks, StandinOptions};
use kvtile_transfer::{
    FillPattern, SavedError, TransferError,
    saved::{SaveOptions, SavedCache, save},
};

use crate::world::{DeviceWorld, engine_world};

const SAVED: [usize; 3] = [4, 0, 5];

/// All bytes of the engine's memory.
fn contents(standin: &Standin, memory: &kvtile_device::DeviceMemory) -> Vec<u8> {
    let mut bytes = vec![0; memory.size()];
    assert!(standin.peek(memory.device_address(), &mut bytes));
    bytes
}

#[test]
fn a_flipped_bit_of_a_saved_cache_never_reaches_the_device() {
    let standin = Standin::start(StandinOptions::seeded(8));
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("cache");
    let shape = Shape::key_value(1, 4, 8, 2, 16, Unit::raw(2).unwrap()).unwrap();
    let identity = Identity::new("tiny", "1", &shape).unwrap();
    let (world, memory) = engine_world(&standin);
    let DeviceWorld {
        manager, engine, ..
    } = &world;
    // From the device to the file, and back.
    world.fill(*engine, FillPattern::Distinct { seed: 4 });
    let expected = world.digests(*engine, &SAVED);
    let options = SaveOptions::new(identity.clone(), 24).unwrap();
    save(manager, *engine, &SAVED, &path, &options).unwrap();
    let whole = fs::read(&path).unwrap();
    let data = whole.len() - SAVED.len() * 4096;
    let pairs = [(0, 2), (1, 1), (2, 3)];
    for flipped in 0..=SAVED.len() {
        let mut bytes = whole.clone();
        if flipped < SAVED.len() {
            bytes[data + flipped * 4096 + 97 * flipped + 5] ^= 0x10;
        }
        fs::write(&path, &bytes).unwrap();
        world.fill(*engine, FillPattern::Constant(9));
        let before = contents(&standin, &memory);
        let cache = SavedCache::open(&path, &identity).unwrap();
        let checks = cache.load(manager, *engine, &pairs).unwrap();
        for (check, (block, target)) in checks.into_iter().zip(pairs) {
            let is_damaged = block == flipped;
            match check.result {
                Ok(()) => assert_eq!(world.digests(*engine, &[target])[0], expected[block]),
                Err(TransferError::Saved(SavedError::ChecksumMismatch { .. })) => {}
                Err(error) => panic!("{error}"),
            }
            let untouched = world.digests(*engine, &[0])[0].clone();
            let found = world.digests(*engine, &[target])[0].clone();
            assert_eq!(found == untouched, is_damaged, "block {block}");
        }
        if flipped == SAVED.len() {
            assert_ne!(contents(&standin, &memory), before);
        }
    }
    drop((world, memory));
    assert_eq!(standin.complaints(), []);
    assert_eq!(standin.leaks(), StandinLeaks::default());
}
