//! Keys against golden values of another implementation, and inputs that must not collide.

use super::*;
use crate::BlocksError;
use std::collections::HashSet;

const GOLDEN: &str = include_str!("../../tests/golden/keys.txt");

fn settings(profile: KeyProfile, page_size: usize, salt: &str) -> KeySettings {
    KeySettings {
        profile,
        page_size,
        salt: salt.to_owned(),
    }
}

fn hasher(profile: KeyProfile, page_size: usize) -> BlockHasher {
    BlockHasher::new(&settings(profile, page_size, ""), b"model").unwrap()
}

fn bytes(hex: &str) -> Vec<u8> {
    let hex = hex.trim_matches('-');
    (0..hex.len() / 2)
        .map(|index| u8::from_str_radix(&hex[2 * index..2 * index + 2], 16).unwrap())
        .collect()
}

fn key(hex: &str) -> BlockKey {
    BlockKey::from_bytes(bytes(hex).try_into().unwrap())
}

/// Pitfall 25: hashes that differ between processes. Another program computed the golden values.
#[test]
fn pitfall_25_keys_are_those_of_an_independent_implementation() {
    let mut rows = 0;
    for line in GOLDEN.lines().filter(|line| !line.starts_with('#')) {
        let columns: Vec<&str> = line.split(' ').collect();
        let [
            profile,
            identity,
            salt,
            page_size,
            parent,
            tokens,
            extra,
            expected,
        ] = columns[..]
        else {
            panic!("eight columns: {line}");
        };
        let salt = salt.trim_matches('-');
        let page_size = page_size.parse().unwrap();
        let settings = match profile {
            "blake3" => settings(KeyProfile::Blake3, page_size, salt),
            "xxh3" => settings(KeyProfile::Xxh3, page_size, salt),
            _ => {
                let seed = salt.parse().unwrap();
                settings(KeyProfile::Router { seed }, page_size, "")
            }
        };
        let hasher = BlockHasher::new(&settings, &bytes(identity)).unwrap();
        let parent = (parent != "-").then(|| key(parent));
        let tokens: Vec<u32> = tokens
            .split(',')
            .map(|token| token.parse().unwrap())
            .collect();
        let extra: Vec<Vec<u8>> = match extra {
            "-" => Vec::new(),
            list => list.split(',').map(bytes).collect(),
        };
        let extra: Vec<&[u8]> = extra.iter().map(Vec::as_slice).collect();
        let made = hasher.key(parent, &tokens, ExtraKeys::new(&extra)).unwrap();
        assert_eq!(made, key(expected), "{line}");
        rows += 1;
    }
    assert!(rows > 150, "{rows} golden values");
}

#[test]
fn router_keys_hold_the_hashes_that_routers_publish() {
    let hasher = hasher(KeyProfile::Router { seed: 1337 }, 4);
    let mut keys = Vec::new();
    hasher.keys(None, &(1..=12).collect::<Vec<u32>>(), &mut keys);
    let hashes: Vec<(u64, u64)> = keys.iter().map(BlockKey::router_hashes).collect();
    let expected = [
        (14_643_705_804_678_351_452, 14_643_705_804_678_351_452),
        (4_945_711_292_740_353_085, 16_777_012_769_546_811_212),
        (12_583_592_247_330_656_132, 483_935_686_894_639_516),
    ];
    assert_eq!(hashes, expected);
    let [sequence, block] = [0, 8]
        .map(|start| u64::from_le_bytes(keys[1].as_bytes()[start..start + 8].try_into().unwrap()));
    assert_eq!((sequence, block), expected[1]);
}

/// Pitfall 23: stored bytes keyed by token hash alone. A change in any field changes the keys, and
/// so does a different split of the same bytes into fields.
#[test]
fn pitfall_23_another_identity_tenant_profile_or_parent_never_has_the_same_key() {
    let tokens: Vec<u32> = (0..32).collect();
    let mut seen = HashSet::new();
    let mut made = 0;
    for profile in [KeyProfile::Blake3, KeyProfile::Xxh3] {
        for (identity, salt) in [
            (&b""[..], ""),
            (b"model", ""),
            (b"model", "tenant"),
            (b"modelt", "enant"),
            (b"", "modeltenant"),
            (b"model\0", ""),
        ] {
            for page_size in [8, 16, 32] {
                let settings = settings(profile, page_size, salt);
                let hasher = BlockHasher::new(&settings, identity).unwrap();
                let mut keys = Vec::new();
                hasher.keys(None, &tokens, &mut keys);
                hasher.keys(Some(BlockKey::from_bytes([0; 16])), &tokens, &mut keys);
                made += keys.len();
                seen.extend(keys);
            }
        }
    }
    assert_eq!(seen.len(), made);
}

#[test]
fn extra_keys_differ_however_their_bytes_are_cut() {
    let tokens: Vec<u32> = (0..16).collect();
    let lists: [&[&[u8]]; 7] = [
        &[],
        &[b""],
        &[b"", b""],
        &[b"ab"],
        &[b"a", b"b"],
        &[b"b", b"a"],
        &[b"ab", b""],
    ];
    for profile in [KeyProfile::Blake3, KeyProfile::Xxh3] {
        let hasher = hasher(profile, 16);
        let keys: HashSet<BlockKey> = lists
            .iter()
            .map(|list| hasher.key(None, &tokens, ExtraKeys::new(list)).unwrap())
            .collect();
        assert_eq!(keys.len(), lists.len(), "{profile:?}");
    }
}

/// Pitfall 26: 64-bit unkeyed hashes, and keys truncated for an index. All 128 bits of a key depend
/// on each token, on the parent and on the identity.
#[test]
fn pitfall_26_every_bit_of_a_key_depends_on_every_token_and_on_the_parent() {
    let parent = BlockKey::from_bytes([0x5a; 16]);
    for profile in [KeyProfile::Blake3, KeyProfile::Xxh3] {
        let hasher = hasher(profile, 16);
        let of = |parent: [u8; 16], tokens: [u32; 16]| {
            let parent = Some(BlockKey::from_bytes(parent));
            let key = hasher.key(parent, &tokens, ExtraKeys::NONE).unwrap();
            u128::from_le_bytes(*key.as_bytes())
        };
        let base = of(*parent.as_bytes(), [7; 16]);
        let by_token = (0..16).map(|index| {
            (0..32).fold(0, |flipped, bit| {
                let mut tokens = [7; 16];
                tokens[index] ^= 1_u32 << bit;
                flipped | (base ^ of(*parent.as_bytes(), tokens))
            })
        });
        let by_parent = (0..16).map(|index| {
            (0..8).fold(0, |flipped, bit| {
                let mut bytes = *parent.as_bytes();
                bytes[index] ^= 1_u8 << bit;
                flipped | (base ^ of(bytes, [7; 16]))
            })
        });
        for flipped in by_token.chain(by_parent) {
            assert!(flipped.count_ones() > 110, "{profile:?}: {flipped:032x}");
        }
    }
}

#[test]
fn opaque_keys_of_16_bytes_are_taken_as_they_are_and_others_are_hashed_whole() {
    let whole: [u8; 16] = std::array::from_fn(|index| u8::try_from(index).unwrap());
    assert_eq!(BlockKey::from_opaque(&whole).as_bytes(), &whole);
    let mut seen = HashSet::from([BlockKey::from_opaque(&whole)]);
    let long: Vec<u8> = (0..64).collect();
    for length in (0..64).filter(|&length| length != 16) {
        assert!(seen.insert(BlockKey::from_opaque(&long[..length])));
    }
    // Computed with the PyPI package blake3.
    assert_eq!(
        BlockKey::from_opaque(&[1, 2, 3]).to_string(),
        "6e3a7297b7420979a7ff7fa05b8f7a63"
    );
}

#[test]
fn inputs_that_a_profile_does_not_support_are_refused() {
    let router = KeyProfile::Router { seed: 1 };
    assert_eq!(
        BlockHasher::new(&settings(router, 16, "tenant"), b"").unwrap_err(),
        BlocksError::RouterTakesNoSalt
    );
    let extra: &[&[u8]] = &[b"image"];
    assert_eq!(
        hasher(router, 1).key(None, &[1], ExtraKeys::new(extra)),
        Err(BlocksError::RouterTakesNoExtraKeys { count: 1 })
    );
    for page_size in [0, PAGE_SIZE_MAX + 1] {
        assert_eq!(
            BlockHasher::new(&settings(KeyProfile::Blake3, page_size, ""), b"").unwrap_err(),
            BlocksError::PageSizeOutOfRange { page_size }
        );
    }
    assert_eq!(
        hasher(KeyProfile::Blake3, 4).key(None, &[1, 2, 3], ExtraKeys::NONE),
        Err(BlocksError::NotOnePage {
            tokens: 3,
            page_size: 4
        })
    );
}

#[test]
fn the_largest_page_has_a_key() {
    let tokens: Vec<u32> = (0..4096).collect();
    for profile in [
        KeyProfile::Blake3,
        KeyProfile::Xxh3,
        KeyProfile::Router { seed: 1 },
    ] {
        let mut keys = Vec::new();
        hasher(profile, PAGE_SIZE_MAX).keys(None, &tokens, &mut keys);
        assert_eq!(keys.len(), 1);
    }
}

#[test]
fn settings_survive_serialisation_and_hide_the_salt() {
    for profile in [
        KeyProfile::Blake3,
        KeyProfile::Xxh3,
        KeyProfile::Router { seed: 7 },
    ] {
        let settings = settings(profile, 64, "secret of a tenant");
        let text = serde_json::to_string(&settings).unwrap();
        assert_eq!(
            serde_json::from_str::<KeySettings>(&text).unwrap(),
            settings
        );
        assert!(!format!("{settings:?}").contains("secret of"));
    }
    let defaults: KeySettings = serde_json::from_str("{}").unwrap();
    assert_eq!(defaults, KeySettings::default());
    assert!(serde_json::from_str::<KeySettings>(r#"{"pagesize": 16}"#).is_err());
}

#[test]
fn a_hasher_does_not_show_its_secrets() {
    let text = format!("{:?}", hasher(KeyProfile::Blake3, 16));
    assert_eq!(text, "BlockHasher { profile: Blake3, page_size: 16, .. }");
}
