//! Mismatches and other models are refused by name before a byte is copied.

use super::*;
use kvtile_layout::PlanError;

/// Pitfall 23: the error contains the first field that differs, with both values.
#[test]
fn another_model_is_refused_by_name() {
    let folder = common::folder();
    let path = folder.path().join("cache");
    saved(&path);
    let of = |model: &str, revision: &str, shape: &Shape, base: f64| {
        let rope = Rope::new("default", base).unwrap();
        Identity::new(model, revision, shape)
            .unwrap()
            .with_rope(rope)
    };
    let other = |blocks, layers, page, heads, content, bytes| {
        Shape::key_value(
            blocks,
            layers,
            page,
            heads,
            content,
            Unit::raw(bytes).unwrap(),
        )
        .unwrap()
    };
    let cases = [
        (of("other", "rev-1", &shape(1), 10_000.0), "model"),
        (of("tiny", "rev-2", &shape(1), 10_000.0), "revision"),
        (of("tiny", "rev-1", &shape(1), 500_000.0), "rope.base"),
        (
            of("tiny", "rev-1", &other(1, 3, 16, 4, 8, 2), 10_000.0),
            "page_size",
        ),
        (
            of("tiny", "rev-1", &other(1, 3, 8, 4, 32, 1), 10_000.0),
            "planes.k.codec",
        ),
        (
            of("tiny", "rev-1", &other(1, 3, 8, 8, 8, 2), 10_000.0),
            "planes.k",
        ),
        (
            of("tiny", "rev-1", &other(1, 2, 8, 4, 16, 2), 10_000.0),
            "shard",
        ),
    ];
    for (identity, field) in cases {
        let error = SavedCache::open(&path, &identity).map(|_| ()).unwrap_err();
        let TransferError::Saved(SavedError::IdentityDiffers(difference)) = &error else {
            panic!("{error}");
        };
        assert!(difference.field.starts_with(field), "{field}: {error}");
    }
    // A layout with a logical fingerprint accepts no other content.
    let cache = SavedCache::inspect(&path).unwrap();
    let manager = TransferManager::new();
    let theirs = PhysicalLayout::builder()
        .with_shape(shape(3))
        .with_logical_fingerprint(identity(500_000.0).fingerprint())
        .layout(Word::parse("BLKNHC").unwrap())
        .allocate_system()
        .build()
        .unwrap();
    let theirs = manager.register(theirs).unwrap();
    let error = cache.load(&manager, theirs, &[(0, 0)]).unwrap_err();
    assert!(matches!(
        error,
        TransferError::Copy(CopyError::LogicalDiffers { .. })
    ));
    // Blocks of one model are never saved under the identity of another.
    let path = folder.path().join("mislabelled");
    let error = save(&manager, theirs, &[0], &path, &options("BHLKNC", 1)).unwrap_err();
    assert!(
        matches!(error, TransferError::Copy(CopyError::LogicalDiffers { .. })),
        "{error}"
    );
    assert_eq!(files_in(folder.path()), ["cache"]);
}

#[test]
fn refused_saves_leave_no_file() {
    let folder = common::folder();
    let path = folder.path().join("cache");
    let (manager, handle) = filled(4, "L|BKNHC");
    let good = || options("BHLKNC", 20);
    let refused = |blocks: &[usize], path: &Path, options: &SaveOptions| {
        let error = save(&manager, handle, blocks, path, options).unwrap_err();
        assert!(files_in(folder.path()).is_empty(), "{error}");
        error
    };
    refused(&[], &path, &good());
    refused(&[0, 9], &path, &good());
    let error = refused(&[0, 1], &path, &options("BHLKNC", 17));
    assert!(matches!(
        error,
        TransferError::Saved(SavedError::TooManyTokens {
            tokens: 17,
            blocks: 2,
            ..
        })
    ));
    refused(&[0, 1, 2], &path, &options("BHLKN", 1));
    let mut aligned = good();
    aligned.alignment = 3;
    refused(&[0, 1, 2], &path, &aligned);
    let mut of_another = good();
    let other = Shape::key_value(1, 3, 8, 2, 32, Unit::raw(2).unwrap()).unwrap();
    of_another.identity = Identity::new("tiny", "rev-1", &other).unwrap();
    let error = refused(&[0, 1, 2], &path, &of_another);
    assert!(
        matches!(error, TransferError::Saved(SavedError::IdentityDiffers(_))),
        "{error}"
    );
    let lease = manager.lease(handle, &[2], LeaseMode::Write).unwrap();
    let error = refused(&[0, 1, 2], &path, &good());
    assert!(
        matches!(
            error,
            TransferError::Lease(LeaseError::BlockLeased { block: 2, .. })
        ),
        "{error}"
    );
    drop(lease);
    let missing = folder.path().join("missing").join("cache");
    refused(&[0, 1, 2], &missing, &good());
    refused(&[0, 1, 2], Path::new("/proc/kvtile-cache"), &good());
    refused(&[0, 1, 2], Path::new("/"), &good());
    refused(&[0, 1, 2], Path::new(""), &good());
    save(&manager, handle, &[0, 1, 2], &path, &good()).unwrap();
    assert_eq!(files_in(folder.path()), ["cache"]);
}

/// All errors of a load that are detectable in advance come before the first byte.
#[test]
fn loads_that_do_not_fit_are_refused_before_a_byte_moves() {
    let folder = common::folder();
    let path = folder.path().join("cache");
    saved(&path);
    let cache = SavedCache::open(&path, &identity(10_000.0)).unwrap();
    let (manager, handle) = filled(4, "BLKNHC");
    let digests = || {
        (0..4)
            .map(|b| manager.block_digest(handle, b).unwrap())
            .collect::<Vec<_>>()
    };
    let before = digests();
    for pairs in [
        vec![(0, 0), (3, 1)],
        vec![(0, 0), (1, 4)],
        vec![(0, usize::MAX)],
        vec![(0, 1), (1, 1)],
        vec![(0, 3), (1, 2), (2, 3)],
    ] {
        let error = cache.load(&manager, handle, &pairs).unwrap_err();
        let named = matches!(
            error,
            TransferError::Layout(
                LayoutError::Plan(PlanError::BlockOutOfRange { .. })
                    | LayoutError::Plan(PlanError::DuplicateDestination { .. })
            )
        );
        assert!(named, "{error}");
    }
    let lease = manager.lease(handle, &[1], LeaseMode::Read).unwrap();
    assert!(cache.load(&manager, handle, &[(0, 0), (1, 1)]).is_err());
    drop(lease);
    let other = Shape::key_value(4, 3, 8, 2, 32, Unit::raw(2).unwrap()).unwrap();
    let other = manager.register(in_memory(&other, "BLKNHC")).unwrap();
    assert!(cache.load(&manager, other, &[(0, 0)]).is_err());
    assert_eq!(digests(), before);
    assert!(cache.load(&manager, handle, &[]).unwrap().is_empty());
    // One block may be loaded into several destinations.
    assert_eq!(
        good(&cache.load(&manager, handle, &[(1, 0), (1, 3)]).unwrap()),
        [true, true]
    );
    assert_eq!(digests()[0], digests()[3]);
}

/// A header that readers would refuse is not written, and an existing cache of that name stays
/// unchanged.
#[test]
fn notes_that_exceed_the_header_are_refused() {
    let folder = common::folder();
    let (manager, handle) = filled(2, "L|BKNHC");
    let path = folder.path().join("cache");
    let mut options = options("BHLKNC", 8);
    options.replace = true;
    options
        .notes
        .insert("long".to_owned(), "n".repeat(32 << 20));
    save(&manager, handle, &[0, 1], &path, &options).unwrap();
    assert_eq!(SavedCache::inspect(&path).unwrap().num_blocks(), 2);
    let before = fs::read(&path).unwrap();
    options
        .notes
        .insert("longer".to_owned(), "n".repeat(33 << 20));
    let error = save(&manager, handle, &[0, 1], &path, &options).unwrap_err();
    assert!(
        matches!(error, TransferError::Saved(SavedError::HeaderTooLong { bytes, bytes_max }) if bytes > bytes_max),
        "{error}"
    );
    assert!(fs::read(&path).unwrap() == before);
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
}
