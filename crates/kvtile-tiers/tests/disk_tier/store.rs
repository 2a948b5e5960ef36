//! The slot store on a real folder: written blocks are recovered, foreign files stay unchanged.

use std::{
    collections::HashSet,
    fs,
    os::unix::fs::{FileExt, MetadataExt},
    path::Path,
};

use crate::common::{
    check_offered, content, identity, key, room_for, sized, store_chain, usual, verify, write,
};
use kvtile_tiers::{
    FolderError, MismatchError, SettingsError, SlotError, TierError,
    disk::{RecoveredBlocks, SlotMiss, SlotState, SlotStore, SlotStoreSettings, StoreIdentity},
};

fn open(
    path: &Path,
    places: u64,
    identity: &StoreIdentity,
) -> Result<(SlotStore, RecoveredBlocks), TierError> {
    SlotStore::create_or_open(path, &room_for(places, identity), identity)
}

#[test]
fn blocks_are_recovered_after_a_restart_with_parents_before_children() {
    let folder = tempfile::tempdir().unwrap();
    for direct_io in [true, false] {
        let path = folder.path().join(format!("tier-{direct_io}"));
        let identity = usual();
        let settings = room_for(20, &identity)
            .direct_io(direct_io)
            .preallocate(!direct_io);
        let (store, recovered) = SlotStore::create_or_open(&path, &settings, &identity).unwrap();
        assert!(recovered.created && recovered.entries.is_empty());
        assert_eq!(store.slots(), 19);
        store_chain(&store, &identity, 0, 19);
        assert_eq!(store.state(18), SlotState::Durable);
        assert_eq!(
            verify(&store, 19).iter().filter(|(_, r)| r.is_ok()).count(),
            19
        );
        drop(store);
        let (store, recovered) = SlotStore::create_or_open(&path, &settings, &identity).unwrap();
        assert!(!recovered.created);
        assert_eq!(recovered.entries.len(), 19);
        assert_eq!(recovered.dropped.total(), 0);
        let mut before = HashSet::new();
        for entry in &recovered.entries {
            assert!(entry.parent.is_none_or(|parent| before.contains(&parent)));
            assert_eq!(entry.tenant, 7);
            before.insert(entry.key);
        }
        check_offered(&store, &recovered, &identity);
        store.check_integrity();
    }
}

#[test]
fn a_written_block_can_be_read_before_it_is_durable() {
    let folder = tempfile::tempdir().unwrap();
    let identity = usual();
    let (store, _) = open(folder.path(), 8, &identity).unwrap();
    let bytes = content(0, &identity);
    let written = store.write(&[write(3, 0, &bytes)]);
    assert_eq!(store.state(3), SlotState::Written);
    assert!(!store.is_durable(written.ticket));
    let mut read = vec![0; bytes.len()];
    store.read(3, &key(0), &mut read).unwrap();
    assert!(read == bytes);
    assert!(matches!(
        store.read(3, &key(1), &mut read),
        Err(SlotMiss::WrongKey)
    ));
    assert!(matches!(
        store.read(2, &key(0), &mut read),
        Err(SlotMiss::Empty)
    ));
    assert!(matches!(
        store.read(99, &key(0), &mut read),
        Err(SlotMiss::Empty)
    ));
    assert!(matches!(
        store.read(3, &key(0), &mut read[1..]),
        Err(SlotMiss::Buffer(_))
    ));
    let synced = store.sync();
    assert!(synced.failure.is_none() && synced.lost.is_empty());
    assert_eq!(synced.blocks, 1);
    assert!(store.is_durable(written.ticket));
    let stats = store.stats();
    assert_eq!(
        (stats.reads, stats.misses_absent, stats.misses_io),
        (5, 3, 1)
    );
    assert_eq!((stats.used, stats.writes, stats.syncs), (1, 1, 1));
}

#[test]
fn misuse_is_an_error_with_its_numbers_and_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let identity = usual();
    let (store, _) = open(folder.path(), 8, &identity).unwrap();
    store_chain(&store, &identity, 0, 1);
    let bytes = content(1, &identity);
    let batch = [
        write(0, 1, &bytes),
        write(7, 1, &bytes),
        write(1, 1, &bytes[1..]),
        write(2, 1, &bytes),
    ];
    let written = store.write(&batch);
    assert_eq!(written.failed.len(), 3);
    assert!(matches!(
        written.failed[0].error,
        TierError::Slot(SlotError::SlotOccupied { slot: 0 })
    ));
    assert!(matches!(
        written.failed[1].error,
        TierError::Slot(SlotError::SlotOutOfRange { slot: 7, slots: 7 })
    ));
    assert!(matches!(
        written.failed[2].error,
        TierError::Slot(SlotError::WrongBlockBytes { .. })
    ));
    assert_eq!(store.state(2), SlotState::Written);
    assert!(matches!(
        store.erase(&[0, 7]),
        Err(TierError::Slot(SlotError::SlotOutOfRange { .. }))
    ));
    assert_eq!(store.state(0), SlotState::Durable);
    store.check_integrity();
}

#[test]
fn slots_are_rewritten_and_old_blocks_are_never_recovered() {
    let folder = tempfile::tempdir().unwrap();
    let identity = usual();
    let (store, _) = open(folder.path(), 5, &identity).unwrap();
    for round in 0..10 {
        for slot in 0..4 {
            let number = round * 4 + u64::from(slot);
            let bytes = content(number, &identity);
            assert!(
                store
                    .write(&[write(slot, number, &bytes)])
                    .failed
                    .is_empty()
            );
            store.check_integrity();
        }
        assert!(store.sync().failure.is_none());
        if round < 9 {
            store.erase(&[0, 1, 2, 3]).unwrap();
            store.check_integrity();
        }
    }
    let stats = store.stats();
    // One place is in reserve; a sync must first erase the others on the disk.
    assert!(stats.erasure_waits > 0);
    assert_eq!(stats.erased, 36);
    drop(store);
    let (store, recovered) = open(folder.path(), 5, &identity).unwrap();
    let positions: Vec<u32> = recovered.entries.iter().map(|e| e.position).collect();
    assert_eq!(positions, [36, 37, 38, 39]);
    check_offered(&store, &recovered, &identity);
}

/// Pitfalls 10 and 35: one process per folder, and the lock ends with its holder.
#[test]
fn a_second_store_is_refused_with_the_process_that_has_the_folder() {
    let folder = tempfile::tempdir().unwrap();
    let identity = usual();
    let (store, _) = open(folder.path(), 4, &identity).unwrap();
    match open(folder.path(), 4, &identity) {
        Err(TierError::Folder(FolderError::InUse { holder, .. })) => {
            assert_eq!(holder.pid, Some(std::process::id()));
            assert_eq!(holder.opened_by, holder.pid);
        }
        other => panic!("{other:?}"),
    }
    drop(store);
    open(folder.path(), 4, &identity).unwrap();
}

/// Pitfall 23: a folder of another model, layout or block size is refused and stays unchanged.
#[test]
fn another_identity_layout_or_block_size_is_refused_naming_the_field() {
    let folder = tempfile::tempdir().unwrap();
    let ours = usual();
    let (store, _) = open(folder.path(), 4, &ours).unwrap();
    store_chain(&store, &ours, 0, 2);
    drop(store);
    for (other, field) in [
        (identity(2, "BHLKNC", 500_000.0), "rope.base"),
        (identity(4, "BHLKNC", 10_000.0), "planes.k.H"),
        (identity(2, "BLKNHC", 10_000.0), "layout.k.digits"),
        (sized(1 << 20), "block_bytes"),
        (
            StoreIdentity {
                pieces: kvtile_tiers::disk::BlockPieces::whole(ours.block_bytes()),
                ..ours.clone()
            },
            "piece_ends",
        ),
    ] {
        match open(folder.path(), 4, &other) {
            Err(TierError::Mismatch(MismatchError::FolderDiffers { difference, .. })) => {
                assert_eq!(difference.field, field);
                assert_ne!(difference.ours, difference.theirs);
            }
            other => panic!("{field}: {other:?}"),
        }
    }
    let path = folder.path().join("manifest.json");
    let manifest = fs::read_to_string(&path).unwrap();
    for (version, advice) in [(1, "kvtile cache convert"), (3, "use a newer kvtile")] {
        let other = format!("\"version\": {version}");
        fs::write(&path, manifest.replace("\"version\": 2", &other)).unwrap();
        let error = open(folder.path(), 4, &ours).unwrap_err().to_string();
        let named =
            format!("has version {version} of the format on disk, and this kvtile reads version 2");
        assert!(error.contains(&named) && error.contains(advice), "{error}");
    }
    fs::write(&path, &manifest).unwrap();
    let (store, recovered) = open(folder.path(), 4, &ours).unwrap();
    assert_eq!(recovered.entries.len(), 2);
    check_offered(&store, &recovered, &ours);
}

/// Pitfall 10: foreign files are never changed.
#[test]
fn a_folder_with_foreign_files_is_refused_and_stays_unchanged() {
    for name in ["slots", "notes.txt", "records"] {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(name);
        fs::write(&path, b"mine").unwrap();
        match open(folder.path(), 4, &usual()) {
            Err(TierError::Folder(FolderError::ForeignFolder { found, .. })) => {
                assert_eq!(found, name);
            }
            other => panic!("{other:?}"),
        }
        assert_eq!(fs::read(&path).unwrap(), b"mine");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(folder.path().join("lost+found")).unwrap();
    open(folder.path(), 4, &usual()).unwrap();
}

/// Bytes of all files and of the folder: by their lengths, and by their disk blocks.
fn bytes_of(folder: &Path) -> (u64, u64) {
    let own = fs::metadata(folder).unwrap();
    let files = fs::read_dir(folder)
        .unwrap()
        .map(|e| e.unwrap().metadata().unwrap());
    files.fold((own.len(), own.blocks() * 512), |(long, kept), file| {
        (long + file.len(), kept + file.blocks() * 512)
    })
}

/// Pitfall 35: the capacity is never exceeded.
#[test]
fn all_files_together_stay_within_the_capacity_to_the_byte() {
    let identity = usual();
    let slot = identity.block_bytes();
    for preallocate in [false, true] {
        for capacity_bytes in [20 * slot, 20 * slot + 4095, 21 * slot - 1, 30 * slot] {
            let folder = tempfile::tempdir().unwrap();
            let settings = SlotStoreSettings::new(capacity_bytes).preallocate(preallocate);
            let (store, _) =
                SlotStore::create_or_open(folder.path(), &settings, &identity).unwrap();
            store_chain(&store, &identity, 0, u64::from(store.slots()));
            let (long, kept) = bytes_of(folder.path());
            assert!(long <= capacity_bytes, "{long} of {capacity_bytes}");
            assert!(kept <= capacity_bytes, "{kept} of {capacity_bytes}");
            assert!(
                long + slot + 8 * 4096 > capacity_bytes,
                "{long} of {capacity_bytes}"
            );
        }
    }
    let folder = tempfile::tempdir().unwrap();
    match SlotStore::create_or_open(folder.path(), &SlotStoreSettings::new(slot), &identity) {
        Err(TierError::Settings(SettingsError::CapacityTooSmall { needed_bytes, .. })) => {
            let settings = SlotStoreSettings::new(needed_bytes);
            let (store, _) =
                SlotStore::create_or_open(folder.path(), &settings, &identity).unwrap();
            assert_eq!(store.slots(), 1);
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_folder_grows_and_shrinks_with_its_capacity_and_keeps_what_fits() {
    let folder = tempfile::tempdir().unwrap();
    let identity = usual();
    let (store, _) = open(folder.path(), 10, &identity).unwrap();
    store_chain(&store, &identity, 0, 9);
    drop(store);
    let (store, recovered) = open(folder.path(), 30, &identity).unwrap();
    assert_eq!((store.slots(), recovered.entries.len()), (29, 9));
    check_offered(&store, &recovered, &identity);
    store_chain(&store, &identity, 9, 20);
    drop(store);
    let (store, recovered) = open(folder.path(), 6, &identity).unwrap();
    assert_eq!((store.slots(), recovered.entries.len()), (5, 5));
    assert_eq!(recovered.dropped.over_capacity, 24);
    check_offered(&store, &recovered, &identity);
    assert!(bytes_of(folder.path()).0 <= room_for(6, &identity).capacity_bytes);
    drop(store);
    let (store, recovered) = open(folder.path(), 30, &identity).unwrap();
    assert_eq!((store.slots(), recovered.entries.len()), (29, 5));
    check_offered(&store, &recovered, &identity);
}

/// Pitfall 36: a flipped bit in a block makes that block a miss, and no other.
#[test]
fn flipped_bits_and_truncated_files_are_misses() {
    let folder = tempfile::tempdir().unwrap();
    let identity = usual();
    let (store, _) = open(folder.path(), 12, &identity).unwrap();
    store_chain(&store, &identity, 0, 8);
    let slots = fs::OpenOptions::new();
    let slots = slots
        .clone()
        .write(true)
        .open(folder.path().join("slots"))
        .unwrap();
    let mut byte = content(3, &identity)[100];
    byte ^= 4;
    slots
        .write_all_at(&[byte], 3 * identity.block_bytes() + 100)
        .unwrap();
    let bad: Vec<u32> = verify(&store, 8)
        .into_iter()
        .filter_map(|(slot, read)| {
            let miss = read.err()?;
            assert!(matches!(miss, SlotMiss::Checksum), "{miss}");
            Some(slot)
        })
        .collect();
    assert_eq!(bad, [3]);
    // Truncated while open.
    slots.set_len(5 * identity.block_bytes() + 1).unwrap();
    let mut buffer = content(5, &identity);
    assert!(matches!(
        store.read(5, &key(5), &mut buffer),
        Err(SlotMiss::Truncated)
    ));
    store.read(4, &key(4), &mut buffer).unwrap();
    let stats = store.stats();
    assert_eq!((stats.misses_checksum, stats.misses_truncated), (1, 1));
    drop(store);
    // Truncated before the open: blocks past the end are not offered.
    let (store, recovered) = open(folder.path(), 12, &identity).unwrap();
    assert_eq!(recovered.entries.len(), 5);
    assert_eq!(recovered.dropped.truncated, 3);
    assert_eq!(
        verify(&store, 8).iter().filter(|(_, r)| r.is_err()).count(),
        1
    );
    drop(store);
    let records = folder.path().join("records");
    let mut bytes = fs::read(&records).unwrap();
    bytes[130] ^= 1;
    fs::write(&records, &bytes[..128 * 11]).unwrap();
    let (store, recovered) = open(folder.path(), 12, &identity).unwrap();
    assert_eq!(
        (recovered.dropped.torn, recovered.dropped.truncated),
        (1, 1)
    );
    assert_eq!(recovered.entries.len(), 4);
    store_chain(&store, &identity, 4, 7);
}

#[test]
fn a_damaged_manifest_is_refused_and_cleared_by_hand() {
    let folder = tempfile::tempdir().unwrap();
    let identity = usual();
    drop(open(folder.path(), 6, &identity).unwrap());
    let path = folder.path().join("manifest.json");
    let whole = fs::read(&path).unwrap();
    for at in (0..whole.len()).step_by(7) {
        let mut bytes = whole.clone();
        bytes[at] ^= 1;
        fs::write(&path, &bytes).unwrap();
        match open(folder.path(), 6, &identity) {
            Err(
                TierError::Folder(FolderError::ManifestDamaged { .. })
                | TierError::Mismatch(MismatchError::FolderDiffers { .. }),
            ) => {}
            // A change of white space outside values does no harm.
            Ok(_) => assert!(whole[at].is_ascii_whitespace() || bytes[at].is_ascii_whitespace()),
            other => panic!("byte {at}: {other:?}"),
        }
    }
    fs::write(&path, &whole[..whole.len() / 2]).unwrap();
    assert!(open(folder.path(), 6, &identity).is_err());
    let medium = kvtile_tiers::disk::medium::FolderMedium::new(folder.path());
    kvtile_tiers::disk::clear(&medium).unwrap();
    let (_, recovered) = open(folder.path(), 6, &identity).unwrap();
    assert!(recovered.created);
}
