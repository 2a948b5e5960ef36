//! Identity: fingerprints that are the same everywhere, and differences with a name.
#![expect(clippy::unwrap_used, clippy::panic, reason = "tests")]

use kvtile_layout::{
    Axis, AxisRange, LayoutError, Plane, Shape, Shard, StridedLayout, Unit, Word,
    identity::{
        Fingerprint, Identity, IdentityError, LayoutIdentity, LayoutScope, LogicalIdentity, Real,
        Rope, RopeParam,
    },
};
use proptest::prelude::*;
use serde_json::{Value, json};

const BLOCKS: u64 = 100;

fn shape_of(codec: &str) -> Shape {
    let unit = Unit::named(codec).unwrap();
    let mut shard = Shard::tensor_parallel(40, 16, 1, 2).unwrap();
    shard.layers = AxisRange::new(4, 32);
    let shape = Shape::key_value(BLOCKS, 32, 16, 8, 128, &unit).unwrap();
    shape.with_shard(shard).unwrap()
}

fn rope(base: f64) -> Rope {
    Rope::new("llama3", base)
        .unwrap()
        .with_number("factor", 8.0)
        .unwrap()
        .with_param("pairing", RopeParam::Text("halves".to_owned()))
        .unwrap()
}

fn logical() -> LogicalIdentity {
    LogicalIdentity::new("llama", "0e9e39f", &shape_of("bf16"), Some(rope(500_000.0)))
        .unwrap()
        .with_extra("scales", "none")
        .unwrap()
}

fn layout(word: &str, shape: &Shape) -> StridedLayout {
    StridedLayout::resolve(&Word::parse(word).unwrap(), shape, 1).unwrap()
}

fn small(blocks: u64) -> Shape {
    Shape::key_value(blocks, 3, 16, 2, 4, &Unit::named("bf16").unwrap()).unwrap()
}

fn block_of(word: &str, blocks: u64) -> LayoutIdentity {
    LayoutIdentity::of_block(&layout(word, &small(blocks)))
}

fn whole_of(word: &str, blocks: u64) -> LayoutIdentity {
    LayoutIdentity::of_layout(&layout(word, &small(blocks)))
}

fn refusal<T: std::fmt::Debug>(result: Result<T, LayoutError>) -> IdentityError {
    match result {
        Err(LayoutError::Identity(error)) => error,
        other => panic!("expected an identity error, got {other:?}"),
    }
}

// The form.

/// Pitfall 25: hashes that differ between processes, so nothing is ever found again. These values
/// were computed by an earlier build; a change of them makes every stored block unreachable.
#[test]
fn fingerprints_are_pinned() {
    assert_eq!(
        logical().fingerprint().to_string(),
        "6661a131e8bdf20612a173053cf28713"
    );
    let block = block_of("BHLKNC", 7);
    assert_eq!(
        block.fingerprint().to_string(),
        "76122e1ad71b7e552054faea1fa751bf"
    );
    let whole = whole_of("L|BH(kCN,vNC)", 7);
    assert_eq!(
        whole.fingerprint().to_string(),
        "9e78d5f818ea43d6c93770470dd89db8"
    );
    let both = Identity {
        logical: logical(),
        layout: block,
    };
    assert_eq!(
        both.fingerprint().to_string(),
        "0a2d281a4021118707e1bafb952adbdb"
    );
}

/// The canonical form as its description has it, written out by hand.
#[test]
fn a_fingerprint_is_the_keyed_hash_of_the_described_form() {
    let plane = Plane::new("c", Unit::named("bf16").unwrap()).unwrap();
    let plane = plane.extent(Axis::C, 576);
    let shape = Shape::new(9, 2, 64, vec![plane]).unwrap();
    let factors = [1.0, 0.5].map(|f| Real::new(f).unwrap()).to_vec();
    let rope = Rope::new("longrope", 1e4)
        .unwrap()
        .with_param("factors", RopeParam::Numbers(factors))
        .unwrap();
    let identity = LogicalIdentity::new("m", "r", &shape, Some(rope)).unwrap();

    let number = |value: u64| value.to_le_bytes().to_vec();
    let text = |text: &str| [number(text.len() as u64), text.as_bytes().to_vec()].concat();
    let numeric = |path, value| [text(path), vec![0], number(value)].concat();
    let textual = |path, value| [text(path), vec![1], text(value)].concat();
    let reals = |values: &[f64]| values.iter().flat_map(|v| number(v.to_bits())).collect();
    let fields = [
        textual("model", "m"),
        textual("revision", "r"),
        numeric("page_size", 64),
        textual("planes", "c"),
        textual("planes.c.codec", "bf16"),
        textual("planes.c.unit", "values"),
        numeric("planes.c.unit_bytes", 2),
        numeric("planes.c.unit_values", 1),
        textual("planes.c.per", "token"),
        numeric("planes.c.C", 576),
        numeric("shard.layers.start", 0),
        numeric("shard.layers.count", 2),
        numeric("shard.total_layers", 2),
        numeric("shard.heads.start", 0),
        numeric("shard.heads.count", 1),
        numeric("shard.total_heads", 1),
        textual("rope.kind", "longrope"),
        [text("rope.base"), vec![2], reals(&[1e4])].concat(),
        [
            text("rope.params.factors"),
            vec![3],
            number(2),
            reals(&[1.0, 0.5]),
        ]
        .concat(),
    ];
    let form = [number(fields.len() as u64), fields.concat()].concat();
    let hash = blake3::derive_key("kvtile identity logical 1", &form);
    let expected = Fingerprint::from_bytes(hash[..16].try_into().unwrap());
    assert_eq!(identity.fingerprint(), expected);
}

#[test]
fn fingerprints_are_written_as_32_hexadecimal_digits() {
    let fingerprint =
        Fingerprint::from_bytes([0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 255]);
    let text = "000102030405060708090a0b0c0d0eff";
    assert_eq!(fingerprint.to_string(), text);
    assert_eq!(text.parse::<Fingerprint>().unwrap(), fingerprint);
    assert_eq!(serde_json::to_value(fingerprint).unwrap(), json!(text));
    assert_eq!(
        serde_json::from_value::<Fingerprint>(json!(text)).unwrap(),
        fingerprint
    );
    for bad in [
        "",
        "00",
        "+00102030405060708090a0b0c0d0eff",
        &"g".repeat(32),
        &"0".repeat(33),
    ] {
        let error = refusal(bad.parse::<Fingerprint>());
        assert!(
            matches!(error, IdentityError::NotAFingerprint { .. }),
            "{bad}"
        );
    }
    assert!(serde_json::from_value::<Fingerprint>(json!("é".repeat(16))).is_err());
}

// The logical part.

/// A path into the JSON of an identity, what to put there, and the field that it changes.
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

/// Pitfall 23: stored bytes of another model, dtype, rope, tensor-parallel size or revision, of
/// equal size, read as one's own. Any single change is another fingerprint, and is named.
#[test]
fn every_field_changes_the_fingerprint_and_is_named() {
    let ours = logical();
    let json = serde_json::to_value(&ours).unwrap();
    for (path, value, field) in changes() {
        let mut changed = json.clone();
        *changed.pointer_mut(path).unwrap() = value;
        let theirs: LogicalIdentity = serde_json::from_value(changed).unwrap();
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

/// No leaf of the stored form is left out of the fingerprint, the number of the replica excepted.
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
        // Some single changes are no identity, for instance heads that differ between planes.
        let Ok(theirs) = serde_json::from_value::<LogicalIdentity>(changed) else {
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
    let theirs = LogicalIdentity::new("llama", "0e9e39f", &shape, Some(rope(500_000.0)))
        .unwrap()
        .with_extra("scales", "none")
        .unwrap();
    assert_eq!(ours, theirs);
    assert_eq!(ours.fingerprint(), theirs.fingerprint());
    assert_eq!(ours.first_difference(&theirs), None);
}

#[test]
fn the_difference_of_a_rope_base_names_both_values() {
    let other = LogicalIdentity::new("llama", "0e9e39f", &shape_of("bf16"), Some(rope(10_000.0)));
    let other = other.unwrap().with_extra("scales", "none").unwrap();
    let difference = logical().first_difference(&other).unwrap();
    assert_eq!(
        difference.to_string(),
        "rope.base differs: 500000.0 here, 10000.0 there"
    );
}

/// Two shards of one model differ in their heads only, which a caller that joins them can see.
#[test]
fn shards_of_one_model_differ_in_their_ranges_only() {
    let of = |rank| {
        let mut shard = Shard::tensor_parallel(40, 16, rank, 2).unwrap();
        shard.layers = AxisRange::new(4, 32);
        let shape = shape_of("bf16").with_shard(shard).unwrap();
        LogicalIdentity::new("llama", "0e9e39f", &shape, None).unwrap()
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
        let error = refusal(LogicalIdentity::new(model, revision, &shape, None));
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
        let read = serde_json::from_value::<LogicalIdentity>(bad);
        assert!(read.is_err(), "{path} {value} was taken");
    }
    let mut unknown = json.clone();
    unknown["surprise"] = json!(1);
    assert!(serde_json::from_value::<LogicalIdentity>(unknown).is_err());
    // Axes in another order are the same identity.
    let mut swapped = json;
    swapped["planes"][0]["extents"] = json!([["H", 8], ["C", 128]]);
    let read: LogicalIdentity = serde_json::from_value(swapped).unwrap();
    assert_eq!(read, logical());
}

// The layout part.

#[test]
fn words_for_the_same_places_have_one_identity() {
    for (a, b) in [
        ("BLKNHC", "BL(kNHC,vNHC)"),
        ("BLKNHC", "BLKN@16HC"),
        ("BLKN4NHC", "BLK(N4NHC)"),
        ("L|KBNHC", "L|(kBNHC,vBNHC)"),
        ("BLKNN4HC", "BLKNHC"),
        ("BLKHC2NC", "BLKHC2NC"),
    ] {
        assert_eq!(whole_of(a, 5), whole_of(b, 5), "{a} and {b}");
        assert_eq!(block_of(a, 5), block_of(b, 5), "{a} and {b}");
    }
}

/// Pitfall 6, for identities: another inner order is another layout part, and is named.
#[test]
fn another_order_is_another_identity() {
    let words = [
        "BLKNHC",
        "BLKHNC",
        "BHLKNC",
        "BLHKNC",
        "BL(vNHC,kNHC)",
        "BLKNHC2C",
        "BLKNH@64C",
    ];
    for (i, a) in words.iter().enumerate() {
        for b in words.iter().skip(i + 1) {
            let (a, b) = (block_of(a, 5), block_of(b, 5));
            assert_ne!(a.fingerprint(), b.fingerprint());
            assert!(a.first_difference(&b).unwrap().field.starts_with("layout."));
        }
    }
    let difference = block_of("BLKNHC", 5)
        .first_difference(&block_of("BLKHNC", 5))
        .unwrap();
    assert_eq!(difference.field, "layout.k.digits");
    assert_eq!(difference.ours, "C..4 +2, H..2 +8, L..3 +512, N..16 +16");
    assert_eq!(difference.theirs, "C..4 +2, H..2 +128, L..3 +512, N..16 +8");
    let swapped = block_of("BLKNHC", 5).first_difference(&block_of("BL(vNHC,kNHC)", 5));
    assert_eq!(swapped.unwrap().field, "layout.k.offset");
}

#[test]
fn a_stored_block_is_the_same_at_any_number_of_blocks_and_any_alignment() {
    for word in [
        "BLKNHC",
        "BHLKNC",
        "L|BKNHC",
        "BNLKHC",
        "BL|KNHC",
        "B@8192LKNHC",
    ] {
        assert_eq!(block_of(word, 1), block_of(word, 9), "{word}");
    }
    let aligned = Word::parse("BLKNHC").unwrap();
    let aligned = StridedLayout::resolve(&aligned, &small(4), 4096).unwrap();
    assert_eq!(LayoutIdentity::of_block(&aligned), block_of("BLKNHC", 9));
    // Here the distance of the planes is a matter of how many blocks there are.
    assert_ne!(block_of("L|KBNHC", 2), block_of("L|KBNHC", 9));
    // A block is relative to its first byte, wherever its planes start.
    assert_ne!(block_of("BL(kNHC,vNHC)", 2), block_of("BL(vNHC,kNHC)", 2));
    assert_eq!(block_of("K|BLNHC", 2), block_of("K|BLNHC", 5));
}

#[test]
fn pools_of_different_lengths_have_one_identity_where_blocks_stand_outermost() {
    for word in ["BLKNHC", "L|BKNHC", "BK|LNHC"] {
        let same = whole_of(word, 3) == whole_of(word, 9);
        assert_eq!(same, word != "BK|LNHC", "{word}");
    }
    assert_ne!(whole_of("L|KBNHC", 3), whole_of("L|KBNHC", 9));
    let plain = whole_of("BLKNHC", 3);
    let padded = whole_of("B@8192LKNHC", 3);
    let difference = plain.first_difference(&padded).unwrap();
    assert_eq!(
        difference.ours,
        "B.. +1536, C..4 +2, H..2 +8, L..3 +512, N..16 +16"
    );
    assert_eq!(plain.scope(), LayoutScope::AllBlocks);
    assert_eq!(
        plain
            .first_difference(&block_of("BLKNHC", 3))
            .unwrap()
            .field,
        "layout.scope"
    );
}

#[test]
fn opaque_units_carry_their_codec_into_the_layout_part() {
    let of = |codec| {
        let unit = Unit::opaque(codec, 256).unwrap();
        let plane = Plane::new("kv", unit).unwrap().per_page();
        let shape = Shape::new(4, 2, 16, vec![plane]).unwrap();
        LayoutIdentity::of_block(&layout("BLK", &shape))
    };
    let difference = of("vllm-cpu-neon")
        .first_difference(&of("vllm-cpu-rvv"))
        .unwrap();
    assert_eq!(difference.field, "layout.kv.opaque");
    assert_eq!(difference.theirs, "vllm-cpu-rvv");
}

#[test]
fn stored_layout_parts_are_validated() {
    let json = serde_json::to_value(block_of("BLKNHC", 4)).unwrap();
    let digit = |axis: &str, low: u64, extent: u64, bytes: u64| json!({"axis": axis, "low": low, "extent": extent, "step": {"regions": 0, "bytes": bytes}});
    for (path, value) in [
        ("/planes", json!([])),
        ("/planes/1/plane", json!("k")),
        ("/planes/0/plane", json!("z")),
        ("/planes/0/unit_bytes", json!(0)),
        ("/planes/0/region", json!(1)),
        ("/planes/0/offset", json!(u64::MAX)),
        ("/regions", json!(0)),
        ("/regions", json!(u64::MAX)),
        ("/scope", json!("blocks")),
        ("/planes/0/digits", json!([digit("B", 1, 2, 4)])),
        ("/planes/0/digits", json!([digit("C", 1, 0, 4)])),
        ("/planes/0/digits", json!([digit("C", 1, 1, 4)])),
        ("/planes/0/digits", json!([digit("C", 0, 2, 4)])),
        ("/planes/0/digits", json!([digit("C", 1, u64::MAX, 4)])),
        (
            "/planes/0/digits",
            json!([digit("N", 1, 2, 4), digit("C", 1, 2, 2)]),
        ),
        (
            "/planes/0/digits",
            json!([digit("C", 1, 2, 2), digit("C", 2, 2, 4)]),
        ),
    ] {
        let mut bad = json.clone();
        *bad.pointer_mut(path).unwrap() = value.clone();
        let read = serde_json::from_value::<LayoutIdentity>(bad);
        assert!(read.is_err(), "{path} {value} was taken");
    }
    let mut codec = json;
    codec["planes"][0]["opaque"] = json!("a b");
    assert!(serde_json::from_value::<LayoutIdentity>(codec).is_err());
}

// Properties.

fn texts() -> impl Strategy<Value = String> {
    "[a-z.]{1,3}|\\PC{1,6}"
}

fn ropes() -> impl Strategy<Value = Rope> {
    let param = prop_oneof![
        any::<f64>()
            .prop_filter_map("finite", |f| Real::new(f).ok())
            .prop_map(RopeParam::Number),
        prop::collection::vec(-9i32..9, 0..4).prop_map(|list| {
            let reals = list
                .into_iter()
                .map(|i| Real::new(f64::from(i) / 3.0).unwrap());
            RopeParam::Numbers(reals.collect())
        }),
        texts().prop_map(RopeParam::Text),
    ];
    let params = prop::collection::btree_map(texts(), param, 0..3);
    let base = prop_oneof![Just(1e4), Just(5e5), any::<f64>()];
    (
        texts(),
        base.prop_filter("finite", |f| f.is_finite()),
        params,
    )
        .prop_map(|(kind, base, params)| {
            let rope = Rope::new(&kind, base).unwrap();
            let with =
                |rope: Rope, (name, param): (String, RopeParam)| rope.with_param(&name, param);
            params.into_iter().try_fold(rope, with).unwrap()
        })
}

fn logicals() -> impl Strategy<Value = LogicalIdentity> {
    let sizes = (1..3u64, 1..3u64, 1..3u64, 1..3u64);
    let codec = prop::sample::select(vec!["bf16", "f16"]);
    let extra = prop::collection::btree_map(texts(), texts(), 0..3);
    (texts(), sizes, codec, prop::option::of(ropes()), extra).prop_map(
        |(text, (layers, page, heads, size), codec, rope, extra)| {
            let unit = Unit::named(codec).unwrap();
            let shape = Shape::key_value(3, layers, page, heads, size, &unit).unwrap();
            let identity = LogicalIdentity::new(&text, "r", &shape, rope).unwrap();
            extra
                .into_iter()
                .try_fold(identity, |identity, (key, value)| {
                    identity.with_extra(&key, &value)
                })
                .unwrap()
        },
    )
}

fn layout_parts() -> impl Strategy<Value = LayoutIdentity> {
    let words = vec![
        "BLKNHC",
        "L|KBNHC",
        "LBNHN4KC",
        "L|BH(kCN,vNC)",
        "K|BLHNC2C",
    ];
    (prop::sample::select(words), 1..5u64, any::<bool>()).prop_map(|(word, blocks, whole)| {
        if whole {
            return whole_of(word, blocks);
        }
        block_of(word, blocks)
    })
}

fn identities() -> impl Strategy<Value = Identity> {
    (logicals(), layout_parts()).prop_map(|(logical, layout)| Identity { logical, layout })
}

proptest! {
    #[test]
    fn identities_survive_json(identity in identities()) {
        let json = serde_json::to_string(&identity).unwrap();
        let read: Identity = serde_json::from_str(&json).unwrap();
        prop_assert_eq!(&read, &identity);
        prop_assert_eq!(read.fingerprint(), identity.fingerprint());
    }

    /// Equal, without a difference, and of one fingerprint: all three or none.
    #[test]
    fn equality_differences_and_fingerprints_agree(a in identities(), b in identities()) {
        let equal = a == b;
        prop_assert_eq!(a.first_difference(&b).is_none(), equal);
        prop_assert_eq!(a.fingerprint() == b.fingerprint(), equal);
        prop_assert_eq!(a.logical.fingerprint() == b.logical.fingerprint(), a.logical == b.logical);
        prop_assert_eq!(a.layout.fingerprint() == b.layout.fingerprint(), a.layout == b.layout);
        prop_assert_eq!(a.first_difference(&a), None);
        if let Some(there) = a.first_difference(&b) {
            let back = b.first_difference(&a).unwrap();
            prop_assert_eq!((there.field, there.ours, there.theirs), (back.field, back.theirs, back.ours));
        }
    }

    #[test]
    fn mutated_json_never_panics(
        identity in identities(),
        edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
    ) {
        let mut bytes = serde_json::to_vec(&identity).unwrap();
        for (at, byte) in edits {
            let at = at.index(bytes.len());
            bytes[at] = b"0123456789-{}[]\",:eBLKNHC"[usize::from(byte) % 25];
        }
        if let Ok(read) = serde_json::from_slice::<Identity>(&bytes) {
            let equal = read == identity;
            prop_assert_eq!(read.fingerprint() == identity.fingerprint(), equal);
        }
    }
}
