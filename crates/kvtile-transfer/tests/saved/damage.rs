//! Damage is detected, and costs no more than the damaged blocks.

use super::*;

/// A checksum covers every significant byte: any changed byte is detected, or it is padding and
/// changes nothing.
#[test]
fn every_flipped_byte_before_the_data_is_refused_or_harmless() {
    let folder = common::folder();
    let path = folder.path().join("cache");
    let expected = saved(&path);
    let bytes = fs::read(&path).unwrap();
    let (end, data) = bounds(&bytes);
    assert!(end < data && data < bytes.len());
    for at in 0..data {
        let mut flipped = bytes.clone();
        flipped[at] ^= 1 << (at % 8);
        fs::write(&path, &flipped).unwrap();
        let result = SavedCache::inspect(&path);
        if at < end {
            let error = result.map(|_| ()).unwrap_err();
            let named = matches!(
                error,
                TransferError::Saved(SavedError::NotASavedCache { .. })
                    | TransferError::Saved(SavedError::Damaged { .. })
            );
            assert!(named, "byte {at}: {error}");
        } else {
            result.unwrap();
        }
    }
    fs::write(&path, &bytes).unwrap();
    loads(&path, "BLKNHC", &expected);
}

/// Pitfall 36: only a block whose bytes changed fails, and its destination stays unchanged.
#[test]
fn a_flipped_data_byte_costs_exactly_its_block() {
    let folder = common::folder();
    let path = folder.path().join("cache");
    let expected = saved(&path);
    let bytes = fs::read(&path).unwrap();
    let (_, data) = bounds(&bytes);
    let block_bytes = usize::try_from(shape(1).block_bytes().unwrap()).unwrap();
    let stride = block_bytes.next_multiple_of(4096);
    for (block, at) in [
        (0, 0),
        (0, block_bytes - 1),
        (1, 777),
        (2, 0),
        (2, block_bytes - 1),
    ] {
        let mut flipped = bytes.clone();
        flipped[data + block * stride + at] ^= 0x40;
        fs::write(&path, &flipped).unwrap();
        let cache = SavedCache::open(&path, &identity(10_000.0)).unwrap();
        let healthy: Vec<bool> = (0..3).map(|b| b != block).collect();
        assert_eq!(good(&cache.check_blocks(|_| ()).unwrap()), healthy);
        let manager = TransferManager::new();
        let handle = manager.register(in_memory(&shape(3), "L|KBNHC")).unwrap();
        manager
            .fill(handle, &[0, 1, 2], FillPattern::Constant(9))
            .unwrap();
        let untouched = manager.block_digest(handle, 0).unwrap();
        let checks = cache
            .load(&manager, handle, &[(2, 0), (1, 1), (0, 2)])
            .unwrap();
        for check in checks {
            let found = manager.block_digest(handle, 2 - check.block).unwrap();
            if check.block == block {
                let Err(TransferError::Saved(SavedError::ChecksumMismatch { block: b, .. })) =
                    check.result
                else {
                    panic!("{:?}", check.result);
                };
                assert_eq!((b, found), (block as u64, untouched));
            } else {
                check.result.unwrap();
                assert_eq!(found, expected[check.block]);
            }
        }
    }
    // The padding between blocks has no content.
    assert!(block_bytes < stride || bytes.len() == data + 3 * stride);
}

#[test]
fn truncated_and_extended_files_are_refused() {
    let folder = common::folder();
    let path = folder.path().join("cache");
    saved(&path);
    let bytes = fs::read(&path).unwrap();
    let (end, data) = bounds(&bytes);
    let last = bytes.len() - 1;
    let lengths = [
        0,
        1,
        7,
        8,
        12,
        40,
        63,
        64,
        65,
        500,
        end - 24,
        end - 1,
        end,
        data - 1,
        data,
        data + 1,
        data + 5000,
        last,
    ];
    for length in lengths {
        fs::write(&path, &bytes[..length]).unwrap();
        let error = SavedCache::inspect(&path).map(|_| ()).unwrap_err();
        assert!(!error.to_string().is_empty(), "{length}");
    }
    for more in [1, 4096] {
        let mut longer = bytes.clone();
        longer.extend(vec![0; more]);
        fs::write(&path, &longer).unwrap();
        let error = SavedCache::inspect(&path).map(|_| ()).unwrap_err();
        assert!(
            matches!(error, TransferError::Saved(SavedError::Damaged { .. })),
            "{error}"
        );
    }
    // A file that is truncated after it was opened: no block is served.
    fs::write(&path, &bytes).unwrap();
    let cache = SavedCache::inspect(&path).unwrap();
    let manager = TransferManager::new();
    let handle = manager.register(in_memory(&shape(3), "BLKNHC")).unwrap();
    let before = manager.block_digest(handle, 0).unwrap();
    File::options()
        .write(true)
        .open(&path)
        .unwrap()
        .set_len(data as u64)
        .unwrap();
    assert!(cache.load(&manager, handle, &[(0, 0)]).is_err());
    assert!(cache.check_blocks(|_| ()).is_err());
    assert_eq!(manager.block_digest(handle, 0).unwrap(), before);
    // A folder, a missing file and an empty file are not caches either.
    for path in [
        folder.path().to_owned(),
        folder.path().join("none"),
        PathBuf::from("/dev/null"),
    ] {
        assert!(SavedCache::inspect(&path).is_err(), "{path:?}");
    }
}
