//! The atomics and locks of the pool, in one place, so that `loom` can substitute its own and
//! explore the thread interleavings. It knows nothing of blocks.

#[cfg(loom)]
pub(super) use loom::{
    hint::spin_loop,
    sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering, fence},
};
#[cfg(not(loom))]
pub(super) use std::{
    hint::spin_loop,
    sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering, fence},
};

#[cfg(loom)]
type RawMutex<T> = loom::sync::Mutex<T>;
#[cfg(not(loom))]
type RawMutex<T> = parking_lot::Mutex<T>;

#[cfg(loom)]
pub(super) type PoolLockGuard<'a, T> = loom::sync::MutexGuard<'a, T>;
#[cfg(not(loom))]
pub(super) type PoolLockGuard<'a, T> = parking_lot::MutexGuard<'a, T>;

/// A mutex without poisoning.
#[derive(Debug)]
pub(super) struct PoolLock<T>(RawMutex<T>);

impl<T> PoolLock<T> {
    pub(super) fn new(value: T) -> PoolLock<T> {
        PoolLock(RawMutex::new(value))
    }

    #[cfg(not(loom))]
    pub(super) fn lock(&self) -> PoolLockGuard<'_, T> {
        self.0.lock()
    }

    #[cfg(loom)]
    pub(super) fn lock(&self) -> PoolLockGuard<'_, T> {
        self.0
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// The lock, if it is free.
    #[cfg(not(loom))]
    pub(super) fn try_lock(&self) -> Option<PoolLockGuard<'_, T>> {
        self.0.try_lock()
    }

    /// The lock, if it is free.
    #[cfg(loom)]
    pub(super) fn try_lock(&self) -> Option<PoolLockGuard<'_, T>> {
        self.0.try_lock().ok()
    }
}
