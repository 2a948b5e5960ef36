//! Version 2: its JSON, the layouts that it describes, and refused descriptors.

use kvtile_layout::{LayoutError, ResolveError, tradition::LayoutKind};
use kvtile_memory::StorageKind;
use kvtile_transfer::{
    BindError, DescribedLayout, DescribedOrder, DescriptorError, LayoutDescriptor, TransferError,
};
use serde_json::{Value, json};

use crate::{
    contiguous, general_digits, general_word,
    hostile::{HostileCase, refuses},
    read,
};

/// The JSON form is stable: later versions read what this one writes.
#[test]
fn the_text_of_version_2_is_written_as_it_was_read() {
    for value in [general_word(), general_digits()] {
        let descriptor = LayoutDescriptor::from_json(&value.to_string()).unwrap();
        assert_eq!(descriptor.version(), 2);
        let mut written: Value = serde_json::from_str(&descriptor.to_json().unwrap()).unwrap();
        let shape = written["shape"].as_object_mut().unwrap();
        // The defaults of a shape are written explicitly.
        assert!(shape.remove("shard").unwrap().is_object());
        for (plane, read) in written["shape"]["planes"]
            .as_array_mut()
            .unwrap()
            .iter_mut()
            .zip(value["shape"]["planes"].as_array().unwrap())
        {
            let plane = plane.as_object_mut().unwrap();
            plane.retain(|field, _| read.get(field).is_some());
        }
        assert_eq!(written, value);
    }
}

#[test]
fn a_layout_by_a_word_that_no_config_describes_is_read() {
    let layout = read(&general_word()).unwrap();
    assert!(layout.is_remote());
    assert_eq!(layout.kind(), LayoutKind::Strided);
    assert_eq!(layout.location(), StorageKind::System);
    assert!(matches!(
        layout.config(),
        Err(TransferError::Descriptor(
            DescriptorError::NoLayoutConfig { .. }
        ))
    ));
    assert!(layout.serialization_details().is_err());
    assert_eq!(layout.strided().word().unwrap().to_string(), "BLKNC");
    assert_eq!(layout.strided().alignment(), 64);
    // 4 layers of 4100 + 64 bytes are 16656 bytes, and 16704 is the next multiple of 64.
    let place = |block, layer, plane| layout.memory_region(block, layer, plane).unwrap();
    assert_eq!(place(0, 0, 0).addr, 4096);
    assert_eq!(
        (place(1, 2, 0).addr, place(1, 2, 0).size),
        (4096 + 16_704 + 2 * 4164, 4100)
    );
    assert_eq!(
        (place(1, 2, 1).addr, place(1, 2, 1).size),
        (4096 + 16_704 + 2 * 4164 + 4100, 64)
    );
}

#[test]
fn a_layout_by_digits_is_read() {
    let layout = read(&general_digits()).unwrap();
    let place = |block, layer| layout.memory_region(block, layer, 0).unwrap();
    assert_eq!((place(0, 0).addr, place(0, 0).size), (4096 + 28, 100));
    assert_eq!(place(2, 1).addr, 8192 + 28 + 256);
    assert!(layout.strided().is_injective());
    let descriptor = layout.to_descriptor();
    let DescribedLayout::General { order, .. } = descriptor.layout else {
        panic!("{descriptor:?}")
    };
    assert!(matches!(order, DescribedOrder::Digits { .. }));
}

/// Another writer may use version 2 for a layout that a config describes; the view exists then.
#[test]
fn a_layout_of_version_2_has_a_config_where_one_describes_it() {
    let mut value = general_word();
    let plane = |name| {
        json!({"name": name, "unit": {"codec": "raw16", "bytes": 2, "values": 1},
               "extents": [["H", 8], ["C", 16]]})
    };
    value["shape"]["planes"] = json!([plane("k"), plane("v")]);
    value["order"] = json!({"word": "BHLKNC"});
    value["memory_descriptors"][0]["size"] = json!(327_680);
    let layout = read(&value).unwrap();
    let config = layout.config().unwrap();
    assert_eq!((config.outer_dim(), config.num_heads()), (2, Some(8)));
    assert_eq!(config.page_bytes(), 16 * 8 * 16 * 2);
    // It keeps the form in which it was received.
    assert_eq!(layout.to_descriptor().version(), 2);
}

/// Units may share bytes, as in a local layout: such a layout is read-only.
#[test]
fn digits_that_overlap_make_a_layout_that_is_not_injective() {
    let mut value = general_digits();
    value["order"]["digits"]["planes"][0]["digits"][1]["step"]["bytes"] = json!(0);
    assert!(!read(&value).unwrap().strided().is_injective());
}

#[test]
fn hostile_descriptors_of_version_2_are_refused_with_what_is_wrong() {
    for case in hostile_words() {
        refuses(general_word(), case);
    }
    for case in hostile_digits().into_iter().chain(hostile_memory()) {
        refuses(general_digits(), case);
    }
    let mut unknown = general_word();
    unknown["interleaved"] = json!(true);
    assert!(matches!(
        read(&unknown),
        Err(TransferError::Descriptor(
            DescriptorError::DescriptorSyntax { .. }
        ))
    ));
    // The fields of version 1 with the number of version 2, and vice versa.
    let mut mixed = general_word();
    mixed["version"] = json!(1);
    assert!(read(&mixed).is_err());
    let mut mixed = contiguous();
    mixed["version"] = json!(2);
    assert!(read(&mixed).is_err());
}

fn is_syntax(error: &TransferError) -> bool {
    matches!(
        error,
        TransferError::Descriptor(DescriptorError::DescriptorSyntax { .. })
    )
}

fn is_layout(error: &TransferError) -> bool {
    matches!(error, TransferError::Layout(_))
}

fn is_range(error: &TransferError) -> bool {
    matches!(
        error,
        TransferError::Descriptor(DescriptorError::DescriptorRange { index: 0, .. })
    )
}

fn hostile_words() -> Vec<HostileCase> {
    vec![
        ("no shape", "/shape", Value::Null, is_syntax),
        ("no alignment", "/alignment", Value::Null, is_syntax),
        ("no order", "/order", Value::Null, is_syntax),
        ("an empty order", "/order", json!({}), is_syntax),
        (
            "two orders",
            "/order",
            json!({"word": "BLKNC", "digits": {"planes": [], "region_bytes": []}}),
            is_syntax,
        ),
        ("an invalid word", "/order/word", json!("BL("), is_syntax),
        (
            "a word without an axis",
            "/order/word",
            json!("BKNC"),
            is_layout,
        ),
        ("an alignment of 0", "/alignment", json!(0), is_layout),
        ("an alignment of 3", "/alignment", json!(3), is_layout),
        (
            "an alignment of 2^63",
            "/alignment",
            json!(1u64 << 63),
            is_layout,
        ),
        ("no blocks", "/shape/num_blocks", json!(0), is_syntax),
        ("no planes", "/shape/planes", json!([]), is_syntax),
        (
            "a product that wraps",
            "/shape/num_blocks",
            json!(u64::MAX),
            is_syntax,
        ),
        (
            "a unit of zero bytes",
            "/shape/planes/0/unit/bytes",
            json!(0),
            is_syntax,
        ),
        (
            "blocks over a tiny region",
            "/shape/num_blocks",
            json!(1u64 << 40),
            |e| {
                matches!(
                    e,
                    TransferError::Bind(BindError::RegionTooSmall { region: 0, .. })
                )
            },
        ),
        (
            "a region that is not aligned",
            "/memory_descriptors/0/addr",
            json!(4097),
            |e| {
                matches!(
                    e,
                    TransferError::Bind(BindError::RegionMisaligned { addr: 4097, .. })
                )
            },
        ),
        (
            "addresses that wrap",
            "/memory_descriptors/0/addr",
            json!(u64::MAX - 4095),
            is_range,
        ),
    ]
}

fn is_outside(error: &TransferError) -> bool {
    matches!(
        error,
        TransferError::Layout(LayoutError::Resolve(ResolveError::OutsideRegion { .. }))
    )
}

fn hostile_digits() -> Vec<HostileCase> {
    vec![
        (
            "an unknown plane",
            "/order/digits/planes/0/plane",
            json!("z"),
            is_layout,
        ),
        ("no planes", "/order/digits/planes", json!([]), is_layout),
        (
            "no regions",
            "/order/digits/region_bytes",
            json!([]),
            is_layout,
        ),
        (
            "an offset outside the region",
            "/order/digits/planes/0/offset",
            json!(29),
            |e| {
                matches!(
                    e,
                    TransferError::Layout(LayoutError::Resolve(ResolveError::OutsideRegion {
                        end: 385,
                        ..
                    }))
                )
            },
        ),
        (
            "an offset that wraps",
            "/order/digits/planes/0/offset",
            json!(u64::MAX),
            is_outside,
        ),
        (
            "an unknown region",
            "/order/digits/planes/0/region",
            json!(1),
            is_outside,
        ),
        (
            "a step that wraps",
            "/order/digits/planes/0/digits/1/step/bytes",
            json!(u64::MAX / 2),
            is_outside,
        ),
        (
            "digits that do not cover their axis",
            "/order/digits/planes/0/digits/1/extent",
            json!(2),
            |e| {
                matches!(
                    e,
                    TransferError::Layout(LayoutError::Resolve(
                        ResolveError::DigitsIncomplete { .. }
                    ))
                )
            },
        ),
    ]
}

fn hostile_memory() -> Vec<HostileCase> {
    vec![
        (
            "regions of the memory that overlap",
            "/memory_descriptors/1/addr",
            json!(4096 + 383),
            |e| matches!(e, TransferError::Bind(BindError::RegionsOverlap { .. })),
        ),
        (
            "a region of the memory that is too small",
            "/memory_descriptors/1/size",
            json!(383),
            |e| {
                matches!(
                    e,
                    TransferError::Bind(BindError::RegionTooSmall { region: 1, .. })
                )
            },
        ),
        (
            "a region of the memory that is missing",
            "/memory_descriptors",
            json!([{"addr": 4096, "size": 384}]),
            |e| {
                matches!(
                    e,
                    TransferError::Bind(BindError::RegionCount {
                        given: 1,
                        needed: 2
                    })
                )
            },
        ),
    ]
}
