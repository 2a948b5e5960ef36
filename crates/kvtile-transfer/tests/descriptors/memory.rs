//! Absurd counts and mutations: each gives an error or a layout, within bounded memory.

use std::sync::atomic::Ordering;

use kvtile_testkit::generate::config;
use kvtile_transfer::{LayoutDescriptor, PhysicalLayout};
use proptest::prelude::*;
use serde_json::{Value, json};

use crate::{LIVE, MEMORY_MAX, PEAK, contiguous, general_digits, general_word, read, separate};

/// Pitfall 8: claims in a short document do not cause allocations.
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
    // Many combinations of digits that step between regions.
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
    texts.extend(absurd_general());
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

/// Counts, regions and digits of version 2 that exceed any memory.
fn absurd_general() -> Vec<String> {
    let mut texts = Vec::new();
    let counts = [
        1u64 << 20,
        (1 << 20) + 1,
        1 << 32,
        1 << 40,
        1 << 62,
        u64::MAX,
    ];
    for count in counts {
        for field in ["num_blocks", "num_layers", "page_size"] {
            for word in ["BLKNC", "B|LKNC", "L|BKNC", "BL|KNC"] {
                let mut value = general_word();
                value["shape"][field] = json!(count);
                value["order"]["word"] = json!(word);
                value["memory_descriptors"][0]["size"] = json!(u64::MAX >> 1);
                texts.push(value.to_string());
            }
        }
        for path in ["/alignment", "/shape/planes/0/unit/bytes"] {
            let mut value = general_word();
            *value.pointer_mut(path).unwrap() = json!(count);
            texts.push(value.to_string());
        }
        for path in [
            "offset",
            "region",
            "digits/0/extent",
            "digits/0/step/regions",
        ] {
            let mut value = general_digits();
            let path = format!("/order/digits/planes/0/{path}");
            *value.pointer_mut(&path).unwrap() = json!(count);
            texts.push(value.to_string());
        }
    }
    // Steps between regions whose product far exceeds the number of regions.
    let regions = 1 << 17;
    let far = |axis: &str| json!({"axis": axis, "low": 1, "extent": regions / 2, "step": {"regions": 1, "bytes": 0}});
    let mut value = general_digits();
    value["shape"]["num_blocks"] = json!(regions / 2);
    value["shape"]["num_layers"] = json!(regions / 2);
    value["order"]["digits"]["planes"][0]["digits"] = json!([far("B"), far("L")]);
    value["order"]["digits"]["region_bytes"] = json!(vec![384; regions]);
    texts.push(value.to_string());
    // More planes and digits than the limits allow.
    let mut value = general_digits();
    let digit = value["order"]["digits"]["planes"][0]["digits"][1].clone();
    value["order"]["digits"]["planes"][0]["digits"] = json!(vec![digit; 1 << 16]);
    texts.push(value.to_string());
    let mut value = general_word();
    let plane = value["shape"]["planes"][0].clone();
    value["shape"]["planes"] = json!(vec![plane; 1 << 16]);
    texts.push(value.to_string());
    texts
}

/// The paths of all values of a document.
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
    vec![
        contiguous(),
        separate(),
        word,
        given,
        general_word(),
        general_digits(),
    ]
}

#[test]
fn the_documents_before_mutation_are_valid() {
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
            json!({"word": "BLKNC"}),
            json!({"word": "L|KNBC"}),
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

    /// Values replaced and removed at random: an error or a layout, never a panic, never unbounded
    /// memory.
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
