//! Conversions to disks that run full or fail, and with a power loss at every operation.

use kvtile_testkit::disk::{DiskFaults, SimulatedDisk};
use kvtile_tiers::disk::{convert_on, medium::FolderMedium};

use super::*;

fn to_disk(from: &Path, disk: &SimulatedDisk) -> Result<ConversionReport, TierError> {
    let (from, to) = (Arc::new(FolderMedium::new(from)), Arc::new(disk.clone()));
    convert_on(from, to, &settings(Some("BLHKNC")), &mut |_| {})
}

#[test]
fn a_disk_that_is_full_or_fails_gets_no_tier_and_keeps_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let from = version_1(folder.path());
    let before = files(&from);
    let (mut full, mut failed) = (0, 0);
    for seed in 0..60 {
        let disk = SimulatedDisk::new(seed);
        disk.set_faults(match seed % 3 {
            0 => DiskFaults {
                full: 4,
                ..DiskFaults::default()
            },
            1 => DiskFaults {
                write: 4,
                ..DiskFaults::default()
            },
            _ => DiskFaults {
                sync: 3,
                ..DiskFaults::default()
            },
        });
        match to_disk(&from, &disk) {
            Ok(_) => check_converted(inspect(Arc::new(disk)).unwrap(), "BLHKNC"),
            Err(error) => {
                match error {
                    TierError::Folder(FolderError::DiskFull { .. }) => full += 1,
                    _ => failed += 1,
                }
                assert_eq!(disk.names().unwrap(), Vec::<String>::new(), "seed {seed}");
                disk.set_faults(DiskFaults::default());
                to_disk(&from, &disk).unwrap();
                check_converted(inspect(Arc::new(disk)).unwrap(), "BLHKNC");
            }
        }
    }
    assert!(full > 5 && failed > 10, "{full} full, {failed} failed");
    assert_eq!(files(&from), before);
}

#[test]
fn a_power_loss_at_any_operation_leaves_an_intact_tier_or_none() {
    let folder = tempfile::tempdir().unwrap();
    let from = version_1(folder.path());
    let before = files(&from);
    let (mut none, mut fuse) = (0, 0);
    loop {
        let disk = SimulatedDisk::new(fuse);
        disk.set_fuse(fuse);
        let converted = to_disk(&from, &disk);
        disk.crash();
        match inspect(Arc::new(disk.clone())) {
            Ok(tier) => check_converted(tier, "BLHKNC"),
            Err(TierError::Folder(FolderError::NotAStore { .. })) => {
                assert!(converted.is_err(), "fuse {fuse}");
                none += 1;
                to_disk(&from, &disk).unwrap();
                check_converted(inspect(Arc::new(disk)).unwrap(), "BLHKNC");
            }
            Err(error) => panic!("fuse {fuse}: {error}"),
        }
        if converted.is_ok() {
            break;
        }
        fuse += 1;
    }
    assert!(none > 10, "{none} without a tier");
    assert_eq!(files(&from), before);
}

/// A kill leaves the files as they are; no cache takes them for a disk tier.
#[test]
fn a_process_that_is_killed_leaves_no_tier() {
    let folder = tempfile::tempdir().unwrap();
    let from = version_1(folder.path());
    let disk = SimulatedDisk::new(1);
    disk.set_fuse(14);
    to_disk(&from, &disk).unwrap_err();
    disk.kill();
    let names = disk.names().unwrap();
    assert!(names.contains(&"slots".to_owned()), "{names:?}");
    assert!(
        names.contains(&"manifest.json.partial".to_owned()),
        "{names:?}"
    );
    let error = inspect(Arc::new(disk.clone())).unwrap_err();
    assert!(
        matches!(error, TierError::Folder(FolderError::NotAStore { .. })),
        "{error}"
    );
    to_disk(&from, &disk).unwrap();
    check_converted(inspect(Arc::new(disk)).unwrap(), "BLHKNC");
}
