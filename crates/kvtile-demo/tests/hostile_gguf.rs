//! Hostile GGUF files: parsing always returns, never panics, and never takes more memory than the
//! file justifies.

#![expect(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    reason = "tests"
)]

use std::num::NonZeroUsize;

use kvtile_demo::DemoError;
use kvtile_demo::gguf::Gguf;
use kvtile_demo::llama::Llama;
use kvtile_demo::tiny;
use kvtile_demo::tokenizer::Tokenizer;
use proptest::prelude::*;

const TEXT: u32 = 8;
const ARRAY: u32 = 9;

fn text(value: &str) -> Vec<u8> {
    let mut bytes = (value.len() as u64).to_le_bytes().to_vec();
    bytes.extend(value.as_bytes());
    bytes
}

fn header(version: u32, tensors: u64, pairs: u64) -> Vec<u8> {
    let mut bytes = b"GGUF".to_vec();
    bytes.extend(version.to_le_bytes());
    bytes.extend(tensors.to_le_bytes());
    bytes.extend(pairs.to_le_bytes());
    bytes
}

fn pair(key: &str, type_id: u32, value: &[u8]) -> Vec<u8> {
    [text(key), type_id.to_le_bytes().to_vec(), value.to_vec()].concat()
}

fn entry(name: &str, extents: &[u64], type_id: u32, offset: u64) -> Vec<u8> {
    let mut bytes = text(name);
    bytes.extend((extents.len() as u32).to_le_bytes());
    bytes.extend(extents.iter().flat_map(|extent| extent.to_le_bytes()));
    bytes.extend(type_id.to_le_bytes());
    bytes.extend(offset.to_le_bytes());
    bytes
}

/// A file with these tensors and `data` bytes of data.
fn with_tensors(entries: &[Vec<u8>], data: usize) -> Vec<u8> {
    let mut bytes = header(3, entries.len() as u64, 0);
    bytes.extend(entries.concat());
    bytes.resize(bytes.len().next_multiple_of(32) + data, 7);
    bytes
}

fn error(bytes: &[u8]) -> DemoError {
    Gguf::parse(bytes).unwrap_err()
}

#[test]
fn other_magic_and_versions_are_refused() {
    assert!(matches!(
        error(b"GGML\x03\0\0\0"),
        DemoError::GgufMagic { .. }
    ));
    for version in [0, 1, 4, 3u32.swap_bytes()] {
        let found = error(&header(version, 0, 0));
        assert!(matches!(found, DemoError::GgufVersion { version: v } if v == version));
    }
    assert!(Gguf::parse(&header(2, 0, 0)).is_ok());
}

/// Pitfall 8: a few bytes that declare large sizes.
#[test]
fn claims_beyond_the_file_are_refused_before_anything_is_allocated() {
    let huge = 1u64 << 60;
    for (tensors, pairs) in [(huge, 0), (0, huge), (u64::MAX, u64::MAX)] {
        assert!(matches!(
            error(&header(3, tensors, pairs)),
            DemoError::GgufCount { .. }
        ));
    }
    let mut key = header(3, 0, 1);
    key.extend(huge.to_le_bytes());
    key.extend([b'x'; 32]);
    assert!(matches!(error(&key), DemoError::GgufTruncated { .. }));
    for type_id in [0u32, 6, TEXT, 10] {
        let array = [type_id.to_le_bytes().to_vec(), huge.to_le_bytes().to_vec()].concat();
        let file = [header(3, 0, 1), pair("k", ARRAY, &array)].concat();
        assert!(matches!(
            error(&file),
            DemoError::GgufCount {
                what: "array values",
                ..
            }
        ));
    }
}

#[test]
fn arrays_of_arrays_unknown_types_and_broken_text_are_refused() {
    let nested = [
        ARRAY.to_le_bytes().to_vec(),
        1u64.to_le_bytes().to_vec(),
        vec![0; 40],
    ]
    .concat();
    let file = [header(3, 0, 1), pair("k", ARRAY, &nested)].concat();
    assert!(matches!(
        error(&file),
        DemoError::GgufValueType { type_id: 9, .. }
    ));
    let file = [header(3, 0, 1), pair("k", 13, &[0; 8])].concat();
    assert!(matches!(
        error(&file),
        DemoError::GgufValueType { type_id: 13, .. }
    ));
    let broken = [2u64.to_le_bytes().to_vec(), vec![0xc3, 0x28]].concat();
    let file = [header(3, 0, 1), pair("k", TEXT, &broken)].concat();
    assert!(matches!(error(&file), DemoError::GgufText { .. }));
    let twice = [header(3, 0, 2), pair("k", 0, &[1]), pair("k", 0, &[2])].concat();
    assert!(matches!(error(&twice), DemoError::GgufDuplicate { name } if name == "k"));
}

#[test]
fn tensors_outside_the_data_misaligned_or_overlapping_are_refused() {
    let place = |entries: &[Vec<u8>]| error(&with_tensors(entries, 256));
    for (offset, extents) in [(256, [1, 1]), (0, [65, 1]), (u64::MAX - 31, [64, 1])] {
        let found = place(&[entry("t", &extents, 0, offset)]);
        assert!(
            matches!(found, DemoError::GgufTensorPlace { .. }),
            "{found}"
        );
    }
    let found = place(&[entry("t", &[1], 0, 4)]);
    assert!(
        matches!(found, DemoError::GgufTensorPlace { reason, .. } if reason.contains("aligned"))
    );
    let found = place(&[entry("a", &[16], 0, 0), entry("b", &[16], 0, 32)]);
    assert!(
        matches!(found, DemoError::GgufTensorPlace { reason, .. } if reason.contains("overlaps"))
    );
    let found = place(&[entry("a", &[8], 0, 0), entry("a", &[8], 0, 32)]);
    assert!(matches!(found, DemoError::GgufDuplicate { .. }));
    assert!(
        Gguf::parse(&with_tensors(
            &[entry("a", &[8], 0, 0), entry("b", &[8], 0, 32)],
            256
        ))
        .is_ok()
    );
}

#[test]
fn extents_that_overflow_vanish_or_cut_units_are_refused() {
    let huge = 1u64 << 40;
    for (extents, type_id) in [
        (vec![0], 0),
        (vec![4, 0], 0),
        (vec![huge, huge], 0),
        (vec![u64::MAX], 0),
        (vec![31], 3),
        (vec![16, 2], 8),
    ] {
        let found = error(&with_tensors(&[entry("t", &extents, type_id, 0)], 256));
        assert!(
            matches!(found, DemoError::GgufTensorExtents { .. }),
            "{extents:?}: {found}"
        );
    }
    let found = error(&with_tensors(&[entry("t", &[1; 5], 0, 0)], 256));
    assert!(matches!(found, DemoError::GgufCount { count: 5, .. }));
    let found = error(&with_tensors(&[entry("t", &[32], 12, 0)], 256));
    assert!(matches!(
        found,
        DemoError::GgufTensorType { type_id: 12, .. }
    ));
}

#[test]
fn alignment_is_a_sensible_power_of_two() {
    for alignment in [0u32, 3, 48, 1 << 30] {
        let file = [
            header(3, 0, 1),
            pair("general.alignment", 4, &alignment.to_le_bytes()),
        ]
        .concat();
        assert!(matches!(error(&file), DemoError::KeyType { .. }));
    }
}

#[test]
fn a_file_cut_anywhere_is_refused() {
    let whole = tiny::gguf(3);
    let step = |length: usize| if length < 12_000 { 1 } else { 1000 };
    let mut length = 0;
    while length < whole.len() {
        assert!(Gguf::parse(&whole[..length]).is_err(), "cut at {length}");
        length += step(length);
    }
    assert!(Gguf::parse(&whole).is_ok());
}

/// Reads all parts of a file with arbitrary contents.
fn read_all(bytes: &[u8]) {
    let Ok(file) = Gguf::parse(bytes) else {
        return;
    };
    if let Ok(tokenizer) = Tokenizer::from_gguf(&file) {
        let _ = tokenizer.encode_chat(None, "Hello, 12 worlds");
    }
    let _ = Llama::from_gguf(bytes, NonZeroUsize::MIN);
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(256) })]

    #[test]
    fn changed_bytes_never_panic(changes in prop::collection::vec((0usize..12_000, any::<u8>()), 1..6)) {
        let mut bytes = tiny::gguf(3);
        for (place, value) in changes {
            bytes[place] = value;
        }
        read_all(&bytes);
    }

    #[test]
    fn changed_numbers_never_panic(place in 0usize..12_000, number in prop_oneof![
        Just(0u64), Just(u64::MAX), Just(1 << 32), Just(1 << 63), any::<u64>(),
    ]) {
        let mut bytes = tiny::gguf(3);
        bytes[place..place + 8].copy_from_slice(&number.to_le_bytes());
        read_all(&bytes);
    }

    #[test]
    fn removed_and_doubled_pieces_never_panic(start in 0usize..12_000, length in 1usize..300, doubled: bool) {
        let mut bytes = tiny::gguf(3);
        let piece = bytes[start..start + length].to_vec();
        if doubled {
            bytes.splice(start..start, piece);
        } else {
            bytes.drain(start..start + length);
        }
        read_all(&bytes);
    }

    #[test]
    fn noise_never_panics(noise in prop::collection::vec(any::<u8>(), 0..400)) {
        read_all(&noise);
        read_all(&[header(3, 2, 2), noise].concat());
    }
}
