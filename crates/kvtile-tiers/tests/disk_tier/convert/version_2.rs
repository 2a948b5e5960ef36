//! Conversions of folders of the current version to another layout.

use kvtile_layout::{StridedLayout, identity::LayoutIdentity};
use kvtile_tiers::{
    disk::{Inspection, SlotStore, SlotStoreSettings, SlotWrite, StoreIdentity},
    tier::BlockPieces,
};

use super::*;

/// Three layers of 64 KiB, and so three pieces in layouts with layers outermost.
fn large_shape() -> Shape {
    let unit = Unit::new("bf16", 2, 1).unwrap();
    Shape::key_value(1, 3, 16, 8, 128, &unit).unwrap()
}

fn large_content(number: u64, word: &str) -> Vec<u8> {
    content_of(number, word, &|axis| match axis {
        'L' => 3,
        'K' => 2,
        'H' => 8,
        'N' => 16,
        _ => 128,
    })
}

/// A folder with a chain of blocks in the layout `word`, with these bytes.
fn stored(
    path: &Path,
    (shape, word): (&Shape, &str),
    blocks: u64,
    bytes: impl Fn(u64) -> Vec<u8>,
) -> SlotStore {
    let layout = StridedLayout::resolve(&word.parse().unwrap(), shape, 1).unwrap();
    let identity = StoreIdentity {
        logical: Identity::new("toy", "0123abc", shape).unwrap(),
        block_layout: LayoutIdentity::of_block(&layout),
        pieces: BlockPieces::of_layout(&layout).unwrap(),
    };
    let slot = identity.block_bytes().next_multiple_of(4096);
    let settings = SlotStoreSettings::new((blocks + blocks / 32 + 4) * (slot + 1024) + (1 << 16));
    let (store, _) = SlotStore::create_or_open(path, &settings, &identity).unwrap();
    for number in 0..blocks {
        let bytes = bytes(number);
        let slot = u32::try_from(number).unwrap();
        let written = store.write(&[SlotWrite {
            slot,
            key: key(number),
            parent: number.checked_sub(1).map(key),
            position: slot,
            tenant: 3,
            bytes: &bytes,
        }]);
        assert!(written.failed.is_empty());
    }
    assert!(store.sync().failure.is_none());
    store
}

fn check(path: &Path, blocks: u64, bytes: impl Fn(u64) -> Vec<u8>) -> Inspection {
    let inspection = Inspection::open(path).unwrap();
    let group = inspection.only().unwrap();
    assert_eq!(group.blocks().len() as u64, blocks);
    let mut buffer = vec![0; usize::try_from(group.manifest().block_bytes()).unwrap()];
    for (number, block) in (0..).zip(group.blocks()) {
        assert_eq!(block.key, key(number));
        group
            .read(usize::try_from(number).unwrap(), &mut buffer)
            .unwrap();
        assert!(buffer == bytes(number), "block {number}");
    }
    inspection
}

/// More blocks than one batch; to a layout with three pieces per block, and back to one with a
/// single piece.
#[test]
fn blocks_are_converted_to_another_layout_and_back() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let blocks = 180;
    drop(stored(
        &at("a"),
        (&large_shape(), "BHLKNC"),
        blocks,
        |number| large_content(number, "BHLKNC"),
    ));
    let mut progress = Vec::new();
    let converted = convert(&at("a"), &at("b"), &settings(Some("BLHKNC")), &mut |done| {
        progress.push(done.blocks);
    });
    let converted = converted.unwrap();
    assert!(
        progress.len() > 1 && progress.last() == Some(&180),
        "{progress:?}"
    );
    assert_eq!((converted.from_version, converted.blocks), (2, 180));
    assert!(converted.is_whole());
    let layers = check(&at("b"), blocks, |number| large_content(number, "BLHKNC"));
    assert!(layers.only().unwrap().manifest().slots() >= 180);
    run(&at("b"), &at("c"), &settings(Some("BHLKNC"))).unwrap();
    check(&at("c"), blocks, |number| large_content(number, "BHLKNC"));
}

/// The caller must name a word that is not a usual one.
#[test]
fn an_unusual_layout_must_be_named() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let word = "BLHNKN4C";
    let tiled = |number| {
        // Tokens in groups of 4, each group with keys before values.
        let plain = content(number, "BLHNKC");
        let element =
            |l: usize, h: usize, n: usize, k: usize| (((l * 2 + h) * 16 + n) * 2 + k) * 24;
        let mut bytes = Vec::new();
        for (l, h, group) in
            (0..2).flat_map(|l| (0..2).flat_map(move |h| (0..4).map(move |g| (l, h, g))))
        {
            for (k, n) in (0..2).flat_map(|k| (0..4).map(move |n| (k, n))) {
                let at = element(l, h, group * 4 + n, k);
                bytes.extend(&plain[at..at + 24]);
            }
        }
        bytes
    };
    drop(stored(&at("a"), (&shape(1), word), 5, tiled));
    let error = run(&at("a"), &at("b"), &settings(None)).unwrap_err();
    assert!(
        matches!(error, TierError::Convert(ConvertError::StoredOrderUnknown { tried, .. }) if tried > 120),
        "{error}"
    );
    let mut named = settings(Some("BHLKNC"));
    named.stored_layout = Some("BHLKNC".parse().unwrap());
    let error = run(&at("a"), &at("b"), &named).unwrap_err();
    assert!(
        matches!(
            error,
            TierError::Convert(ConvertError::StoredOrderDiffers { .. })
        ),
        "{error}"
    );
    assert!(!at("b").exists());
    named.stored_layout = Some(word.parse().unwrap());
    run(&at("a"), &at("b"), &named).unwrap();
    check(&at("b"), 5, |number| content(number, "BHLKNC"));
    // And back to it.
    run(&at("b"), &at("c"), &settings(Some(word))).unwrap();
    check(&at("c"), 5, tiled);
}

#[test]
fn an_empty_folder_becomes_an_empty_folder() {
    let folder = tempfile::tempdir().unwrap();
    let (from, to) = (folder.path().join("a"), folder.path().join("b"));
    drop(stored(&from, (&shape(1), "BHLKNC"), 0, |_| Vec::new()));
    let converted = run(&from, &to, &settings(Some("BLHKNC"))).unwrap();
    assert_eq!((converted.blocks, converted.is_whole()), (0, true));
    check(&to, 0, |_| Vec::new());
}

#[test]
fn a_folder_that_a_cache_uses_is_refused_by_its_process() {
    let folder = tempfile::tempdir().unwrap();
    let (from, to) = (folder.path().join("a"), folder.path().join("b"));
    let store = stored(&from, (&shape(1), "BHLKNC"), 2, |number| {
        content(number, "BHLKNC")
    });
    let error = run(&from, &to, &settings(None)).unwrap_err();
    let TierError::Folder(FolderError::InUse { holder, .. }) = &error else {
        panic!("{error}");
    };
    assert_eq!(holder.pid, Some(std::process::id()));
    assert!(!to.exists());
    drop(store);
    assert_eq!(run(&from, &to, &settings(None)).unwrap().blocks, 2);
}
