//! Threads that call a store, each with memory of its own, and values.

use std::{
    sync::atomic::{AtomicUsize, Ordering},
    thread,
    time::{Duration, Instant},
};

use kvtile_shared::store::{Deadline, SharedStore, SinkState, ValueName, ValueSink, ValueWritten};
use kvtile_testkit::disk::SplitMix64;

/// The time limit of a call; a benchmark whose server is slower ends.
const WITHIN: Duration = Duration::from_secs(60);

/// Takes a whole value into memory of the caller.
struct WholeSink<'a> {
    bytes: &'a mut [u8],
    got: usize,
}

impl ValueSink for WholeSink<'_> {
    fn space(&mut self) -> &mut [u8] {
        &mut self.bytes[self.got..]
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

/// Bytes that no compression shortens, different for each seed.
pub(crate) fn random_bytes(seed: usize, length: usize) -> Vec<u8> {
    let mut numbers = SplitMix64::new(seed as u64);
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        bytes.extend(numbers.any().to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

pub(crate) fn name(text: String) -> ValueName {
    ValueName::new(text).unwrap()
}

/// Reads each value once with `memories.len()` threads.
pub(crate) fn read_all(
    store: &dyn SharedStore,
    names: &[ValueName],
    memories: &mut [Vec<u8>],
) -> Duration {
    let next = AtomicUsize::new(0);
    let began = Instant::now();
    thread::scope(|scope| {
        for memory in memories {
            let next = &next;
            scope.spawn(move || {
                while let Some(name) = names.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let mut sink = WholeSink {
                        bytes: memory,
                        got: 0,
                    };
                    let there = store.read(name, &mut sink, Deadline::within(WITHIN));
                    assert!(there.unwrap(), "{name} is absent");
                    assert_eq!(sink.got, sink.bytes.len(), "{name}");
                }
            });
        }
    });
    began.elapsed()
}

/// Writes each value once with `clients` threads. All of them must be new.
pub(crate) fn write_all(
    store: &dyn SharedStore,
    names: &[ValueName],
    values: &[Vec<u8>],
    clients: usize,
) -> Duration {
    let next = AtomicUsize::new(0);
    let began = Instant::now();
    thread::scope(|scope| {
        for _ in 0..clients {
            scope.spawn(|| {
                loop {
                    let at = next.fetch_add(1, Ordering::Relaxed);
                    let Some(name) = names.get(at) else { break };
                    let value: &[u8] = &values[at % values.len()];
                    let written = store.write(name, &[value], None, Deadline::within(WITHIN));
                    assert_eq!(written.unwrap(), ValueWritten::New, "{name}");
                }
            });
        }
    });
    began.elapsed()
}
