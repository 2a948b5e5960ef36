//! Layouts of every kind survive a round trip through their descriptors.

use kvtile_layout::{
    Axis, Plane, PlaneDigits, Shape, Unit, Word,
    tradition::{BlockDimension, InnerShape, LayoutConfig, LayoutSpec},
};
use kvtile_testkit::generate::{config, layouts};
use kvtile_transfer::{DescriptorError, LayoutDescriptor, PhysicalLayout, TransferError};
use proptest::prelude::*;

use crate::common;

fn round_trip(layout: &PhysicalLayout) {
    let descriptor = layout.to_descriptor();
    let json = descriptor.to_json().unwrap();
    assert_eq!(json.as_bytes(), descriptor.to_json_bytes().unwrap());
    let again = LayoutDescriptor::from_json(&json).unwrap();
    assert_eq!(again, descriptor);
    let remote = PhysicalLayout::from_descriptor(again).unwrap();
    assert!(remote.is_remote());
    assert_eq!(remote.shape(), layout.shape());
    assert_eq!(remote.layout_fingerprint(), layout.layout_fingerprint());
    assert_eq!(
        remote.strided().region_bytes(),
        layout.strided().region_bytes()
    );
    assert_eq!(remote.logical_fingerprint(), layout.logical_fingerprint());
    common::same_addresses(&remote, layout);
    // A remote layout keeps the description that it was received with.
    assert_eq!(remote.to_descriptor(), descriptor);
}

#[test]
fn layouts_of_every_family_survive_a_round_trip() {
    for inner in [InnerShape::Unknown, InnerShape::NHD, InnerShape::HND] {
        for outer_dim in [1, 2] {
            let config = LayoutConfig::builder()
                .num_blocks(3)
                .num_layers(2)
                .outer_dim(outer_dim)
                .page_size(8)
                .inner_dim(24)
                .num_heads(3)
                .alignment(64)
                .dtype_width_bytes(1)
                .inner_shape(inner)
                .build()
                .unwrap();
            let builder = || PhysicalLayout::builder().with_config(config.clone());
            round_trip(
                &builder()
                    .fully_contiguous()
                    .allocate_system()
                    .build()
                    .unwrap(),
            );
            for dim in [
                BlockDimension::BlockIsFirstDim,
                BlockDimension::BlockIsSecondDim,
            ] {
                round_trip(
                    &builder()
                        .layer_separate(dim)
                        .allocate_shared()
                        .build()
                        .unwrap(),
                );
            }
            for word in ["BHLKNC", "HBLNKC", "L|KBHCNC4", "BN4LNKHC"] {
                let word = word.parse::<Word>().unwrap();
                let layout = builder().layout(word).allocate_disk(None);
                round_trip(&layout.build().unwrap());
            }
        }
    }
    let mla = Shape::new(
        4,
        2,
        16,
        vec![
            Plane::new("c", Unit::raw(2).unwrap())
                .unwrap()
                .extent(Axis::C, 512),
            Plane::new("r", Unit::raw(2).unwrap())
                .unwrap()
                .extent(Axis::C, 64),
            Plane::new("s", Unit::raw(4).unwrap()).unwrap(),
        ],
    )
    .unwrap();
    let layout = PhysicalLayout::builder()
        .with_aligned_shape(mla, 64)
        .layout("LBNKC".parse::<Word>().unwrap())
        .allocate_system()
        .build()
        .unwrap();
    round_trip(&layout);
}

proptest! {
    #![proptest_config(config(300))]

    /// Random planes, words and alignments: in the traditional form where a config describes them,
    /// else in the general form.
    #[test]
    fn random_layouts_survive_a_round_trip(case in layouts()) {
        let image = case.reference().unwrap().poisoned().unwrap();
        let folder = std::path::Path::new("");
        let (layout, _) = common::over_image(&case, &image, common::StoragePlace::Memory, folder).unwrap();
        let version = match layout.config() {
            Ok(_) => 1,
            Err(TransferError::Descriptor(DescriptorError::NoLayoutConfig { .. })) => 2,
            Err(error) => panic!("{error}"),
        };
        prop_assert_eq!(layout.to_descriptor().version(), version);
        round_trip(&layout);
        // The same layout by its digits.
        let strided = layout.strided();
        let planes = strided.planes().map(|(plane, piece)| PlaneDigits {
            plane: plane.name().as_str().to_owned(),
            region: piece.region(),
            offset: piece.offset(),
            digits: piece.digits().to_vec(),
        });
        let spec = LayoutSpec::Digits {
            planes: planes.collect(),
            region_bytes: strided.region_bytes().to_vec(),
        };
        let digits = PhysicalLayout::builder()
            .with_aligned_shape(case.shape.clone(), case.alignment)
            .layout(spec)
            .with_memory_regions(layout.memory_regions().to_vec())
            .build()
            .unwrap();
        prop_assert_eq!(digits.layout_fingerprint(), layout.layout_fingerprint());
        round_trip(&digits);
    }
}
