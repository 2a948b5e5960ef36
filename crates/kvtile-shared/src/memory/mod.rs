//! A store in memory, for tests and for caches of one process.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::Mutex;

use crate::store::{
    Deadline, ListPage, ListedValue, SharedStore, SharedStoreAbilities, SharedStoreError,
    StoreExpiry, ValueName, ValueSink, ValueWritten,
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
}

impl MemoryStore {
    /// An empty store.
    #[must_use]
    pub fn new() -> Arc<MemoryStore> {
        Arc::new(MemoryStore::default())
    }

    /// Bytes of all values.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        let values = self.values.lock();
        values.values().map(|value| value.bytes.len() as u64).sum()
    }

    /// Replaces the bytes of a value by those that `change` returns, for tests of damage. False
    /// without the value.
    pub fn damage(&self, name: &ValueName, change: impl FnOnce(&[u8]) -> Vec<u8>) -> bool {
        let mut values = self.values.lock();
        let Some(value) = values.get_mut(name) else {
            return false;
        };
        value.bytes = change(&value.bytes).into();
        true
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
            keeps_first: true,
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
