//! Batches against bytes that vLLM's own encoder wrote (0.32, msgspec).

use super::*;

/// Events with every field, hashes of both forms, numbers of every length.
const FULL: &str = "93cb41da4adebc0800009488a474797065ab426c6f636b53746f726564ac626c6f636b5f68617368657392c420000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1fcfffffffffffffffffb1706172656e745f626c6f636b5f68617368c0a9746f6b656e5f69647398007fcc80ccffcd0100cdffffce00010000ceffffffffaa626c6f636b5f73697a6510a76c6f72615f6964c0a66d656469756da3475055a96c6f72615f6e616d65c08fa474797065ab426c6f636b53746f726564ac626c6f636b5f6861736865739105b1706172656e745f626c6f636b5f68617368c420000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1fa9746f6b656e5f696473dc0014000102030405060708090a0b0c0d0e0f10111213aa626c6f636b5f73697a6504a76c6f72615f696403a66d656469756dc0a96c6f72615f6e616d65a761646170746572aa65787472615f6b6579739292a76164617074657292a5696d61676507c0a967726f75705f69647801b26b765f63616368655f737065635f6b696e64ae66756c6c5f617474656e74696f6ebc6b765f63616368655f737065635f736c6964696e675f77696e646f77cd1000a86c6f63616c697479a54c4f43414ca96f776e657273686970a3637075aa73657373696f6e5f6964a3732d3183a474797065ac426c6f636b52656d6f766564ac626c6f636b5f68617368657391c4200000000000000000000000000000000000000000000000000000000000000000a66d656469756da343505581a474797065b0416c6c426c6f636b73436c656172656402";

/// A batch without events and rank.
const EMPTY: &str = "93cb400400000000000090c0";

fn bytes(hex: &str) -> Vec<u8> {
    let pairs = hex.as_bytes().chunks(2);
    let byte = |pair: &[u8]| u8::from_str_radix(str::from_utf8(pair).unwrap(), 16).unwrap();
    pairs.map(byte).collect()
}

#[test]
fn a_batch_comes_back_to_the_bytes_of_vllm() {
    for golden in [FULL, EMPTY] {
        let batch = WireBatch::decode(&bytes(golden)).unwrap();
        assert_eq!(batch.encode(), bytes(golden));
        let json = batch.to_json().to_string();
        let again = WireBatch::of_json(serde_json::from_str(&json).unwrap()).unwrap();
        assert_eq!(again.encode(), bytes(golden), "{json}");
    }
    let batch = WireBatch::decode(&bytes(FULL)).unwrap();
    let kinds: Vec<&str> = batch.events.iter().map(WireEvent::kind).collect();
    assert_eq!(
        kinds,
        [
            "BlockStored",
            "BlockStored",
            "BlockRemoved",
            "AllBlocksCleared"
        ]
    );
    let blocks: Vec<usize> = batch.events.iter().map(WireEvent::blocks).collect();
    assert_eq!(blocks, [2, 1, 1, 0]);
    assert_eq!(
        (batch.time, batch.data_parallel_rank),
        (1_764_457_200.125, Some(2))
    );
    assert_eq!(
        batch.events[1].field("session_id"),
        Some(&WireValue::Text("s-1".to_owned()))
    );
}

fn text(text: &str) -> WireValue {
    WireValue::Text(text.to_owned())
}

#[test]
fn arrays_of_older_versions_and_fields_of_newer_ones_are_read() {
    let hashes = WireValue::List(vec![WireValue::Number(1)]);
    let removed = WireValue::List(vec![text("BlockRemoved"), hashes.clone()]);
    let newer = WireValue::Map(vec![
        ("type".to_owned(), text("BlockRemoved")),
        ("zeal".to_owned(), WireValue::Bool(true)),
        ("medium".to_owned(), text("GPU")),
        ("block_hashes".to_owned(), hashes),
    ]);
    let unknown = WireValue::Map(vec![
        ("type".to_owned(), text("BlockMoved")),
        ("to".to_owned(), text("CPU")),
    ]);
    let events = WireValue::List(vec![removed, newer, unknown]);
    let batch = WireValue::List(vec![WireValue::Number(3), events]);
    let mut bytes = Vec::new();
    pack::write(&batch, &mut bytes);
    let batch = WireBatch::decode(&bytes).unwrap();
    assert_eq!((batch.time, batch.data_parallel_rank), (3.0, None));
    assert_eq!(batch.events[0].field("medium"), Some(&WireValue::Nil));
    assert_eq!(batch.events[1].field("zeal"), Some(&WireValue::Bool(true)));
    assert_eq!(batch.events[2].field("to"), Some(&text("CPU")));
    assert_eq!(WireBatch::decode(&batch.encode()).unwrap(), batch);
}

#[test]
fn wrong_fields_are_refused_by_name() {
    let hashes = || {
        (
            "block_hashes".to_owned(),
            WireValue::List(vec![WireValue::Number(1)]),
        )
    };
    let refused = |kind: &str, fields: Vec<(String, WireValue)>| {
        WireEvent::new(kind.to_owned(), fields)
            .unwrap_err()
            .to_string()
    };
    assert_eq!(
        refused("BlockRemoved", vec![]),
        "field \"block_hashes\" of BlockRemoved: it is missing"
    );
    let medium = ("medium".to_owned(), WireValue::Number(1));
    assert!(refused("BlockRemoved", vec![hashes(), medium]).contains("\"medium\""));
    assert!(refused("BlockRemoved", vec![hashes(), hashes()]).contains("twice"));
    assert!(refused("BlockStored", vec![hashes()]).contains("\"token_ids\""));
    assert!(refused("Other", vec![("type".to_owned(), WireValue::Nil)]).contains("kind"));
    for hex in [
        "c0",
        "90",
        "91c0",
        "92cb400400000000000091c0",
        "93cb400400000000000090a161",
    ] {
        assert!(WireBatch::decode(&bytes(hex)).is_err(), "{hex}");
    }
}

#[test]
fn every_cut_and_every_flipped_byte_is_read_or_refused() {
    let golden = bytes(FULL);
    for end in 0..golden.len() {
        assert!(WireBatch::decode(&golden[..end]).is_err(), "{end}");
    }
    for at in 0..golden.len() {
        for flip in [0x01, 0x80, 0xff] {
            let mut damaged = golden.clone();
            damaged[at] ^= flip;
            // What is read is written to bytes that are read to the same.
            if let Ok(batch) = WireBatch::decode(&damaged) {
                assert_eq!(WireBatch::decode(&batch.encode()).unwrap(), batch);
            }
        }
    }
}
