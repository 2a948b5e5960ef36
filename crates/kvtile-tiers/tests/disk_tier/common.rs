//! Shared helpers: an identity, and blocks whose bytes differ at every offset, both from a number.

use kvtile_blocks::BlockKey;
use kvtile_layout::{
    Shape, StridedLayout, Unit,
    identity::{Identity, LayoutIdentity, Rope},
};
use kvtile_random::mix;
use kvtile_tiers::{
    disk::{RecoveredBlocks, SlotMiss, SlotStore, SlotStoreSettings, SlotWrite, StoreIdentity},
    tier::BlockPieces,
};

/// An identity whose blocks have `16 * heads * 64 * 2 * 2 * 2` bytes.
pub(crate) fn identity(heads: u64, word: &str, base: f64) -> StoreIdentity {
    let unit = Unit::new("bf16", 2, 1).unwrap();
    let shape = Shape::key_value(4, 2, 16, heads, 64, &unit).unwrap();
    let rope = Rope::new("llama3", base).unwrap();
    let logical = Identity::new("toy", "0123abc", &shape)
        .unwrap()
        .with_rope(rope);
    let layout = StridedLayout::resolve(&word.parse().unwrap(), &shape, 1).unwrap();
    StoreIdentity {
        logical,
        block_layout: LayoutIdentity::of_block(&layout),
        pieces: cut(layout.region_bytes()[0] / 4),
    }
}

/// The identity of most tests.
pub(crate) fn usual() -> StoreIdentity {
    identity(2, "BHLKNC", 10_000.0)
}

/// [`usual`] with another block size, for tests that need small blocks. The layout has a different
/// size, which the store does not check.
pub(crate) fn sized(block_bytes: u64) -> StoreIdentity {
    StoreIdentity {
        pieces: cut(block_bytes),
        ..usual()
    }
}

/// Three pieces; the first two have the same length.
pub(crate) fn cut(block_bytes: u64) -> BlockPieces {
    match block_bytes / 4 {
        0 => BlockPieces::whole(block_bytes),
        quarter => BlockPieces::ending_at(&[quarter, 2 * quarter, block_bytes]).unwrap(),
    }
}

/// Bytes of a record for a block of one or of three pieces.
pub(crate) fn record_bytes(identity: &StoreIdentity) -> u64 {
    match identity.pieces.count() {
        1 => 64,
        _ => 128,
    }
}

/// Settings with room for `places` places.
pub(crate) fn room_for(places: u64, identity: &StoreIdentity) -> SlotStoreSettings {
    let slot = identity.block_bytes().next_multiple_of(4096);
    // Folder, lock and two manifests of two pages each, and the records.
    let fixed = 6 * 4096 + (places * record_bytes(identity)).next_multiple_of(4096);
    SlotStoreSettings::new(fixed + places * slot)
}

/// The key of block `number`.
pub(crate) fn key(number: u64) -> BlockKey {
    let mut bytes = [0xa5; 16];
    bytes[..8].copy_from_slice(&mix(number).to_le_bytes());
    BlockKey::from_bytes(bytes)
}

/// The bytes of block `number`, different at every offset.
pub(crate) fn fill(number: u64, bytes: &mut [u8]) {
    for (offset, chunk) in (0..).zip(bytes.chunks_mut(8)) {
        let word = mix(number.wrapping_mul(0x9e37) ^ (offset << 20)).to_le_bytes();
        chunk.copy_from_slice(&word[..chunk.len()]);
    }
}

/// The bytes of block `number`.
pub(crate) fn content(number: u64, identity: &StoreIdentity) -> Vec<u8> {
    let mut bytes = vec![0; usize::try_from(identity.block_bytes()).unwrap()];
    fill(number, &mut bytes);
    bytes
}

/// A write of block `number` of one chain to `slot`.
pub(crate) fn write(slot: u32, number: u64, bytes: &[u8]) -> SlotWrite<'_> {
    SlotWrite {
        slot,
        key: key(number),
        parent: number.checked_sub(1).map(key),
        position: u32::try_from(number).unwrap(),
        tenant: 7,
        bytes,
    }
}

/// The number of the block that `slot` holds, if it is one of these.
pub(crate) fn held(
    store: &SlotStore,
    slot: u32,
    mut numbers: impl Iterator<Item = u64>,
) -> Option<u64> {
    numbers.find(|number| store.holds(slot, &key(*number)))
}

/// Reads the blocks below `numbers` that slots hold. Returns each slot with the outcome.
pub(crate) fn verify(store: &SlotStore, numbers: u64) -> Vec<(u32, Result<(), SlotMiss>)> {
    let mut buffer = vec![0; usize::try_from(store.block_bytes()).unwrap()];
    let held = (0..store.slots()).filter_map(|slot| Some((slot, held(store, slot, 0..numbers)?)));
    held.map(|(slot, number)| (slot, store.read(slot, &key(number), &mut buffer)))
        .collect()
}

/// Writes blocks `first..first + count` of a chain to the slots of the same numbers, and syncs.
pub(crate) fn store_chain(store: &SlotStore, identity: &StoreIdentity, first: u64, count: u64) {
    for number in first..first + count {
        let bytes = content(number, identity);
        let slot = u32::try_from(number).unwrap();
        let written = store.write(&[write(slot, number, &bytes)]);
        assert!(written.failed.is_empty(), "{:?}", written.failed);
    }
    let synced = store.sync();
    assert!(synced.failure.is_none(), "{:?}", synced.failure);
    store.check_integrity();
}

/// Reads every recovered block and compares all of its bytes.
pub(crate) fn check_offered(
    store: &SlotStore,
    recovered: &RecoveredBlocks,
    identity: &StoreIdentity,
) {
    let mut buffer = vec![0; usize::try_from(identity.block_bytes()).unwrap()];
    for entry in &recovered.entries {
        store.read(entry.slot, &entry.key, &mut buffer).unwrap();
        let number = u64::from(entry.position);
        assert_eq!(entry.key, key(number));
        assert!(buffer == content(number, identity), "block {number}");
    }
}

/// A changed manifest with a valid checksum.
pub(crate) fn forged(manifest: &str, change: &dyn Fn(&str) -> String) -> String {
    let compact: String = manifest.lines().map(str::trim_start).collect();
    let compact = compact.replace("\": ", "\":");
    let (_, rest) = compact.split_once("{\"manifest\":").unwrap();
    let (body, _) = rest.rsplit_once(",\"checksum\":").unwrap();
    let body = change(body);
    let checksum = crc_fast::checksum(crc_fast::CrcAlgorithm::Crc64Nvme, body.as_bytes());
    format!("{{\"manifest\":{body},\"checksum\":\"{checksum:016x}\"}}")
}
