//! Every shape that resolves can be bound. Layouts that no layout config describes are built,
//! copied and saved like all others; requests for their config are typed errors.
#![expect(clippy::unwrap_used, reason = "tests")]

mod common;

use common::{PLACES, over_image};
use kvtile_layout::{
    Axis, LayoutError, Plane, PlaneDigits, Shape, ShapeError, StridedLayout, Unit, Word,
    identity::Identity,
    tradition::{BlockDimension, ConfigError, LayoutKind, LayoutSpec},
};
use kvtile_testkit::{NaiveSelection, generate::LayoutCase, naive_copy};
use kvtile_transfer::{
    DescriptorError, FillPattern, PhysicalLayout, TransferError, TransferManager, TransferOptions,
    saved::{SaveOptions, SavedCache, save},
};

/// A recurrent state of 4,100 bytes a page, which is not a multiple of the 16 tokens.
fn state() -> Shape {
    let unit = Unit::opaque("state", 4100).unwrap();
    let plane = Plane::new("s", unit).unwrap().per_page();
    Shape::new(8, 2, 16, vec![plane]).unwrap()
}

/// Records of 34 bytes for 32 values, beside one scale of 4 bytes a page.
fn quantised() -> Shape {
    let record = Unit::new("q8_0", 34, 32).unwrap();
    let record = Plane::new("k", record).unwrap().extent(Axis::C, 3);
    let scale = Plane::new("ks", Unit::raw(4).unwrap()).unwrap().per_page();
    Shape::new(8, 2, 16, vec![record, scale]).unwrap()
}

fn case(shape: &Shape, word: &str) -> LayoutCase {
    LayoutCase {
        shape: shape.clone(),
        word: Word::parse(word).unwrap(),
        alignment: 1,
    }
}

fn built(shape: &Shape, spec: impl Into<LayoutSpec>) -> PhysicalLayout {
    PhysicalLayout::builder()
        .with_shape(shape.clone())
        .layout(spec)
        .allocate_system()
        .build()
        .unwrap()
}

/// Copies some blocks into another order, in each combination of memories and files, and compares
/// every byte of the destination with the naive copy.
fn copies_everywhere(shape: &Shape, from: &str, to: &str) {
    let folder = common::folder();
    let (from, to) = (case(shape, from), case(shape, to));
    let (src, dst) = (from.reference().unwrap(), to.reference().unwrap());
    let (from_image, to_image) = (src.filled(1).unwrap(), dst.filled(2).unwrap());
    let selection = NaiveSelection::blocks(shape, &[(7, 0), (2, 3), (3, 4), (0, 7)]);
    let mut expected = to_image.clone();
    let bytes = naive_copy(&src, &from_image, &dst, &mut expected, &selection).unwrap();
    for from_place in PLACES {
        for to_place in PLACES {
            let manager = TransferManager::new();
            let (a, a_store) = over_image(&from, &from_image, from_place, folder.path()).unwrap();
            let (b, b_store) = over_image(&to, &to_image, to_place, folder.path()).unwrap();
            let handles = (manager.register(a).unwrap(), manager.register(b).unwrap());
            let options = TransferOptions::new().verify(true);
            let done =
                manager.execute_selection(handles.0, handles.1, selection.selection(), options);
            let report = done.unwrap().wait().unwrap();
            assert_eq!((report.bytes, report.verified), (bytes, true));
            drop(manager.unregister(handles.0).unwrap());
            drop(manager.unregister(handles.1).unwrap());
            let what = format!(
                "{} to {}, {from_place:?} to {to_place:?}",
                from.word, to.word
            );
            assert!(a_store.image() == from_image, "source of {what}");
            assert!(b_store.image() == expected, "{what}");
        }
    }
}

#[test]
fn a_plane_of_odd_pages_is_copied_between_memories_and_files() {
    for (from, to) in [("BLs", "BLs"), ("BLs", "L|Bs"), ("LBs", "BL@8192s")] {
        copies_everywhere(&state(), from, to);
    }
}

#[test]
fn records_with_a_scale_of_each_page_are_copied_between_memories_and_files() {
    for (from, to) in [("BL(kNC,ks)", "L|B(ks,kCN)"), ("LB(k,ks)NC", "BLKNC")] {
        copies_everywhere(&quantised(), from, to);
    }
}

/// Digits, as in layouts over imported tensors, need no config either.
#[test]
fn digits_over_odd_pages_are_bound() {
    let strided = StridedLayout::resolve(&Word::parse("L|Bs").unwrap(), &state(), 1).unwrap();
    let planes = strided.planes().map(|(plane, piece)| PlaneDigits {
        plane: plane.name().to_string(),
        region: piece.region(),
        offset: piece.offset(),
        digits: piece.digits().to_vec(),
    });
    let digits = LayoutSpec::Digits {
        planes: planes.collect(),
        region_bytes: strided.region_bytes().to_vec(),
    };
    let (given, word) = (
        built(&state(), digits),
        built(&state(), Word::parse("BLs").unwrap()),
    );
    assert_eq!(given.strided().region_bytes(), strided.region_bytes());
    assert!(given.config().is_err());
    let manager = TransferManager::new();
    let (from, to) = (
        manager.register(given).unwrap(),
        manager.register(word).unwrap(),
    );
    let pattern = FillPattern::Distinct { seed: 9 };
    manager.fill(from, &[2], pattern).unwrap();
    let options = TransferOptions::new().verify(true);
    let done = manager.execute_transfer(from, &[2], to, &[5], options);
    assert_eq!(done.unwrap().wait().unwrap().bytes, 2 * 4100);
    assert_eq!(
        manager.block_digest(from, 2).unwrap(),
        manager.block_digest(to, 5).unwrap()
    );
}

/// Every part of the traditional view returns the constraint that fails; everything else works.
#[test]
fn a_layout_without_a_config_reports_the_violated_constraint() {
    let layout = built(&state(), Word::parse("BLs").unwrap());
    assert_eq!(layout.memory_region(3, 1, 0).unwrap().size, 4100);
    assert_eq!(layout.shape(), &state());
    assert_eq!(layout.kind(), LayoutKind::Strided);
    assert_eq!(layout.memory_regions().len(), 1);
    assert_eq!(layout.strided().region_bytes(), [8 * 2 * 4100]);
    let failed = LayoutError::Config(ConfigError::NoInnerDim {
        bytes: 4100,
        page_size: 16,
    });
    for error in [
        layout.config().map(|_| ()).unwrap_err(),
        layout.layout().map(|_| ()).unwrap_err(),
        layout.serialization_details().map(|_| ()).unwrap_err(),
    ] {
        let text = error.to_string();
        assert!(
            text.contains("no layout config") && text.contains("4100 bytes"),
            "{text}"
        );
        let TransferError::Descriptor(DescriptorError::NoLayoutConfig { constraint }) = error
        else {
            panic!("{error}");
        };
        assert_eq!(*constraint, failed);
    }
    // A descriptor does not need the view.
    assert_eq!(layout.to_descriptor().version(), 2);
}

/// The traditional orders do not need a config either.
#[test]
fn the_orders_of_the_tradition_hold_shapes_without_a_config() {
    for spec in [
        LayoutSpec::FullyContiguous,
        LayoutSpec::LayerSeparate(BlockDimension::BlockIsFirstDim),
        LayoutSpec::LayerSeparate(BlockDimension::BlockIsSecondDim),
    ] {
        let layout = built(&state(), spec);
        assert!(layout.config().is_err());
        assert_eq!(layout.kind(), LayoutKind::Strided);
    }
    // With four bytes less a page, a config describes the layout, and the view exists.
    let unit = Unit::opaque("state", 4096).unwrap();
    let plane = Plane::new("s", unit).unwrap().per_page();
    let even = Shape::new(8, 2, 16, vec![plane]).unwrap();
    let layout = built(&even, LayoutSpec::FullyContiguous);
    assert_eq!(layout.kind(), LayoutKind::FullyContiguous);
    assert_eq!(layout.config().unwrap().inner_dim(), 256);
    let view = layout.layout().unwrap();
    assert!(view.is_fully_contiguous());
    assert_eq!(
        view.memory_region(3, 1, 0).unwrap(),
        layout.memory_region(3, 1, 0).unwrap()
    );
}

/// A config treats the page of a plane as one unit, and units are limited to 1 GiB. Memory is
/// allocated on first touch, so this test uses none.
#[test]
fn pages_above_the_largest_unit_are_bound() {
    let bytes = (1 << 30) + 16;
    let plane = Plane::new("k", Unit::raw(1).unwrap()).unwrap();
    let shape = Shape::new(1, 1, 1, vec![plane.extent(Axis::C, bytes)]).unwrap();
    let layout = built(&shape, Word::parse("BLNC").unwrap());
    assert_eq!(layout.memory_region(0, 0, 0).unwrap().size as u64, bytes);
    let error = layout.config().map(|_| ()).unwrap_err();
    let is_unit_bytes = match &error {
        TransferError::Descriptor(DescriptorError::NoLayoutConfig { constraint }) => {
            matches!(
                **constraint,
                LayoutError::Shape(ShapeError::UnitBytes { .. })
            )
        }
        _ => false,
    };
    assert!(is_unit_bytes, "{error}");
}

#[test]
fn blocks_of_odd_pages_survive_in_a_saved_cache() {
    let folder = common::folder();
    for (number, (shape, words)) in [
        (state(), ["L|Bs", "BLs", "LBs"]),
        (quantised(), ["L|B(k,ks)NC", "BL(kNC,ks)", "LB(ks,kCN)"]),
    ]
    .into_iter()
    .enumerate()
    {
        let [engine, stored, other] = words;
        let path = folder.path().join(number.to_string());
        let identity = Identity::new("tiny", "rev-1", &shape).unwrap();
        let manager = TransferManager::new();
        let source = manager.register(common::in_memory(&shape, engine)).unwrap();
        let pattern = FillPattern::Distinct { seed: 5 };
        let all: Vec<usize> = (0..8).collect();
        manager.fill(source, &all, pattern).unwrap();
        let mut options = SaveOptions::new(identity.clone(), 3 * 16).unwrap();
        options.word = Word::parse(stored).unwrap();
        options.verify = true;
        save(&manager, source, &[6, 0, 3], &path, &options).unwrap();

        let cache = SavedCache::open(&path, &identity).unwrap();
        let target = manager.register(common::in_memory(&shape, other)).unwrap();
        let checks = cache.load(&manager, target, &[(0, 1), (1, 2), (2, 7)]);
        assert!(checks.unwrap().iter().all(|check| check.result.is_ok()));
        for (saved, loaded) in [(6, 1), (0, 2), (3, 7)] {
            assert_eq!(
                manager.block_digest(source, saved).unwrap(),
                manager.block_digest(target, loaded).unwrap()
            );
        }
    }
}
