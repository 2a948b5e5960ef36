//! A wrapper around any store that misbehaves, by a seed.

use std::{ops::Range, sync::Arc, time::Duration};

use kvtile_random::SplitMix64;
use kvtile_shared::store::{
    Deadline, ListPage, SharedStore, SharedStoreAbilities, SharedStoreError, SinkState,
    StoreErrorKind, StoreOperation, ValueName, ValueSink, ValueWritten,
};
use parking_lot::Mutex;

use crate::gate::Gate;

/// The rate of each fault: once in this many calls, never if 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StoreFaults {
    /// A call takes up to 3 ms.
    pub slow: u64,
    /// A call returns an error.
    pub error: u64,
    /// A write is reported and its value is not there.
    pub lost_write: u64,
    /// A write stores only the beginning of the value.
    pub torn_write: u64,
    /// A value disappears when it is read.
    pub vanishing: u64,
    /// An answer has the opposite of the truth for a value, or lacks one.
    pub wrong_presence: u64,
    /// A read passes bytes with one flipped bit.
    pub flipped_bit: u64,
    /// A read ends early.
    pub short_read: u64,
    /// A read passes more bytes than the value has.
    pub long_read: u64,
    /// A read passes another value.
    pub other_value: u64,
    /// A read passes some bytes and fails then.
    pub broken_read: u64,
}

impl StoreFaults {
    /// Every fault, once in `of` calls.
    #[must_use]
    pub fn all(of: u64) -> StoreFaults {
        StoreFaults {
            slow: of,
            error: of,
            lost_write: of,
            torn_write: of,
            vanishing: of,
            wrong_presence: of,
            flipped_bit: of,
            short_read: of,
            long_read: of,
            other_value: of,
            broken_read: of,
        }
    }
}

#[derive(Debug)]
struct SimulatedState {
    numbers: SplitMix64,
    faults: StoreFaults,
    /// Names of values that were written, in the order of the calls.
    written: Vec<ValueName>,
    /// Names that were queried, in the order of the calls.
    queried: Vec<ValueName>,
}

/// A store that misbehaves. Its [`gate`](SimulatedStore::gate) stops calls of reads and writes.
#[derive(Debug)]
pub struct SimulatedStore {
    inner: Arc<dyn SharedStore>,
    gate: Arc<Gate>,
    state: Mutex<SimulatedState>,
}

impl SimulatedStore {
    /// Wraps `inner`, without faults.
    #[must_use]
    pub fn new(inner: Arc<dyn SharedStore>, seed: u64) -> Arc<SimulatedStore> {
        Arc::new(SimulatedStore {
            inner,
            gate: Arc::default(),
            state: Mutex::new(SimulatedState {
                numbers: SplitMix64::new(seed),
                faults: StoreFaults::default(),
                written: Vec::new(),
                queried: Vec::new(),
            }),
        })
    }

    /// Sets the rates of faults.
    pub fn set_faults(&self, faults: StoreFaults) {
        self.state.lock().faults = faults;
    }

    /// The gate that every read and write passes.
    #[must_use]
    pub fn gate(&self) -> &Arc<Gate> {
        &self.gate
    }

    /// The names of all calls of `write` that did not fail on purpose, in their order.
    #[must_use]
    pub fn written(&self) -> Vec<ValueName> {
        self.state.lock().written.clone()
    }

    /// The names of all calls of `has`, in their order.
    #[must_use]
    pub fn queried(&self) -> Vec<ValueName> {
        self.state.lock().queried.clone()
    }

    fn happens(&self, of: impl Fn(&StoreFaults) -> u64) -> bool {
        let mut state = self.state.lock();
        let of = of(&state.faults);
        state.numbers.once_in(of)
    }

    fn index(&self, len: usize) -> usize {
        self.state.lock().numbers.index(len.max(1))
    }

    /// Delays a call, or fails it.
    fn call(&self, operation: StoreOperation) -> Result<(), SharedStoreError> {
        if self.happens(|faults| faults.slow) {
            let micros = self.state.lock().numbers.below(3000);
            std::thread::sleep(Duration::from_micros(micros));
        }
        if !self.happens(|faults| faults.error) {
            return Ok(());
        }
        let kinds = [
            StoreErrorKind::Transient,
            StoreErrorKind::Refused,
            StoreErrorKind::Configuration,
        ];
        let kind = kinds.get(self.index(kinds.len())).copied();
        let kind = kind.unwrap_or(StoreErrorKind::Transient);
        Err(SharedStoreError::new(kind, operation, "simulated"))
    }

    /// The bytes of a value, changed or not.
    fn bytes_of(
        &self,
        name: &ValueName,
        by: Deadline,
    ) -> Result<Option<Vec<u8>>, SharedStoreError> {
        let mut whole = CollectedValue::default();
        if !self.inner.read(name, &mut whole, by)? {
            return Ok(None);
        }
        let mut bytes = whole.bytes;
        if self.happens(|faults| faults.flipped_bit) {
            let at = self.index(bytes.len());
            let bit = self.index(8);
            if let Some(byte) = bytes.get_mut(at) {
                *byte ^= 1 << bit;
            }
        }
        if self.happens(|faults| faults.short_read) {
            bytes.truncate(self.index(bytes.len()));
        }
        if self.happens(|faults| faults.long_read) {
            bytes.extend([7; 100]);
        }
        Ok(Some(bytes))
    }

    /// A name that was written, perhaps another one than `name`.
    fn some_name(&self, name: &ValueName) -> ValueName {
        if !self.happens(|faults| faults.other_value) {
            return name.clone();
        }
        let count = self.state.lock().written.len();
        let at = self.index(count);
        let other = self.state.lock().written.get(at).cloned();
        other.unwrap_or_else(|| name.clone())
    }
}

#[derive(Default)]
struct CollectedValue {
    bytes: Vec<u8>,
    space: Vec<u8>,
}

impl ValueSink for CollectedValue {
    fn space(&mut self) -> &mut [u8] {
        self.space.resize(1 << 16, 0);
        &mut self.space
    }

    fn filled(&mut self, bytes: usize) -> SinkState {
        let (came, _) = self.space.split_at(bytes);
        self.bytes.extend(came);
        SinkState::Open
    }
}

impl SharedStore for SimulatedStore {
    fn name(&self) -> &str {
        "simulated"
    }

    fn abilities(&self) -> SharedStoreAbilities {
        self.inner.abilities()
    }

    fn has(&self, names: &[ValueName], by: Deadline) -> Result<Vec<bool>, SharedStoreError> {
        self.state.lock().queried.extend_from_slice(names);
        self.call(StoreOperation::Has)?;
        let mut present = self.inner.has(names, by)?;
        if self.happens(|faults| faults.wrong_presence) {
            let at = self.index(present.len());
            match present.get_mut(at) {
                Some(one) if self.index(2) == 0 => *one = !*one,
                _ => drop(present.pop()),
            }
        }
        Ok(present)
    }

    fn read(
        &self,
        name: &ValueName,
        sink: &mut dyn ValueSink,
        by: Deadline,
    ) -> Result<bool, SharedStoreError> {
        self.read_range(name, 0..u64::MAX, sink, by)
    }

    fn read_range(
        &self,
        name: &ValueName,
        range: Range<u64>,
        sink: &mut dyn ValueSink,
        by: Deadline,
    ) -> Result<bool, SharedStoreError> {
        self.gate.pass();
        self.call(StoreOperation::Read)?;
        if self.happens(|faults| faults.vanishing) {
            self.inner.remove(std::slice::from_ref(name), by)?;
        }
        let Some(bytes) = self.bytes_of(&self.some_name(name), by)? else {
            return Ok(false);
        };
        let within = |at: u64| usize::try_from(at).map_or(bytes.len(), |at| at.min(bytes.len()));
        let (bytes, _) = bytes.split_at(within(range.end));
        let (_, bytes) = bytes.split_at(within(range.start).min(bytes.len()));
        if self.happens(|faults| faults.broken_read) {
            let (some, _) = bytes.split_at(self.index(bytes.len()));
            sink.put(some);
            return Err(SharedStoreError::transient(
                StoreOperation::Read,
                "simulated in the middle",
            ));
        }
        // In pieces, as a network passes them.
        let piece = 1 + self.index(20_000);
        for piece in bytes.chunks(piece) {
            if sink.put(piece) == SinkState::Full {
                break;
            }
        }
        Ok(true)
    }

    fn write(
        &self,
        name: &ValueName,
        parts: &[&[u8]],
        lifetime: Option<Duration>,
        by: Deadline,
    ) -> Result<ValueWritten, SharedStoreError> {
        self.gate.pass();
        self.call(StoreOperation::Write)?;
        self.state.lock().written.push(name.clone());
        if self.happens(|faults| faults.lost_write) {
            return Ok(ValueWritten::New);
        }
        if self.happens(|faults| faults.torn_write) {
            let whole = parts.concat();
            let (some, _) = whole.split_at(self.index(whole.len()));
            self.inner.write(name, &[some], lifetime, by)?;
            return match self.index(2) {
                0 => Ok(ValueWritten::New),
                _ => Err(SharedStoreError::late(StoreOperation::Write)),
            };
        }
        self.inner.write(name, parts, lifetime, by)
    }

    fn remove(&self, names: &[ValueName], by: Deadline) -> Result<usize, SharedStoreError> {
        self.call(StoreOperation::Remove)?;
        self.inner.remove(names, by)
    }

    fn touch(
        &self,
        names: &[ValueName],
        lifetime: Option<Duration>,
        by: Deadline,
    ) -> Result<(), SharedStoreError> {
        self.call(StoreOperation::Touch)?;
        self.inner.touch(names, lifetime, by)
    }

    fn list(
        &self,
        under: &str,
        after: Option<&str>,
        by: Deadline,
    ) -> Result<ListPage, SharedStoreError> {
        self.call(StoreOperation::List)?;
        self.inner.list(under, after, by)
    }
}
