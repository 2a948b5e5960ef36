//! Caches and stores that Python holds: each is open until it is closed, and all are closed before
//! the interpreter ends.

use std::{
    cell::Cell,
    sync::{Arc, Weak},
    time::Duration,
};

use parking_lot::Mutex;

/// A cache or a store, or nothing once it is closed.
pub(crate) struct OpenSlot<T>(Mutex<Option<Arc<T>>>);

/// The slots of this process that may still be open.
pub(crate) struct OpenSlots<T>(Mutex<Vec<Weak<OpenSlot<T>>>>);

/// How often closing checks whether calls of other threads have ended.
const CALLS_INTERVAL: Duration = Duration::from_millis(1);

thread_local! {
    /// Number of calls that this thread is inside of. Log records of the library may call
    /// back into Python, which may call the library again.
    static IN_CALLS: Cell<usize> = const { Cell::new(0) };
}

/// Marks this thread as inside a call of a cache or a store, until it is dropped.
pub(crate) struct SlotCall;

impl SlotCall {
    pub(crate) fn enter() -> SlotCall {
        IN_CALLS.set(IN_CALLS.get() + 1);
        SlotCall
    }
}

impl Drop for SlotCall {
    fn drop(&mut self) {
        IN_CALLS.set(IN_CALLS.get() - 1);
    }
}

impl<T> OpenSlot<T> {
    /// The open object.
    pub(crate) fn get(&self) -> Option<Arc<T>> {
        self.0.lock().as_ref().map(Arc::clone)
    }

    /// Whether it is closed.
    pub(crate) fn is_closed(&self) -> bool {
        self.0.lock().is_none()
    }

    /// Takes the object to close it, once the calls of other threads have ended. `None` if it is
    /// closed already, or if this thread is inside a call: then the last such call drops it.
    pub(crate) fn take(&self) -> Option<T> {
        let mut open = self.0.lock().take()?;
        loop {
            match Arc::try_unwrap(open) {
                Ok(open) => return Some(open),
                Err(_) if IN_CALLS.get() > 0 => return None,
                Err(shared) => open = shared,
            }
            std::thread::sleep(CALLS_INTERVAL);
        }
    }
}

impl<T> OpenSlots<T> {
    pub(crate) const fn new() -> OpenSlots<T> {
        OpenSlots(Mutex::new(Vec::new()))
    }

    /// Adds an object.
    pub(crate) fn open(&self, object: T) -> Arc<OpenSlot<T>> {
        let slot = Arc::new(OpenSlot(Mutex::new(Some(Arc::new(object)))));
        let mut open = self.0.lock();
        open.retain(|slot| slot.strong_count() > 0);
        open.push(Arc::downgrade(&slot));
        slot
    }

    /// Takes the slots that are alive.
    pub(crate) fn take(&self) -> Vec<Arc<OpenSlot<T>>> {
        let open = std::mem::take(&mut *self.0.lock());
        open.iter().filter_map(Weak::upgrade).collect()
    }
}
