//! An array indexed by `u32`: one entry for each block, run or ghost.

use std::ops::{Index, IndexMut};

use crate::grow::grow;

/// No block, run or ghost.
pub(super) const NONE: u32 = u32::MAX;

/// An array whose indices are `u32` ids that this crate hands out. Any other index is a broken
/// invariant and panics.
#[derive(Clone, Debug)]
pub(super) struct IdColumn<T>(Vec<T>);

impl<T: Clone> IdColumn<T> {
    /// `len` copies of `value`.
    pub(super) fn new(len: usize, value: T) -> IdColumn<T> {
        IdColumn(vec![value; len])
    }

    /// An empty array.
    pub(super) fn empty() -> IdColumn<T> {
        IdColumn(Vec::new())
    }

    /// Extends the array so that it has an entry at `index`, each new one `value`. No array needs
    /// more than `most` entries.
    #[inline]
    pub(super) fn grow(&mut self, index: u32, most: usize, value: T) {
        grow(&mut self.0, (index as usize + 1, most), value);
    }

    /// The entry at `index`, if the array is long enough.
    #[inline]
    pub(super) fn known(&self, index: u32) -> Option<&T> {
        self.0.get(index as usize)
    }

    /// The number of entries.
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// The entries, mutable.
    pub(super) fn iter_mut(&mut self) -> std::slice::IterMut<'_, T> {
        self.0.iter_mut()
    }

    /// The entries.
    pub(super) fn iter(&self) -> std::slice::Iter<'_, T> {
        self.0.iter()
    }
}

impl<T> Index<u32> for IdColumn<T> {
    type Output = T;

    #[expect(
        clippy::indexing_slicing,
        reason = "an unknown id is a broken invariant"
    )]
    #[inline]
    fn index(&self, index: u32) -> &T {
        &self.0[index as usize]
    }
}

impl<T> IndexMut<u32> for IdColumn<T> {
    #[expect(
        clippy::indexing_slicing,
        reason = "an unknown id is a broken invariant"
    )]
    #[inline]
    fn index_mut(&mut self, index: u32) -> &mut T {
        &mut self.0[index as usize]
    }
}
