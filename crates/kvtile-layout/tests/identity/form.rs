//! The pinned form of fingerprints.

use super::*;

/// Pitfall 25: hashes differ between processes, so lookups never hit. An earlier build computed
/// these values; changing them makes every stored block unreachable.
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
    let both = BlockIdentity {
        logical: logical(),
        layout: block,
    };
    assert_eq!(
        both.fingerprint().to_string(),
        "0a2d281a4021118707e1bafb952adbdb"
    );
}

/// The canonical form, written out by hand from its description.
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
    let identity = Identity::new("m", "r", &shape).unwrap().with_rope(rope);

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
