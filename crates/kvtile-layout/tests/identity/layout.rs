//! The layout part of identities.

use super::*;

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

/// Pitfall 6, for identities: another inner order gives another layout part, and the difference
/// names it.
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
    // Here the distance between the planes depends on the number of blocks.
    assert_ne!(block_of("L|KBNHC", 2), block_of("L|KBNHC", 9));
    // A block identity is relative to its first byte, independent of where its planes start.
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
