//! Version 1 from a hostile or faulty writer.

use kvtile_layout::{LayoutError, ShapeError};
use kvtile_transfer::{
    BindError, DESCRIPTOR_BYTES_MAX, DescriptorError, LayoutDescriptor, TransferError,
};
use serde_json::{Value, json};

use crate::{contiguous, read, separate};

/// Pitfall 2: each invalid value from a hostile or faulty writer is refused with its own error.
#[test]
fn hostile_descriptors_are_refused_with_what_is_wrong() {
    for (what, path, new, check) in hostile_cases() {
        refuses(contiguous(), (what, path, new, check));
    }
}

/// Asserts that `value` with one change is refused with the error of `case`.
pub(crate) fn refuses(mut value: Value, (what, path, new, check): HostileCase) {
    if new.is_null() {
        value.as_object_mut().unwrap().remove(&path[1..]);
    } else {
        *value.pointer_mut(path).unwrap() = new;
    }
    let error = read(&value).map(|_| ()).unwrap_err();
    assert!(check(&error), "{what}: {error:?}");
    assert!(!error.to_string().is_empty());
}

/// The name of the case, the JSON pointer, the new value, and the check of the error.
pub(crate) type HostileCase = (
    &'static str,
    &'static str,
    Value,
    fn(&TransferError) -> bool,
);

fn hostile_cases() -> impl Iterator<Item = HostileCase> {
    let details: HostileCase = (
        "unknown details",
        "/layout_type_details",
        json!({"Spiral": {}}),
        is_syntax,
    );
    let cases = hostile_counts().into_iter().chain(hostile_places());
    cases.chain([details])
}

fn hostile_counts() -> Vec<HostileCase> {
    vec![
        ("version 0", "/version", json!(0), |e| {
            matches!(
                e,
                TransferError::Descriptor(DescriptorError::DescriptorVersion {
                    version: 0,
                    supported: 2
                })
            )
        }),
        ("version 3", "/version", json!(3), |e| {
            matches!(
                e,
                TransferError::Descriptor(DescriptorError::DescriptorVersion { version: 3, .. })
            )
        }),
        ("another version's fields", "/version", json!(2), is_syntax),
        ("no version", "/version", Value::Null, is_syntax),
        (
            "blocks over a tiny region",
            "/layout_config/num_blocks",
            json!(1u64 << 40),
            |e| {
                matches!(
                    e,
                    TransferError::Bind(BindError::RegionTooSmall { region: 0, .. })
                )
            },
        ),
        (
            "a product that wraps",
            "/layout_config/num_blocks",
            json!(u64::MAX / 2),
            |e| {
                matches!(
                    e,
                    TransferError::Descriptor(DescriptorError::DescriptorSyntax { .. })
                        | TransferError::Layout(LayoutError::Shape(ShapeError::TooLarge { .. }))
                )
            },
        ),
        (
            "no blocks",
            "/layout_config/num_blocks",
            json!(0),
            is_syntax,
        ),
    ]
}

fn is_range(error: &TransferError) -> bool {
    matches!(
        error,
        TransferError::Descriptor(DescriptorError::DescriptorRange { index: 0, .. })
    )
}

fn is_syntax(error: &TransferError) -> bool {
    matches!(
        error,
        TransferError::Descriptor(DescriptorError::DescriptorSyntax { .. })
    )
}

fn is_location(error: &TransferError) -> bool {
    matches!(
        error,
        TransferError::Descriptor(DescriptorError::DescriptorLocation { .. })
    )
}

fn hostile_places() -> Vec<HostileCase> {
    vec![
        (
            "addresses that wrap",
            "/memory_descriptors/0/addr",
            json!(u64::MAX - 4095),
            is_range,
        ),
        (
            "an empty region",
            "/memory_descriptors/0/size",
            json!(0),
            is_range,
        ),
        (
            "a region too small",
            "/memory_descriptors/0/size",
            json!(327_679),
            |e| {
                matches!(
                    e,
                    TransferError::Bind(BindError::RegionTooSmall {
                        have: 327_679,
                        need: 327_680,
                        ..
                    })
                )
            },
        ),
        ("no regions", "/memory_descriptors", json!([]), |e| {
            matches!(
                e,
                TransferError::Bind(BindError::RegionCount {
                    given: 0,
                    needed: 1
                })
            )
        }),
        (
            "a misaligned region",
            "/layout_config/alignment",
            json!(8192),
            |e| {
                matches!(
                    e,
                    TransferError::Bind(BindError::RegionMisaligned { .. })
                        | TransferError::Bind(BindError::RegionTooSmall { .. })
                )
            },
        ),
        (
            "an alignment of 3",
            "/layout_config/alignment",
            json!(3),
            is_syntax,
        ),
        (
            "another location",
            "/location",
            json!({"Device": 0}),
            is_location,
        ),
        (
            "another memory type",
            "/nixl_metadata/mem_type",
            json!("File"),
            is_location,
        ),
        ("an unknown location", "/location", json!("Moon"), is_syntax),
    ]
}

/// Pitfall 7: regions that overlap, or one region for two layers.
#[test]
fn overlapping_regions_are_refused() {
    for (region, shift) in [(1, 0i64), (1, -1), (2, -81_920), (3, -245_760)] {
        let mut value = separate();
        let before = value["memory_descriptors"][region]["addr"]
            .as_i64()
            .unwrap();
        let shift = if shift == 0 { -81_920 } else { shift };
        value["memory_descriptors"][region]["addr"] = json!(before + shift);
        let error = read(&value).unwrap_err();
        assert!(
            matches!(error, TransferError::Bind(BindError::RegionsOverlap { .. })),
            "{error}"
        );
    }
    let mut value = separate();
    value["nixl_metadata"]["device_id"] = json!(2);
    assert!(matches!(
        read(&value),
        Err(TransferError::Descriptor(
            DescriptorError::DescriptorLocation { .. }
        ))
    ));
    let mut value = separate();
    value["memory_descriptors"].as_array_mut().unwrap().pop();
    assert!(matches!(
        read(&value),
        Err(TransferError::Bind(BindError::RegionCount {
            given: 3,
            needed: 4
        }))
    ));
}

#[test]
fn text_that_is_too_long_is_not_parsed() {
    let text = vec![b' '; DESCRIPTOR_BYTES_MAX + 1];
    let error = LayoutDescriptor::from_json_bytes(&text).unwrap_err();
    assert!(matches!(
        error,
        TransferError::Descriptor(DescriptorError::DescriptorTooLong { .. })
    ));
}
