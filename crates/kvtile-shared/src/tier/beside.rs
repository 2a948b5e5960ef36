//! Small values beside the bundles: the manifest of an identity, and the announcement of a part.

use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::store::{Deadline, SharedStore, ValueName};

/// How often a tier that writes makes sure that the store still has the value: a store may evict it, and it may be cleared.
const AGAIN_AFTER: Duration = Duration::from_mins(10);

/// A small value that a tier writes before its first bundle, unless the store has one. Nothing depends on it but what
/// people see, and which parts readers of other shapes find.
#[derive(Debug)]
pub(super) struct ValueBeside {
    name: ValueName,
    /// `None` for a value that would not be read.
    bytes: Option<Vec<u8>>,
    /// When this tier last looked for it.
    looked: Mutex<Option<Instant>>,
}

impl ValueBeside {
    pub(super) fn new(name: ValueName, bytes: Option<Vec<u8>>) -> ValueBeside {
        ValueBeside {
            name,
            bytes,
            looked: Mutex::new(None),
        }
    }

    pub(super) fn name(&self) -> &ValueName {
        &self.name
    }

    /// Writes it, unless the store has one or this tier has looked of late. A failure is no failure of the bundle.
    pub(super) fn write(&self, store: &dyn SharedStore, by: Deadline) {
        let Some(bytes) = &self.bytes else {
            return;
        };
        let before = {
            let mut looked = self.looked.lock();
            if looked.is_some_and(|at| at.elapsed() < AGAIN_AFTER) {
                return;
            }
            looked.replace(Instant::now())
        };
        let write = || match store.has(std::slice::from_ref(&self.name), by)?.first() {
            Some(true) => Ok(()),
            _ => store.write(&self.name, &[bytes], None, by).map(drop),
        };
        if let Err(error) = write() {
            // The next bundle tries again.
            *self.looked.lock() = before;
            log::info!("{} is not in {}: {error}", self.name, store.name());
        }
    }
}
