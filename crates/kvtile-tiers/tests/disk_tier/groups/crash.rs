//! A loss of power at every step of creating and of resizing a folder of several groups.

use std::sync::Arc;

use kvtile_testkit::disk::SimulatedDisk;
use kvtile_tiers::{
    FolderError, TierError,
    disk::{RecoveredBlocks, SlotFolder, SlotStoreSettings, TierGroup},
};

use super::{check_group, groups, room, sync, write_chains};

/// More steps than any of the operations has.
const STEPS: u64 = 400;

fn open(
    disk: &SimulatedDisk,
    settings: &SlotStoreSettings,
    groups: &[TierGroup],
) -> Result<(SlotFolder, Vec<RecoveredBlocks>), TierError> {
    SlotFolder::create_or_open_on(Arc::new(disk.clone()), settings, groups)
}

/// Runs `begin` on a new disk and loses the power after each number of steps, until `run` completes
/// before. After each loss, `check` opens the disk.
fn at_every_step(
    begin: impl Fn(&SimulatedDisk),
    run: impl Fn(&SimulatedDisk) -> Result<(SlotFolder, Vec<RecoveredBlocks>), TierError>,
    check: impl Fn(&SimulatedDisk, u64),
) {
    for seed in 0..4 {
        for step in 1..STEPS {
            let disk = SimulatedDisk::new(seed * STEPS + step);
            begin(&disk);
            disk.set_fuse(step);
            let ran = run(&disk);
            if !disk.is_dead() {
                ran.unwrap();
                assert!(step > 10, "{step} steps");
                break;
            }
            if let Err(error) = ran {
                assert!(
                    matches!(error, TierError::Folder(FolderError::File { .. })),
                    "step {step}: {error}"
                );
            }
            assert!(step + 1 < STEPS, "it never completes");
            disk.crash();
            check(&disk, step);
        }
    }
}

#[test]
fn a_creation_that_loses_power_is_begun_anew_or_complete() {
    for count in 1..=3 {
        let groups = groups(count);
        let settings = room(8, &groups);
        at_every_step(
            |_| {},
            |disk| open(disk, &settings, &groups),
            |disk, step| {
                // Other groups too, if the manifest is not there yet.
                let (store, recovered) = open(disk, &settings, &groups).unwrap();
                assert!(disk.total_bytes() <= settings.capacity_bytes, "step {step}");
                assert!(
                    recovered
                        .iter()
                        .all(|recovered| recovered.entries.is_empty())
                );
                write_chains(&store, &groups, 0, 7);
                sync(&store);
            },
        );
    }
}

/// Groups with shares, and the capacity in places of each group.
type FolderForm = (u64, [Option<f64>; 3]);

fn folder_of((places, shares): FolderForm) -> (SlotStoreSettings, Vec<TierGroup>) {
    let groups = groups(3).into_iter().zip(shares);
    let groups: Vec<TierGroup> = groups.map(|(group, share)| group.share(share)).collect();
    (room(places, &groups), groups)
}

/// From one form to another.
const TRANSITIONS: [(FolderForm, FolderForm); 6] = [
    ((8, [None; 3]), (20, [None; 3])),
    ((20, [None; 3]), (8, [None; 3])),
    ((30, [None; 3]), (30, [Some(1.0), Some(1.0), Some(4.0)])),
    (
        (30, [Some(1.0), Some(1.0), Some(4.0)]),
        (30, [Some(4.0), Some(1.0), Some(1.0)]),
    ),
    // Some grow although the capacity shrinks, and the other way round.
    (
        (30, [Some(1.0), Some(1.0), Some(9.0)]),
        (25, [Some(9.0), Some(1.0), Some(1.0)]),
    ),
    (
        (25, [Some(1.0), Some(1.0), Some(9.0)]),
        (35, [Some(9.0), Some(1.0), Some(1.0)]),
    ),
];

#[test]
fn a_resize_that_loses_power_keeps_every_block_that_fits_before_and_after() {
    for (before, after) in TRANSITIONS {
        let (before, after) = (folder_of(before), folder_of(after));
        let fewest = [&before, &after].map(|(settings, groups)| {
            let disk = SimulatedDisk::new(0);
            let (store, _) = open(&disk, settings, groups).unwrap();
            store
                .stores()
                .iter()
                .map(|store| store.slots())
                .min()
                .unwrap()
        });
        let blocks = u64::from(*fewest.iter().min().unwrap());
        assert!(blocks >= 2, "{blocks}");
        let most = before.0.capacity_bytes.max(after.0.capacity_bytes);
        at_every_step(
            |disk| {
                let (store, _) = open(disk, &before.0, &before.1).unwrap();
                write_chains(&store, &before.1, 0, blocks);
                sync(&store);
            },
            |disk| {
                let _ = disk.take_peak_bytes();
                let opened = open(disk, &after.0, &after.1);
                let peak = disk.take_peak_bytes();
                assert!(peak <= most, "{peak} of {most} bytes");
                opened
            },
            |disk, step| {
                assert!(
                    disk.total_bytes() <= most,
                    "{} of {most}",
                    disk.total_bytes()
                );
                let (settings, groups) = [&before, &after][usize::from(step % 2 == 0)];
                let (store, recovered) = open(disk, settings, groups).unwrap();
                assert!(disk.total_bytes() <= settings.capacity_bytes);
                store.check_integrity();
                for (index, recovered) in recovered.iter().enumerate() {
                    let of = (index, &groups[index]);
                    let found = check_group(super::group(&store, index), recovered, of);
                    assert_eq!(
                        found,
                        (0..blocks).collect::<Vec<_>>(),
                        "step {step}, group {index}"
                    );
                }
            },
        );
    }
}

/// A loss of power during a sync: each group keeps what it had, with whole blocks or without them.
#[test]
fn a_sync_of_all_groups_that_loses_power_offers_no_wrong_byte() {
    let groups = groups(3);
    let settings = room(10, &groups);
    for seed in 0..40 {
        for step in 1..20 {
            let disk = SimulatedDisk::new(1000 * seed + step);
            let (store, _) = open(&disk, &settings, &groups).unwrap();
            write_chains(&store, &groups, 0, 3);
            sync(&store);
            write_chains(&store, &groups, 3, 4);
            disk.set_fuse(step);
            let synced = store.sync();
            let is_whole = synced.iter().all(|synced| synced.failure.is_none());
            assert_eq!(is_whole, !disk.is_dead());
            disk.crash();
            drop(store);
            let (store, recovered) = open(&disk, &settings, &groups).unwrap();
            for (index, (recovered, synced)) in recovered.iter().zip(&synced).enumerate() {
                let of = (index, &groups[index]);
                let found = check_group(super::group(&store, index), recovered, of);
                assert!(
                    found.starts_with(&[0, 1, 2]),
                    "seed {seed}, step {step}: {found:?}"
                );
                if synced.failure.is_none() {
                    assert_eq!(found.len(), 7, "seed {seed}, step {step}");
                }
            }
            if is_whole {
                break;
            }
        }
    }
}
