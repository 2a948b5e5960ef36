//! The logical part of identities.

use super::*;

/// A path into the JSON of an identity, its new value, and the field that changes.
fn changes() -> Vec<(&'static str, Value, &'static str)> {
    vec![
        ("/model", json!("lama"), "model"),
        ("/revision", json!("1e9e39f"), "revision"),
        ("/page_size", json!(32), "page_size"),
        ("/planes/0/name", json!("q"), "planes"),
        ("/planes/1/unit/codec", json!("f16"), "planes.v.codec"),
        ("/planes/0/unit/bytes", json!(4), "planes.k.unit_bytes"),
        ("/planes/0/unit/values", json!(2), "planes.k.unit_values"),
        ("/planes/1/per_token", json!(false), "planes.v.per"),
        (
            "/planes/1",
            json!({"name": "v", "unit": Unit::named("bf16").unwrap(), "every": 4, "extents": [["C", 128], ["H", 8]]}),
            "planes.v.per",
        ),
        (
            "/planes/0/extents",
            json!([["C", 64], ["H", 8]]),
            "planes.k.C",
        ),
        (
            "/planes/0/extents",
            json!([["C", 128], ["D", 1], ["H", 8]]),
            "planes.k.D",
        ),
        ("/shard/layers/start", json!(5), "shard.layers.start"),
        ("/shard/layers/count", json!(31), "shard.layers.count"),
        ("/shard/total_layers", json!(41), "shard.total_layers"),
        ("/shard/heads/start", json!(0), "shard.heads.start"),
        ("/shard/total_heads", json!(17), "shard.total_heads"),
        ("/rope/kind", json!("yarn"), "rope.kind"),
        ("/rope/base", json!("500000.00000000006"), "rope.base"),
        (
            "/rope/params/factor/number",
            json!("8.000000000000002"),
            "rope.params.factor",
        ),
        (
            "/rope/params/pairing/text",
            json!("neighbours"),
            "rope.params.pairing",
        ),
        (
            "/rope/params/pairing",
            json!({"number": "1"}),
            "rope.params.pairing",
        ),
        (
            "/rope/params",
            json!({"pairing": {"text": "halves"}}),
            "rope.params.factor",
        ),
        ("/rope", Value::Null, "rope.kind"),
        ("/extra/scales", json!("3c1f"), "extra.scales"),
        ("/extra", json!({}), "extra.scales"),
        (
            "/extra",
            json!({"scales": "none", "seed": "7"}),
            "extra.seed",
        ),
    ]
}

/// Pitfall 23: a reader accepts stored bytes of equal size from another model, dtype, rope,
/// tensor-parallel size or revision. Every single change gives another fingerprint and is named.
#[test]
fn every_field_changes_the_fingerprint_and_is_named() {
    let ours = logical();
    let json = serde_json::to_value(&ours).unwrap();
    for (path, value, field) in changes() {
        let mut changed = json.clone();
        *changed.pointer_mut(path).unwrap() = value;
        let theirs: Identity = serde_json::from_value(changed).unwrap();
        let there = ours.first_difference(&theirs).unwrap();
        assert_eq!(there.field, field, "{path}");
        assert_ne!(ours.fingerprint(), theirs.fingerprint(), "{path}");
        let back = theirs.first_difference(&ours).unwrap();
        assert_eq!(
            (&back.field, &back.ours),
            (&there.field, &there.theirs),
            "{path}"
        );
    }
}

/// The fingerprint covers every leaf of the stored form, except the replica number.
#[test]
fn every_leaf_of_the_stored_form_is_part_of_the_fingerprint() {
    fn leaves(value: &Value, path: String, found: &mut Vec<String>) {
        match value {
            Value::Object(map) => map
                .iter()
                .for_each(|(key, value)| leaves(value, format!("{path}/{key}"), found)),
            Value::Array(list) => list
                .iter()
                .enumerate()
                .for_each(|(i, value)| leaves(value, format!("{path}/{i}"), found)),
            _ => found.push(path),
        }
    }
    let ours = logical();
    let json = serde_json::to_value(&ours).unwrap();
    let mut paths = Vec::new();
    leaves(&json, String::new(), &mut paths);
    assert!(paths.len() > 25, "{paths:?}");
    let mut read = 0;
    for path in paths {
        let mut changed = json.clone();
        let leaf = changed.pointer_mut(&path).unwrap();
        *leaf = match leaf {
            Value::Number(n) => json!(n.as_u64().unwrap() + 1),
            Value::Bool(b) => json!(!*b),
            Value::String(s) if s.parse::<f64>().is_ok() => json!(format!("1{s}")),
            Value::String(s) if s.len() == 1 => json!("X"),
            Value::String(s) => json!(format!("{s}x")),
            other => panic!("{path} is {other}"),
        };
        // Some single changes give no valid identity, for instance heads that differ between
        // planes.
        let Ok(theirs) = serde_json::from_value::<Identity>(changed) else {
            continue;
        };
        read += 1;
        let same = ours.fingerprint() == theirs.fingerprint();
        assert_eq!(same, path == "/shard/replica", "{path}");
        assert_eq!(ours.first_difference(&theirs).is_none(), same, "{path}");
    }
    assert!(read > 15, "only {read} changes were readable");
}

#[test]
fn blocks_replicas_and_the_order_of_planes_are_no_part_of_it() {
    let ours = logical();
    let fewer = shape_of("bf16").with_num_blocks(1).unwrap();
    let shard = Shard {
        replica: 3,
        ..fewer.shard()
    };
    let planes = fewer.planes().iter().rev().cloned().collect();
    let shape = Shape::new(5, 32, 16, planes)
        .unwrap()
        .with_shard(shard)
        .unwrap();
    let theirs = Identity::new("llama", "0e9e39f", &shape)
        .unwrap()
        .with_rope(rope(500_000.0))
        .with_extra("scales", "none")
        .unwrap();
    assert_eq!(ours, theirs);
    assert_eq!(ours.fingerprint(), theirs.fingerprint());
    assert_eq!(ours.first_difference(&theirs), None);
}

#[test]
fn the_difference_of_a_rope_base_names_both_values() {
    let other = Identity::new("llama", "0e9e39f", &shape_of("bf16"))
        .map(|identity| identity.with_rope(rope(10_000.0)));
    let other = other.unwrap().with_extra("scales", "none").unwrap();
    let difference = logical().first_difference(&other).unwrap();
    assert_eq!(
        difference.to_string(),
        "rope.base differs: 500000.0 here, 10000.0 there"
    );
}

/// Two shards of one model differ only in their heads, so a caller can recognise that they belong
/// together.
#[test]
fn shards_of_one_model_differ_in_their_ranges_only() {
    let of = |rank| {
        let mut shard = Shard::tensor_parallel(40, 16, rank, 2).unwrap();
        shard.layers = AxisRange::new(4, 32);
        let shape = shape_of("bf16").with_shard(shard).unwrap();
        Identity::new("llama", "0e9e39f", &shape).unwrap()
    };
    let fields: Vec<String> = of(0)
        .differences(&of(1))
        .into_iter()
        .map(|difference| difference.field)
        .collect();
    assert_eq!(fields, ["shard.heads.start"]);
    assert_eq!(of(1).shard().heads, AxisRange::new(8, 8));
}

#[test]
fn numbers_that_are_none_and_texts_without_end_are_refused() {
    for value in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
        assert!(matches!(
            refusal(Rope::new("default", value)),
            IdentityError::NotFinite { .. }
        ));
        let text = json!({"kind": "default", "base": value.to_string()});
        assert!(serde_json::from_value::<Rope>(text).is_err());
    }
    assert_eq!(Real::new(-0.0).unwrap(), Real::new(0.0).unwrap());
    assert!(matches!(
        refusal("1e".parse::<Real>()),
        IdentityError::NotANumber { .. }
    ));
    let shape = shape_of("bf16");
    let long = "x".repeat(5000);
    for (model, revision) in [("", "r"), ("m", ""), (long.as_str(), "r")] {
        let error = refusal(Identity::new(model, revision, &shape));
        assert!(matches!(error, IdentityError::TextLength { .. }));
    }
    assert!(logical().with_extra("", "x").is_err());
    assert!(logical().with_extra("x", &long).is_err());
    let full = (0..256).try_fold(rope(1.0), |rope, i| rope.with_number(&format!("p{i}"), 0.0));
    assert!(matches!(
        refusal(full),
        IdentityError::TooManyEntries { count: 257, .. }
    ));
}

#[test]
fn numbers_are_read_from_text_and_from_numbers_and_keep_every_bit() {
    for value in [500_000.0, 0.1 + 0.2, 5e-324, f64::MAX, -1.5] {
        let real = Real::new(value).unwrap();
        let json = serde_json::to_string(&real).unwrap();
        assert_eq!(serde_json::from_str::<Real>(&json).unwrap(), real);
    }
    let from_number: Rope =
        serde_json::from_value(json!({"kind": "default", "base": 10000})).unwrap();
    assert_eq!(from_number, Rope::new("default", 10_000.0).unwrap());
}

#[test]
fn stored_identities_are_validated() {
    let json = serde_json::to_value(logical()).unwrap();
    for (path, value) in [
        ("/model", json!("")),
        ("/page_size", json!(0)),
        ("/planes", json!([])),
        ("/planes/1/name", json!("k")),
        ("/planes/0/extents", json!([["H", 8], ["C", 128], ["H", 8]])),
        ("/planes/0/extents", json!([["C", 128], ["H", 4]])),
        ("/planes/0/extents", json!([["C", u64::MAX], ["H", 8]])),
        ("/shard/heads/count", json!(7)),
        ("/shard/heads/start", json!(9)),
        ("/shard/layers/count", json!(0)),
        ("/shard/layers/start", json!(u64::MAX)),
        ("/rope/base", json!("NaN")),
        ("/extra/scales", json!("")),
        ("/extra", json!({"scales": 3})),
    ] {
        let mut bad = json.clone();
        *bad.pointer_mut(path).unwrap() = value.clone();
        let read = serde_json::from_value::<Identity>(bad);
        assert!(read.is_err(), "{path} {value} was taken");
    }
    let mut unknown = json.clone();
    unknown["surprise"] = json!(1);
    assert!(serde_json::from_value::<Identity>(unknown).is_err());
    // Axes in another order are the same identity.
    let mut swapped = json;
    swapped["planes"][0]["extents"] = json!([["H", 8], ["C", 128]]);
    let read: Identity = serde_json::from_value(swapped).unwrap();
    assert_eq!(read, logical());
}

#[test]
fn all_parts_of_a_model_have_the_fingerprint_of_the_whole() {
    let whole = Identity::new(
        "llama",
        "0e9e39f",
        &Shape::key_value(1, 40, 16, 16, 128, Unit::named("bf16").unwrap()).unwrap(),
    );
    let whole = whole.unwrap().with_rope(rope(500_000.0));
    assert_eq!(whole.model_fingerprint(), whole.fingerprint());
    let part = logical();
    assert_ne!(part.model_fingerprint(), part.fingerprint());
    let part = Identity::new("llama", "0e9e39f", &shape_of("bf16")).unwrap();
    let part = part.with_rope(rope(500_000.0));
    assert_eq!(part.model_fingerprint(), whole.fingerprint());
    assert_eq!(part.of_shard(whole.shard()).unwrap(), whole);
    assert_eq!(whole.of_shard(part.shard()).unwrap(), part);
    // Other fields count.
    let other = Identity::new("llama", "0e9e39f", &shape_of("f16")).unwrap();
    let other = other.with_rope(rope(500_000.0));
    assert_ne!(other.model_fingerprint(), whole.fingerprint());
    let outside = Shard {
        heads: AxisRange::new(12, 8),
        ..whole.shard()
    };
    assert!(whole.of_shard(outside).is_err());
}
