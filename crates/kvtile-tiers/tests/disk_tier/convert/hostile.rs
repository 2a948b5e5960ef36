//! Damaged and forged folders of version 1.

use kvtile_testkit::disk::SimulatedDisk;
use kvtile_tiers::disk::{Inspection, SlotMiss, convert_on, medium::FolderMedium};

use super::*;
use crate::common::forged;

/// Converts the fixture with `old` replaced by `new` in its manifest.
fn with_manifest(old: &str, new: &str) -> Result<ConversionReport, TierError> {
    let folder = tempfile::tempdir().unwrap();
    let from = version_1(folder.path());
    let path = from.join("manifest.json");
    let text = fs::read_to_string(&path).unwrap();
    let changed = forged(&text, &|body| {
        assert!(body.contains(old), "{old:?} is not in {body}");
        body.replacen(old, new, 1)
    });
    fs::write(path, changed).unwrap();
    let to = folder.path().join("to");
    let converted = run(&from, &to, &settings(Some("BLHKNC")));
    match &converted {
        Ok(_) => drop(Inspection::open(&to).unwrap()),
        Err(_) => assert!(!to.exists()),
    }
    converted
}

#[test]
fn absurd_numbers_of_a_manifest_are_refused() {
    let same = with_manifest("\"slots\":11", "\"slots\":11").unwrap();
    assert_eq!(same.blocks, 6);
    for (old, new) in [
        ("\"slots\":11", "\"slots\":0"),
        ("\"slots\":11", "\"slots\":1"),
        ("\"slots\":11", "\"slots\":67108865"),
        ("\"slots\":11", "\"slots\":4294967295"),
        ("\"slots\":11", "\"slots\":4294967296"),
        ("\"slots\":11", "\"slots\":-1"),
        ("\"slots\":11", "\"slots\":\"11\""),
        ("\"block_bytes\":3072", "\"block_bytes\":0"),
        (
            "\"block_bytes\":3072",
            "\"block_bytes\":18446744073709551615",
        ),
        ("\"block_bytes\":3072", "\"block_bytes\":4097"),
        ("\"slot_bytes\":4096", "\"slot_bytes\":8192"),
        ("\"slots\":11", "\"slots\":11,\"more\":1"),
        ("\"slots\":11,", ""),
        ("\"format\":\"kvtile disk tier\"", "\"format\":\"another\""),
    ] {
        let error = with_manifest(old, new).unwrap_err();
        assert!(
            matches!(
                error,
                TierError::Folder(FolderError::ManifestDamaged { .. })
            ),
            "{new}: {error}"
        );
    }
    let error = with_manifest("\"block_bytes\":3072", "\"block_bytes\":4096").unwrap_err();
    assert!(
        matches!(
            error,
            TierError::Convert(ConvertError::StoredOrderUnknown { .. })
        ),
        "{error}"
    );
    for version in [0, 3, u32::MAX] {
        let error = with_manifest("\"version\":1", &format!("\"version\":{version}")).unwrap_err();
        assert!(
            matches!(error, TierError::Folder(FolderError::FolderVersion { found, .. }) if found == version)
        );
    }
    let error = with_manifest("\"version\":1", "\"version\":2").unwrap_err();
    assert!(
        matches!(
            error,
            TierError::Folder(FolderError::ManifestDamaged { .. })
        ),
        "{error}"
    );
}

#[test]
fn more_slots_than_the_files_have_are_unreadable_and_fewer_are_left_alone() {
    let more = with_manifest("\"slots\":11", "\"slots\":1000").unwrap();
    // The file holds one page of records.
    assert_eq!((more.blocks, more.unreadable.len()), (6, 1000 - 64));
    let fewer = with_manifest("\"slots\":11", "\"slots\":5").unwrap();
    assert_eq!(
        (fewer.blocks, fewer.duplicates, fewer.is_whole()),
        (5, 0, true)
    );
}

#[test]
fn a_manifest_that_fails_its_checksum_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let from = version_1(folder.path());
    let path = from.join("manifest.json");
    let text = fs::read_to_string(&path).unwrap();
    for changed in [
        text.replace("\"toy\"", "\"boy\""),
        text[..text.len() / 2].to_owned(),
        String::new(),
    ] {
        assert_ne!(changed, text);
        fs::write(&path, changed).unwrap();
        let error = run(&from, &folder.path().join("to"), &settings(None)).unwrap_err();
        assert!(
            matches!(
                error,
                TierError::Folder(FolderError::ManifestDamaged { .. })
            ),
            "{error}"
        );
    }
}

#[test]
fn missing_and_truncated_files_cost_only_their_blocks() {
    type FileDamage = (&'static str, Option<usize>, usize, usize);
    // File, its new length (`None`: removed), blocks converted, and blocks and records that are
    // bad.
    let changes: [FileDamage; 6] = [
        ("slots", None, 0, 8),
        ("slots", Some(0), 0, 8),
        ("slots", Some(4096 * 2 + 3071), 1, 7),
        ("records", None, 0, 11),
        ("records", Some(0), 0, 11),
        ("records", Some(64 * 11), 6, 2),
    ];
    for (file, length, blocks, bad) in changes {
        let folder = tempfile::tempdir().unwrap();
        let (from, to) = (version_1(folder.path()), folder.path().join("to"));
        let path = from.join(file);
        match length {
            None => fs::remove_file(&path).unwrap(),
            Some(length) => {
                let file = fs::OpenOptions::new().write(true).open(&path).unwrap();
                file.set_len(length as u64).unwrap();
            }
        }
        let converted = run(&from, &to, &settings(None)).unwrap();
        let found = converted.left_out.len() + converted.torn.len() + converted.unreadable.len();
        assert_eq!(
            (converted.blocks, found),
            (blocks, bad),
            "{file} {length:?}"
        );
        let cut = converted
            .left_out
            .iter()
            .filter(|left| matches!(left.reason, SlotMiss::Truncated));
        assert!(file != "slots" || cut.count() >= 6);
    }
}

/// Flipped bits anywhere give a typed error, or only intact blocks.
#[test]
fn no_flipped_byte_makes_another_block() {
    let numbers: Vec<u64> = (0..8).collect();
    let mut refused = 0;
    for seed in 0..150 {
        let folder = tempfile::tempdir().unwrap();
        let from = version_1(folder.path());
        let file =
            ["records", "records", "manifest.json", "slots"][usize::try_from(seed % 4).unwrap()];
        let mut bytes = fs::read(from.join(file)).unwrap();
        let end = if file == "records" {
            11 * 64
        } else {
            bytes.len()
        };
        for flip in 0..=seed % 5 {
            let number = mix(seed << 8 | flip);
            let at = usize::try_from(number % end as u64).unwrap();
            bytes[at] ^= 1 << (number >> 40 & 7);
        }
        fs::write(from.join(file), &bytes).unwrap();
        let disk = Arc::new(SimulatedDisk::new(seed));
        let source = Arc::new(FolderMedium::new(&from));
        let to = Arc::clone(&disk) as Arc<dyn Medium>;
        let Ok(converted) = convert_on(source, to, &settings(Some("BCNHKL")), &mut |_| {}) else {
            assert!(disk.names().unwrap().is_empty(), "seed {seed}");
            refused += 1;
            continue;
        };
        let inspection = inspect(disk).unwrap();
        let tier = inspection.only().unwrap();
        assert_eq!(tier.blocks().len(), converted.blocks);
        let mut buffer = vec![0; 3072];
        for (index, block) in tier.blocks().enumerate() {
            tier.read(index, &mut buffer).unwrap();
            let number = numbers
                .iter()
                .find(|number| key(**number) == block.key)
                .unwrap();
            // The older copy of block 1 is used if the record of the newer one is torn.
            let older = *number == 1 && buffer == content(90, "BCNHKL");
            assert!(older || buffer == content(*number, "BCNHKL"), "seed {seed}");
        }
    }
    assert!((20..60).contains(&refused), "{refused} of 150 refused");
}
