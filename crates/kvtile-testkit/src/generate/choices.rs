//! A finite supply of choices.
//!
//! Generators take their decisions from a list of numbers. When the list is exhausted, every
//! further decision is the first option, which is the simplest. A shorter list gives a simpler
//! case, so proptest's shrinking of the list shrinks the case.

use proptest::{collection::vec, prelude::*};

/// The numbers that decide a case.
#[derive(Clone, Debug)]
pub struct Choices {
    rest: std::vec::IntoIter<u64>,
}

/// Lists of choices, long enough for most cases.
pub fn choices() -> impl Strategy<Value = Choices> {
    vec(any::<u64>(), 0..160).prop_map(Choices::new)
}

impl Choices {
    /// Decides by `numbers`, in their order.
    #[must_use]
    pub fn new(numbers: Vec<u64>) -> Choices {
        Choices {
            rest: numbers.into_iter(),
        }
    }

    /// One of `0..count`; 0 if the numbers are exhausted or `count` is 0.
    pub fn below(&mut self, count: u64) -> u64 {
        self.rest
            .next()
            .unwrap_or(0)
            .checked_rem(count)
            .unwrap_or(0)
    }

    /// An index into a list of `len` entries.
    pub fn index(&mut self, len: usize) -> usize {
        usize::try_from(self.below(len as u64)).unwrap_or(0)
    }

    /// True once in `one_in` times; false if the numbers are exhausted.
    pub fn once_in(&mut self, one_in: u64) -> bool {
        self.below(one_in) == one_in - 1 && one_in > 1
    }

    /// One of the entries; the first if the numbers are exhausted, the default if there are no
    /// entries.
    pub fn pick<T: Copy + Default>(&mut self, entries: &[T]) -> T {
        let index = self.index(entries.len());
        entries.get(index).copied().unwrap_or_default()
    }

    /// The entries in a random order; in the given order if the numbers are exhausted.
    pub fn shuffled<T>(&mut self, mut entries: Vec<T>) -> Vec<T> {
        let mut result = Vec::with_capacity(entries.len());
        while !entries.is_empty() {
            let at = self.index(entries.len());
            result.push(entries.remove(at));
        }
        result
    }
}
