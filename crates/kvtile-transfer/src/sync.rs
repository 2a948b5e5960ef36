//! The locks, condition variables, flags and threads of completions and lanes. They are in one
//! module, so that `loom` can replace them and explore every thread interleaving. A panic does not
//! poison the locks.

#[cfg(loom)]
pub(crate) use loom::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};
#[cfg(loom)]
pub(crate) use modelled::{Condvar, Mutex, MutexGuard};
#[cfg(not(loom))]
pub(crate) use parking_lot::{Condvar, Mutex, MutexGuard};
#[cfg(not(loom))]
pub(crate) use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};

/// `loom`'s locks with the `parking_lot` API.
#[cfg(loom)]
mod modelled {
    use std::{
        ops::{Deref, DerefMut},
        sync::PoisonError,
        time::Duration,
    };

    use kvtile_layout::broken;
    use loom::sync;

    #[derive(Debug, Default)]
    pub(crate) struct Mutex<T>(sync::Mutex<T>);

    /// Empty only while a condition variable holds the guard.
    pub(crate) struct MutexGuard<'a, T>(Option<sync::MutexGuard<'a, T>>);

    impl<T> Mutex<T> {
        pub(crate) fn new(value: T) -> Mutex<T> {
            Mutex(sync::Mutex::new(value))
        }

        pub(crate) fn lock(&self) -> MutexGuard<'_, T> {
            let guard = self.0.lock();
            MutexGuard(Some(guard.unwrap_or_else(PoisonError::into_inner)))
        }
    }

    impl<T> Deref for MutexGuard<'_, T> {
        type Target = T;

        fn deref(&self) -> &T {
            let Some(guard) = &self.0 else {
                broken(format_args!(
                    "read of a lock whose guard a condition variable holds"
                ))
            };
            guard
        }
    }

    impl<T> DerefMut for MutexGuard<'_, T> {
        fn deref_mut(&mut self) -> &mut T {
            let Some(guard) = &mut self.0 else {
                broken(format_args!(
                    "write to a lock whose guard a condition variable holds"
                ))
            };
            guard
        }
    }

    #[derive(Debug)]
    pub(crate) struct Condvar(sync::Condvar);

    impl Condvar {
        pub(crate) fn new() -> Condvar {
            Condvar(sync::Condvar::new())
        }

        pub(crate) fn notify_one(&self) {
            self.0.notify_one();
        }

        pub(crate) fn notify_all(&self) {
            self.0.notify_all();
        }

        pub(crate) fn wait<T>(&self, guard: &mut MutexGuard<'_, T>) {
            let Some(held) = guard.0.take() else {
                broken(format_args!(
                    "a lock whose guard a condition variable holds waits for another"
                ))
            };
            let held = self.0.wait(held);
            guard.0 = Some(held.unwrap_or_else(PoisonError::into_inner));
        }

        pub(crate) fn wait_for<T>(&self, guard: &mut MutexGuard<'_, T>, within: Duration) {
            let Some(held) = guard.0.take() else {
                broken(format_args!(
                    "a lock whose guard a condition variable holds waits for another"
                ))
            };
            let held = self.0.wait_timeout(held, within);
            guard.0 = Some(held.unwrap_or_else(PoisonError::into_inner).0);
        }
    }
}
