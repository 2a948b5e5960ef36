//! A store in memory, for tests and for caches of one process.

use std::{
    collections::BTreeMap,
    ops::Range,
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::Mutex;

use crate::store::{
    Deadline, ListPage, ListedValue, SharedStore, SharedStoreAbilities, SharedStoreError,
    StoreExpiry, StoreOperation, ValueName, ValueSink, ValueWritten,
};

/// Values of one page of a listing.
const PAGE_VALUES: usize = 1000;

#[derive(Clone, Debug)]
struct StoredValue {
    bytes: Arc<[u8]>,
    touched: Instant,
    expires: Option<Instant>,
}

/// A store in the memory of this process. Several tiers may share one.
#[derive(Debug, Default)]
pub struct MemoryStore {
    values: Mutex<BTreeMap<ValueName, StoredValue>>,
    capacity_bytes: Option<u64>,
}

impl MemoryStore {
    /// An empty store.
    #[must_use]
    pub fn new() -> Arc<MemoryStore> {
        Arc::new(MemoryStore::default())
    }

    /// An empty store that refuses values which exceed a capacity.
    #[must_use]
    pub fn bounded(capacity_bytes: u64) -> Arc<MemoryStore> {
        Arc::new(MemoryStore {
            capacity_bytes: Some(capacity_bytes),
            ..MemoryStore::default()
        })
    }

    /// A value that has not expired.
    fn get(&self, name: &ValueName) -> Option<StoredValue> {
        let mut values = self.values.lock();
        let value = values.get(name)?;
        if value
            .expires
            .is_some_and(|expires| expires <= Instant::now())
        {
            values.remove(name);
            return None;
        }
        Some(value.clone())
    }
}

fn expiry(lifetime: Option<Duration>) -> Option<Instant> {
    lifetime.and_then(|lifetime| Instant::now().checked_add(lifetime))
}

impl SharedStore for MemoryStore {
    fn name(&self) -> &str {
        "memory"
    }

    fn abilities(&self) -> SharedStoreAbilities {
        SharedStoreAbilities {
            capacity_bytes: self.capacity_bytes,
            keeps_first: true,
            reads_ranges: true,
            expires: StoreExpiry::PerValue,
            latency: Duration::from_micros(10),
            bytes_per_second: 1_000_000_000,
            ..SharedStoreAbilities::default()
        }
    }

    fn has(&self, names: &[ValueName], _by: Deadline) -> Result<Vec<bool>, SharedStoreError> {
        Ok(names.iter().map(|name| self.get(name).is_some()).collect())
    }

    fn read(
        &self,
        name: &ValueName,
        sink: &mut dyn ValueSink,
        _by: Deadline,
    ) -> Result<bool, SharedStoreError> {
        let Some(value) = self.get(name) else {
            return Ok(false);
        };
        sink.put(&value.bytes);
        Ok(true)
    }

    fn read_range(
        &self,
        name: &ValueName,
        range: Range<u64>,
        sink: &mut dyn ValueSink,
        _by: Deadline,
    ) -> Result<bool, SharedStoreError> {
        let Some(value) = self.get(name) else {
            return Ok(false);
        };
        let within =
            |at: u64| usize::try_from(at).map_or(value.bytes.len(), |at| at.min(value.bytes.len()));
        let (some, _) = value.bytes.split_at(within(range.end));
        let (_, some) = some.split_at(within(range.start).min(some.len()));
        sink.put(some);
        Ok(true)
    }

    fn write(
        &self,
        name: &ValueName,
        parts: &[&[u8]],
        lifetime: Option<Duration>,
        _by: Deadline,
    ) -> Result<ValueWritten, SharedStoreError> {
        if self.get(name).is_some() {
            return Ok(ValueWritten::Present);
        }
        let value = StoredValue {
            bytes: parts.concat().into(),
            touched: Instant::now(),
            expires: expiry(lifetime),
        };
        let mut values = self.values.lock();
        if values.contains_key(name) {
            return Ok(ValueWritten::Present);
        }
        if let Some(capacity) = self.capacity_bytes {
            let now = Instant::now();
            values.retain(|_, value| value.expires.is_none_or(|expires| expires > now));
            let used = values
                .values()
                .map(|value| value.bytes.len() as u64)
                .sum::<u64>();
            let bytes = value.bytes.len() as u64;
            if used.saturating_add(bytes) > capacity {
                let what = format!("{used} of {capacity} bytes are in use, {bytes} do not fit");
                return Err(SharedStoreError::refused(StoreOperation::Write, what));
            }
        }
        values.insert(name.clone(), value);
        Ok(ValueWritten::New)
    }

    fn remove(&self, names: &[ValueName], _by: Deadline) -> Result<usize, SharedStoreError> {
        let mut values = self.values.lock();
        let removed = names.iter().filter(|name| values.remove(name).is_some());
        Ok(removed.count())
    }

    fn touch(
        &self,
        names: &[ValueName],
        lifetime: Option<Duration>,
        _by: Deadline,
    ) -> Result<(), SharedStoreError> {
        let mut values = self.values.lock();
        for name in names {
            if let Some(value) = values.get_mut(name) {
                value.touched = Instant::now();
                value.expires = expiry(lifetime);
            }
        }
        Ok(())
    }

    fn list(
        &self,
        under: &str,
        after: Option<&str>,
        _by: Deadline,
    ) -> Result<ListPage, SharedStoreError> {
        let values = self.values.lock();
        let rest = values.iter().filter(|(name, _)| {
            let name = name.as_str();
            name.starts_with(under) && after.is_none_or(|after| name > after)
        });
        let listed = rest.take(PAGE_VALUES + 1).map(|(name, value)| ListedValue {
            name: name.clone(),
            bytes: value.bytes.len() as u64,
            age: Some(value.touched.elapsed()),
        });
        let mut listed: Vec<ListedValue> = listed.collect();
        let is_more = listed.len() > PAGE_VALUES;
        listed.truncate(PAGE_VALUES);
        let last = listed.last().map(|value| value.name.as_str().to_owned());
        Ok(ListPage {
            next: last.filter(|_| is_more),
            values: listed,
        })
    }
}
