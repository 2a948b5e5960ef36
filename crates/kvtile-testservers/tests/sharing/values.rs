//! Values whose bytes follow from their names, so that every read can be checked.

use std::{
    hash::{DefaultHasher, Hash, Hasher},
    time::Duration,
};

use kvtile_shared::store::{
    Deadline, SharedStore, SharedStoreError, SinkState, ValueName, ValueSink, ValueWritten,
};
use kvtile_testkit::disk::SplitMix64;

pub(crate) fn name(text: &str) -> ValueName {
    ValueName::new(text).unwrap()
}

/// The name of value `index`, as tiers name theirs: 256 directories.
pub(crate) fn numbered(index: usize) -> ValueName {
    name(&format!("values/{:02x}/{index:08x}", index % 256))
}

/// The bytes of a name: their number and their content follow from it.
pub(crate) fn bytes_of(name: &ValueName, length: usize) -> Vec<u8> {
    let mut hasher = DefaultHasher::new();
    name.as_str().hash(&mut hasher);
    let mut numbers = SplitMix64::new(hasher.finish());
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        bytes.extend(numbers.any().to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

/// Memory for a value, offered in pieces.
pub(crate) struct PieceMemory {
    pub(crate) bytes: Vec<u8>,
    pub(crate) got: usize,
    piece: usize,
}

impl PieceMemory {
    pub(crate) fn new(room: usize, piece: usize) -> PieceMemory {
        PieceMemory {
            bytes: vec![0xEE; room],
            got: 0,
            piece,
        }
    }
}

impl ValueSink for PieceMemory {
    fn space(&mut self) -> &mut [u8] {
        let end = self.bytes.len().min(self.got + self.piece);
        &mut self.bytes[self.got..end]
    }

    fn filled(&mut self, bytes: usize) -> SinkState {
        self.got += bytes;
        assert!(self.got <= self.bytes.len(), "more bytes than space");
        match self.got == self.bytes.len() {
            true => SinkState::Full,
            false => SinkState::Open,
        }
    }
}

/// A whole value of at most 64 MiB; `None` if the store does not have it.
pub(crate) fn read_all(
    store: &dyn SharedStore,
    name: &ValueName,
    within: Duration,
) -> Result<Option<Vec<u8>>, SharedStoreError> {
    let mut memory = PieceMemory::new(0, 1 << 20);
    // Grows with the value: the room is not known before.
    struct GrowingSink<'a>(&'a mut PieceMemory);
    impl ValueSink for GrowingSink<'_> {
        fn space(&mut self) -> &mut [u8] {
            let got = self.0.got;
            self.0.bytes.resize(got + (1 << 20), 0);
            &mut self.0.bytes[got..]
        }
        fn filled(&mut self, bytes: usize) -> SinkState {
            self.0.got += bytes;
            assert!(self.0.got <= 64 << 20, "a value without end");
            SinkState::Open
        }
    }
    let by = Deadline::within(within);
    let present = store.read(name, &mut GrowingSink(&mut memory), by)?;
    memory.bytes.truncate(memory.got);
    assert!(present || memory.got == 0, "bytes of an absent value");
    Ok(present.then_some(memory.bytes))
}

/// Reads a value and compares its bytes; whether the store has it.
pub(crate) fn read_checked(
    store: &dyn SharedStore,
    name: &ValueName,
    length: usize,
    within: Duration,
) -> Result<bool, SharedStoreError> {
    let Some(bytes) = read_all(store, name, within)? else {
        return Ok(false);
    };
    assert_eq!(bytes.len(), length, "{name} has another length");
    assert!(bytes == bytes_of(name, length), "{name} has wrong bytes");
    Ok(true)
}

/// Writes the bytes of a name, in three parts.
pub(crate) fn write_named(
    store: &dyn SharedStore,
    name: &ValueName,
    length: usize,
    within: Duration,
) -> Result<ValueWritten, SharedStoreError> {
    let bytes = bytes_of(name, length);
    let (head, rest) = bytes.split_at(length.min(100));
    let (middle, tail) = rest.split_at(rest.len() / 3);
    store.write(name, &[head, middle, tail], None, Deadline::within(within))
}
