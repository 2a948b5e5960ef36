//! Descriptors: what other systems wrote is read, what was written comes back, and what is hostile
//! is refused within bounded memory.
#![expect(clippy::indexing_slicing, clippy::unwrap_used, reason = "tests")]

mod common;

use std::{
    alloc::{GlobalAlloc, Layout, System},
    sync::atomic::{AtomicUsize, Ordering},
};

use kvtile_layout::{
    Axis, LayoutError, Plane, Shape, Unit, Word,
    tradition::{BlockDimension, InnerShape, LayoutConfig, LayoutKind},
};
use kvtile_memory::{MemType, StorageKind};
use kvtile_testkit::generate::{config, layouts};
use kvtile_transfer::{
    DESCRIPTOR_BYTES_MAX, LayoutDescriptor, NixlMetadata, PhysicalLayout, TransferError,
};
use proptest::prelude::*;
use serde_json::{Value, json};

/// The system's allocator with a count of what is allocated.
struct Counting;

static LIVE: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

fn count(bytes: usize) {
    let live = LIVE.fetch_add(bytes, Ordering::Relaxed) + bytes;
    PEAK.fetch_max(live, Ordering::Relaxed);
}

// SAFETY: everything is passed on to the system's allocator; counting touches no memory of it.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size());
        // SAFETY: passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        LIVE.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: passed on.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// What the tests of this binary may use together, in bytes: some run at the same time.
const MEMORY_MAX: usize = 512 << 20;

fn contiguous() -> Value {
    json!({
        "version": 1,
        "layout_config": {
            "num_blocks": 10, "num_layers": 4, "outer_dim": 2, "page_size": 16,
            "inner_dim": 128, "alignment": 1, "dtype_width_bytes": 2
        },
        "location": "System",
        "nixl_metadata": {"agent_name": "worker-1", "mem_type": "Dram", "device_id": 0},
        "memory_descriptors": [{"addr": 4096, "size": 10 * 4 * 2 * 16 * 128 * 2}],
        "layout_type_details": {"FullyContiguous": {"block_format": "Operational"}}
    })
}

fn separate() -> Value {
    let bytes = 10 * 2 * 16 * 128 * 2u64;
    let regions: Vec<Value> = (0..4u64)
        .map(|layer| json!({"addr": 0x10_0000 + layer * bytes, "size": bytes}))
        .collect();
    let mut value = contiguous();
    value["location"] = json!({"Device": 3});
    value["nixl_metadata"] = json!({"agent_name": "w", "mem_type": "Vram", "device_id": 3});
    value["memory_descriptors"] = Value::Array(regions);
    value["layout_type_details"] = json!({"LayerSeparate": {"block_dim": "BlockIsSecondDim"}});
    value
}

fn read(value: &Value) -> Result<PhysicalLayout, TransferError> {
    PhysicalLayout::from_descriptor(LayoutDescriptor::from_json(&value.to_string())?)
}

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

/// Fields that some writers have and others have not, in every combination.
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
        // An order that contradicts, or that places heads nobody counted, is refused: pitfalls 5, 24.
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

fn round_trip(layout: &PhysicalLayout) {
    let descriptor = layout.to_descriptor().unwrap();
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
    // A remote layout describes itself as it came.
    assert_eq!(remote.to_descriptor().unwrap(), descriptor);
}

#[test]
fn layouts_of_every_family_come_back_from_their_descriptors() {
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
        .with_shape(mla, 64)
        .layout("LBNKC".parse::<Word>().unwrap())
        .allocate_system()
        .build()
        .unwrap();
    round_trip(&layout);
}

proptest! {
    #![proptest_config(config(300))]

    /// Random planes, words and alignments. A layout that no config describes has no descriptor, and
    /// the error says which constraint of a config fails.
    #[test]
    fn random_layouts_come_back_from_their_descriptors(case in layouts()) {
        let image = case.reference().unwrap().poisoned().unwrap();
        let folder = std::path::Path::new("");
        let (layout, _) = common::over_image(&case, &image, common::Place::Memory, folder).unwrap();
        match layout.config() {
            Ok(_) => round_trip(&layout),
            Err(TransferError::NoLayoutConfig { constraint }) => {
                let error = layout.to_descriptor().unwrap_err().to_string();
                prop_assert!(error.contains(&constraint.to_string()), "{}", error);
            }
            Err(error) => prop_assert!(false, "{}", error),
        }
    }
}

/// Pitfall 2: what a hostile or broken writer may say, each refused by its own error.
#[test]
fn hostile_descriptors_are_refused_with_what_is_wrong() {
    for (what, path, new, check) in hostile_cases() {
        let mut value = contiguous();
        if new.is_null() {
            value.as_object_mut().unwrap().remove(&path[1..]);
        } else {
            *value.pointer_mut(path).unwrap() = new;
        }
        let error = read(&value).map(|_| ()).unwrap_err();
        assert!(check(&error), "{what}: {error:?}");
        assert!(!error.to_string().is_empty());
    }
}

/// What is said, where it stands in the document, the value, and what it must be refused for.
type Hostile = (
    &'static str,
    &'static str,
    Value,
    fn(&TransferError) -> bool,
);

fn hostile_cases() -> impl Iterator<Item = Hostile> {
    let details: Hostile = (
        "unknown details",
        "/layout_type_details",
        json!({"Spiral": {}}),
        |e| matches!(e, TransferError::DescriptorSyntax { .. }),
    );
    let cases = hostile_counts().into_iter().chain(hostile_places());
    cases.chain([details])
}

fn hostile_counts() -> Vec<Hostile> {
    vec![
        ("version 0", "/version", json!(0), |e| {
            matches!(
                e,
                TransferError::DescriptorVersion {
                    version: 0,
                    supported: 1
                }
            )
        }),
        ("version 2", "/version", json!(2), |e| {
            matches!(e, TransferError::DescriptorVersion { version: 2, .. })
        }),
        ("no version", "/version", Value::Null, |e| {
            matches!(e, TransferError::DescriptorSyntax { .. })
        }),
        (
            "blocks over a tiny region",
            "/layout_config/num_blocks",
            json!(1u64 << 40),
            |e| matches!(e, TransferError::RegionTooSmall { region: 0, .. }),
        ),
        (
            "a product that wraps",
            "/layout_config/num_blocks",
            json!(u64::MAX / 2),
            |e| {
                matches!(
                    e,
                    TransferError::DescriptorSyntax { .. }
                        | TransferError::Layout(LayoutError::TooLarge { .. })
                )
            },
        ),
        ("no blocks", "/layout_config/num_blocks", json!(0), |e| {
            matches!(e, TransferError::DescriptorSyntax { .. })
        }),
    ]
}

fn hostile_places() -> Vec<Hostile> {
    vec![
        (
            "addresses that wrap",
            "/memory_descriptors/0/addr",
            json!(u64::MAX - 4095),
            |e| matches!(e, TransferError::DescriptorRange { index: 0, .. }),
        ),
        (
            "a region of nothing",
            "/memory_descriptors/0/size",
            json!(0),
            |e| matches!(e, TransferError::DescriptorRange { index: 0, .. }),
        ),
        (
            "a region too small",
            "/memory_descriptors/0/size",
            json!(327_679),
            |e| {
                matches!(
                    e,
                    TransferError::RegionTooSmall {
                        have: 327_679,
                        need: 327_680,
                        ..
                    }
                )
            },
        ),
        ("no regions", "/memory_descriptors", json!([]), |e| {
            matches!(
                e,
                TransferError::RegionCount {
                    given: 0,
                    needed: 1
                }
            )
        }),
        (
            "a misaligned region",
            "/layout_config/alignment",
            json!(8192),
            |e| {
                matches!(
                    e,
                    TransferError::RegionMisaligned { .. } | TransferError::RegionTooSmall { .. }
                )
            },
        ),
        (
            "an alignment of 3",
            "/layout_config/alignment",
            json!(3),
            |e| matches!(e, TransferError::DescriptorSyntax { .. }),
        ),
        ("another location", "/location", json!({"Device": 0}), |e| {
            matches!(e, TransferError::DescriptorLocation { .. })
        }),
        (
            "another memory type",
            "/nixl_metadata/mem_type",
            json!("File"),
            |e| matches!(e, TransferError::DescriptorLocation { .. }),
        ),
        ("an unknown location", "/location", json!("Moon"), |e| {
            matches!(e, TransferError::DescriptorSyntax { .. })
        }),
    ]
}

/// Pitfall 7: regions that share a byte, or one region for two layers.
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
            matches!(error, TransferError::RegionsOverlap { .. }),
            "{error}"
        );
    }
    let mut value = separate();
    value["nixl_metadata"]["device_id"] = json!(2);
    assert!(matches!(
        read(&value),
        Err(TransferError::DescriptorLocation { .. })
    ));
    let mut value = separate();
    value["memory_descriptors"].as_array_mut().unwrap().pop();
    assert!(matches!(
        read(&value),
        Err(TransferError::RegionCount {
            given: 3,
            needed: 4
        })
    ));
}

/// The checks hold for descriptors that never were JSON.
#[test]
fn a_descriptor_made_in_memory_is_checked_as_well() {
    let good = LayoutDescriptor::from_json(&contiguous().to_string()).unwrap();
    for version in [0, 2, u32::MAX] {
        let descriptor = LayoutDescriptor {
            version,
            ..good.clone()
        };
        let error = PhysicalLayout::from_descriptor(descriptor).unwrap_err();
        assert!(matches!(error, TransferError::DescriptorVersion { .. }));
    }
}

/// Pitfall 8: what a few bytes claim is not allocated.
#[test]
fn absurd_counts_cost_no_memory() {
    let mut texts: Vec<String> = Vec::new();
    for field in [
        "num_blocks",
        "num_layers",
        "page_size",
        "inner_dim",
        "num_heads",
    ] {
        for value in [
            1u64 << 20,
            (1 << 20) + 1,
            1 << 32,
            1 << 40,
            1 << 62,
            u64::MAX,
        ] {
            for make in [contiguous, separate] {
                let mut descriptor = make();
                descriptor["layout_config"][field] = json!(value);
                texts.push(descriptor.to_string());
                descriptor["memory_descriptors"][0]["size"] = json!(u64::MAX >> 1);
                texts.push(descriptor.to_string());
            }
        }
    }
    for word in [
        "B|LKNHC",
        "BL|KNHC",
        "BLKNHC|",
        "B@1073741824LKNHC",
        "B=9223372036854775807LKNHC",
    ] {
        for blocks in [10u64, 1 << 20, 1 << 30, 1 << 40] {
            let mut descriptor = contiguous();
            descriptor["layout_config"]["num_blocks"] = json!(blocks);
            descriptor["layout_config"]["num_heads"] = json!(8);
            descriptor["layout_type_details"] = json!({"Word": {"word": word}});
            texts.push(descriptor.to_string());
        }
    }
    // Digits that step from region to region in many ways.
    for regions in [1u64 << 14, 1 << 17] {
        let half = regions / 2;
        let digit = |axis: &str| {
            let step = json!({"regions": 1, "bytes": 0});
            json!({"axis": axis, "low": 1, "extent": half, "step": step})
        };
        let mut descriptor = contiguous();
        descriptor["layout_config"] = json!({
            "num_blocks": half, "num_layers": half, "outer_dim": 1, "page_size": 1,
            "inner_dim": 1, "dtype_width_bytes": 1, "num_heads": 1});
        descriptor["layout_type_details"] = json!({"Digits": {
            "planes": [{"plane": "kv", "region": 0, "offset": 0,
                        "digits": [digit("B"), digit("L")]}],
            "region_bytes": vec![1; usize::try_from(regions).unwrap()]}});
        texts.push(descriptor.to_string());
    }
    texts.push("[".repeat(1 << 20));
    texts.push(format!("{{\"version\": 1, \"x\": {}", "[".repeat(1 << 20)));
    for text in texts {
        let before = LIVE.load(Ordering::Relaxed);
        PEAK.store(before, Ordering::Relaxed);
        let result = LayoutDescriptor::from_json(&text).and_then(PhysicalLayout::from_descriptor);
        let used = PEAK.load(Ordering::Relaxed).saturating_sub(before);
        assert!(used < MEMORY_MAX, "{used} bytes for {:.200}", text);
        if let Ok(layout) = result {
            assert!(layout.is_remote());
        }
    }
}

#[test]
fn text_that_is_too_long_is_not_parsed() {
    let text = vec![b' '; DESCRIPTOR_BYTES_MAX + 1];
    let error = LayoutDescriptor::from_json_bytes(&text).unwrap_err();
    assert!(matches!(error, TransferError::DescriptorTooLong { .. }));
}

/// Every value of a document, by path.
fn paths(value: &Value, path: &str, found: &mut Vec<String>) {
    found.push(path.to_owned());
    match value {
        Value::Object(map) => {
            for (key, value) in map {
                paths(value, &format!("{path}/{key}"), found);
            }
        }
        Value::Array(list) => {
            for (index, value) in list.iter().enumerate() {
                paths(value, &format!("{path}/{index}"), found);
            }
        }
        _ => {}
    }
}

fn documents() -> Vec<Value> {
    let digits = |axis: &str, extent: u64, bytes: u64| json!({"axis": axis, "low": 1, "extent": extent, "step": {"regions": 0, "bytes": bytes}});
    let mut word = contiguous();
    word["layout_config"]["num_heads"] = json!(8);
    word["layout_type_details"] = json!({"Word": {"word": "BHLKN4NC", "shape": {
    "num_blocks": 10, "num_layers": 4, "page_size": 16,
    "planes": [
        {"name": "k", "unit": {"codec": "raw16", "bytes": 2, "values": 1},
         "extents": [["H", 8], ["C", 16]]},
        {"name": "v", "unit": {"codec": "raw16", "bytes": 2, "values": 1},
         "extents": [["H", 8], ["C", 16]]}
    ]}}});
    let mut given = contiguous();
    given["layout_config"]["outer_dim"] = json!(1);
    given["layout_config"]["num_heads"] = json!(1);
    given["layout_type_details"] = json!({"Digits": {
        "planes": [{"plane": "kv", "region": 0, "offset": 0, "digits": [
            digits("B", 10, 16384), digits("L", 4, 4096), digits("N", 16, 256),
            digits("C", 128, 2)]}],
        "region_bytes": [327_680]}});
    vec![contiguous(), separate(), word, given]
}

#[test]
fn the_documents_that_are_mutated_are_good_ones() {
    for document in documents() {
        read(&document).unwrap_or_else(|error| panic!("{error}: {document}"));
    }
}

fn replacements() -> impl Strategy<Value = Value> {
    prop_oneof![
        prop::sample::select(vec![
            json!(null),
            json!(true),
            json!(-1),
            json!(0),
            json!(1),
            json!(2),
            json!(3),
            json!(16),
            json!(255),
            json!(1 << 20),
            json!(1u64 << 32),
            json!(1u64 << 53),
            json!(i64::MAX),
            json!(u64::MAX),
            json!(1e300),
            json!(0.5),
            json!(""),
            json!([]),
            json!({}),
            json!("B"),
            json!("BLKNHC"),
            json!("L|KBNHC"),
            json!("N"),
            json!("k"),
            json!("Unknown"),
            json!("HND"),
            json!("Pinned"),
            json!({"Disk": 7}),
            json!([[[]]]),
        ]),
        any::<u64>().prop_map(|n| json!(n)),
        (0u32..64).prop_map(|shift| json!(1u64 << shift)),
        "[A-Za-z0-9|@=(),]{0,12}".prop_map(|text| json!(text)),
    ]
}

proptest! {
    #![proptest_config(config(6000))]

    /// Values replaced and removed at random: an error or a layout, never a panic, never memory
    /// without bounds.
    #[test]
    fn mutated_descriptors_never_panic(
        document in prop::sample::select(documents()),
        mutations in prop::collection::vec(
            (any::<prop::sample::Index>(), replacements(), 0..8u8), 1..4),
        cut in prop::option::weighted(0.05, any::<prop::sample::Index>()),
    ) {
        let mut value = document;
        for (index, new, action) in mutations {
            let mut found = Vec::new();
            paths(&value, "", &mut found);
            let path = index.get(&found).clone();
            if action == 0 {
                let (parent, key) = path.rsplit_once('/').unwrap_or(("", ""));
                if let Some(Value::Object(map)) = value.pointer_mut(parent) {
                    map.remove(key);
                }
            } else if let Some(old) = value.pointer_mut(&path) {
                *old = new;
            }
        }
        let mut text = value.to_string();
        if let Some(cut) = cut {
            text.truncate(cut.index(text.len() + 1));
        }
        let before = LIVE.load(Ordering::Relaxed);
        PEAK.store(before, Ordering::Relaxed);
        if let Ok(descriptor) = LayoutDescriptor::from_json(&text) {
            let again = LayoutDescriptor::from_json(&descriptor.to_json().unwrap()).unwrap();
            prop_assert_eq!(&again, &descriptor);
            if let Ok(layout) = PhysicalLayout::from_descriptor(descriptor) {
                let regions = layout.memory_descriptors();
                prop_assert_eq!(regions.len(), layout.strided().region_bytes().len());
                for (region, bytes) in regions.iter().zip(layout.strided().region_bytes()) {
                    prop_assert!(region.size as u64 >= *bytes);
                    prop_assert!(region.end().is_some());
                }
            }
        }
        let used = PEAK.load(Ordering::Relaxed).saturating_sub(before);
        prop_assert!(used < MEMORY_MAX, "{} bytes", used);
    }
}
