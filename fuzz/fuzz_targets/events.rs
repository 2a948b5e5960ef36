//! Decodes arbitrary bytes as a batch of KV cache events: a batch or a typed error, within bounded memory. What is
//! decoded is encoded to bytes that decode to the same.
#![no_main]

use kvtile_events_wire::WireBatch;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Ok(batch) = WireBatch::decode(bytes) else {
        return;
    };
    let encoded = batch.encode();
    let again = WireBatch::decode(&encoded).expect("what was encoded can be decoded");
    assert_eq!(again.encode(), encoded);
});
