//! An array of entries most of which have one value. Pieces in which all have it take no memory.

/// Entries of a piece.
const PIECE: usize = 128;

/// An array without end, indexed by `u32`. Every entry has the default value until it is set.
#[derive(Clone, Debug, Default)]
pub(super) struct SparseColumn<T> {
    pieces: Vec<Option<Box<[T; PIECE]>>>,
}

impl<T: Copy + Default + PartialEq> SparseColumn<T> {
    /// No entry is set.
    pub(super) fn new() -> SparseColumn<T> {
        SparseColumn { pieces: Vec::new() }
    }

    /// The entry at `index`.
    #[inline]
    pub(super) fn get(&self, index: u32) -> T {
        let index = index as usize;
        match self.pieces.get(index / PIECE) {
            Some(Some(piece)) => piece.get(index % PIECE).copied().unwrap_or_default(),
            _ => T::default(),
        }
    }

    /// Sets the entry at `index`.
    #[inline]
    pub(super) fn set(&mut self, index: u32, value: T) {
        let index = index as usize;
        if let Some(Some(piece)) = self.pieces.get_mut(index / PIECE) {
            if let Some(entry) = piece.get_mut(index % PIECE) {
                *entry = value;
            }
        } else if value != T::default() {
            self.set_first(index, value);
        }
    }

    /// Sets an entry of a piece that is not allocated yet.
    #[cold]
    fn set_first(&mut self, index: usize, value: T) {
        if self.pieces.len() <= index / PIECE {
            self.pieces.resize(index / PIECE + 1, None);
        }
        let mut piece = Box::new([T::default(); PIECE]);
        if let Some(entry) = piece.get_mut(index % PIECE) {
            *entry = value;
        }
        if let Some(place) = self.pieces.get_mut(index / PIECE) {
            *place = Some(piece);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_have_the_default_until_they_are_set() {
        let mut column = SparseColumn::<u32>::new();
        column.set(5_000_000, 0);
        assert!(column.pieces.is_empty());
        for (index, value) in [(1_000, 7), (3, 9), (1_001, 0), (1_000, 0), (999, 4)] {
            column.set(index, value);
            assert_eq!(column.get(index), value);
        }
        let set: Vec<u32> = (0..5_000).filter(|&index| column.get(index) != 0).collect();
        assert_eq!(set, [3, 999]);
        assert_eq!(column.pieces.iter().flatten().count(), 2);
    }
}
