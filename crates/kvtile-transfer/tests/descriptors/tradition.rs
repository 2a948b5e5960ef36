//! Version 1 as other systems write it.

use kvtile_layout::{
    Axis,
    tradition::{BlockDimension, InnerShape, LayoutKind},
};
use kvtile_memory::{MemType, StorageKind};
use kvtile_transfer::{DescribedLayout, NixlMetadata, PhysicalLayout, TransferError};
use serde_json::json;

use crate::{contiguous, read, separate};

#[test]
fn descriptors_of_the_tradition_are_read() {
    let layout = read(&contiguous()).unwrap();
    assert!(layout.is_remote());
    assert_eq!(layout.kind(), LayoutKind::FullyContiguous);
    assert_eq!(layout.location(), StorageKind::System);
    let agent = NixlMetadata::new("worker-1".to_owned(), MemType::Dram, 0);
    assert_eq!(layout.nixl_metadata(), &agent);
    let config = layout.config().unwrap();
    assert_eq!(config.num_heads(), None);
    assert_eq!(config.inner_shape(), InnerShape::Unknown);
    assert_eq!(layout.memory_descriptors()[0].size, 327_680);

    let layout = read(&separate()).unwrap();
    let kind = LayoutKind::LayerSeparate(BlockDimension::BlockIsSecondDim);
    assert_eq!(layout.kind(), kind);
    assert_eq!(layout.location(), StorageKind::Device(3));
    assert_eq!(layout.memory_descriptors().len(), 4);
}

/// Fields that some writers omit, in every combination.
#[test]
fn optional_fields_of_the_tradition_are_read_present_and_absent() {
    for make in [contiguous, separate] {
        let family = match make().pointer("/layout_type_details/FullyContiguous") {
            Some(_) => "FullyContiguous",
            None => "LayerSeparate",
        };
        let inner_of = |inner: &str, order: Option<&str>, heads: Option<u64>| {
            let mut value = make();
            if !inner.is_empty() {
                value["layout_config"]["inner_shape"] = json!(inner);
            }
            if let Some(heads) = heads {
                value["layout_config"]["num_heads"] = json!(heads);
            }
            if let Some(order) = order {
                value["layout_type_details"][family]["kv_block_layout"] = json!(order);
            }
            read(&value)
        };
        let word = |result: Result<PhysicalLayout, TransferError>| {
            let layout = result.unwrap();
            let planes = layout.shape().planes();
            let word = layout.strided().word().unwrap();
            (word.to_string(), planes[0].has(Axis::H))
        };
        let (nhd, hnd) = match family {
            "FullyContiguous" => ("BLKNHC", "BLKHNC"),
            _ => ("L|KBNHC", "L|KBHNC"),
        };
        let (nhd, hnd) = (nhd.to_owned(), hnd.to_owned());
        assert!(!word(inner_of("", None, None)).1);
        assert!(!word(inner_of("Unknown", Some("Unknown"), Some(8))).1);
        assert_eq!(word(inner_of("NHD", None, Some(8))), (nhd.clone(), true));
        assert_eq!(word(inner_of("HND", None, Some(8))), (hnd.clone(), true));
        let stated = inner_of("NHD", Some("OperationalNHD"), Some(8));
        assert_eq!(word(stated), (nhd.clone(), true));
        assert_eq!(
            word(inner_of("", Some("OperationalHND"), Some(8))),
            (hnd, true)
        );
        assert_eq!(
            word(inner_of("", Some("OperationalNHD"), Some(8))),
            (nhd, true)
        );
        // A contradictory order, or one that places heads without a head count, is refused:
        // pitfalls 5, 24.
        inner_of("NHD", Some("OperationalHND"), Some(8)).unwrap_err();
        inner_of("HND", None, None).unwrap_err();
        inner_of("", Some("OperationalHND"), None).unwrap_err();
        inner_of("", None, Some(7)).unwrap_err();
        let universal = inner_of("", Some("UniversalTP"), Some(8));
        match family {
            "FullyContiguous" => assert_eq!(word(universal), ("BHLKNC".to_owned(), true)),
            _ => assert!(universal.is_err()),
        }
    }
    let mut value = contiguous();
    value["layout_config"]
        .as_object_mut()
        .unwrap()
        .remove("alignment");
    value["layout_config"]
        .as_object_mut()
        .unwrap()
        .remove("dtype_width_bytes");
    value["layout_config"]["written_by"] = json!("another system");
    read(&value).unwrap();
}

/// This version writes such layouts in the form that every earlier version reads.
#[test]
fn a_layout_that_a_config_describes_is_written_as_version_1() {
    for make in [contiguous, separate] {
        let descriptor = read(&make()).unwrap().to_descriptor();
        assert_eq!(descriptor.version(), 1);
        assert!(matches!(
            descriptor.layout,
            DescribedLayout::Traditional { .. }
        ));
        let mut written: serde_json::Value =
            serde_json::from_str(&descriptor.to_json().unwrap()).unwrap();
        // Defaults are written explicitly.
        let (config, expected) = (&mut written["layout_config"], make());
        assert_eq!(config["inner_shape"], "Unknown");
        let config = config.as_object_mut().unwrap();
        config.retain(|field, _| expected["layout_config"].get(field).is_some());
        assert_eq!(written, expected);
    }
}
