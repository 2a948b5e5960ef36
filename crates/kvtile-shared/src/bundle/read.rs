//! Reads the required blocks of a bundle, with calls for their bytes only where that pays.
//!
//! The checksums of the blocks are in the header, so a reader of later blocks needs two calls: for the header, and for the
//! bytes from the first required block to the last one.

use super::BundleReader;
use crate::store::{Deadline, SharedStore, SharedStoreError, ValueName};

/// Reads a bundle into a reader, until the reader needs no more of it or the value ends. `Ok(false)` if the store does not
/// have it.
pub(crate) fn read_bundle(
    store: &dyn SharedStore,
    name: &ValueName,
    reader: &mut BundleReader<'_>,
    by: Deadline,
) -> Result<bool, SharedStoreError> {
    let call_bytes = call_bytes(store);
    while let Some(next) = reader.next_bytes(call_bytes) {
        let before = reader.bytes();
        let is_there = match next.is_all {
            true => store.read(name, reader, by)?,
            false => store.read_range(name, next.range.clone(), reader, by)?,
        };
        if !is_there {
            return Ok(false);
        }
        let came = reader.bytes().saturating_sub(before);
        let wanted = next.range.end.saturating_sub(next.range.start);
        if came < wanted && !reader.has_ended() {
            // The value has no more bytes.
            break;
        }
    }
    Ok(true)
}

/// The bytes that a store passes in the time of one call: reading fewer bytes of no use is faster than a second call.
/// `None` if it has no ranges.
fn call_bytes(store: &dyn SharedStore) -> Option<u64> {
    let abilities = store.abilities();
    let per_second = u128::from(abilities.bytes_per_second);
    let bytes = abilities.latency.as_micros().saturating_mul(per_second) / 1_000_000;
    let bytes = u64::try_from(bytes).unwrap_or(u64::MAX);
    abilities.reads_ranges.then_some(bytes)
}
