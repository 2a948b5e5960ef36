//! Doubly linked lists that run through an array. An entry is in at most one list; an entry in no
//! list can store a number in its link.

use super::column::{IdColumn, NONE};

/// The neighbours of an entry in its list.
#[derive(Clone, Copy, Debug)]
struct ListLink {
    older: u32,
    newer: u32,
}

/// The links of all entries.
#[derive(Clone, Debug)]
pub(super) struct ListLinks(IdColumn<ListLink>);

/// One list, from its oldest entry to its newest.
#[derive(Clone, Copy, Debug)]
pub(super) struct LinkedEntries {
    oldest: u32,
    newest: u32,
    len: usize,
}

impl LinkedEntries {
    /// A list without entries.
    pub(super) const fn new() -> LinkedEntries {
        LinkedEntries {
            oldest: NONE,
            newest: NONE,
            len: 0,
        }
    }

    /// The number of entries.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// The oldest entry.
    pub(super) fn oldest(&self) -> Option<u32> {
        (self.oldest != NONE).then_some(self.oldest)
    }
}

impl ListLinks {
    /// No links.
    pub(super) fn new() -> ListLinks {
        ListLinks(IdColumn::empty())
    }

    /// Makes a link for `entry`; there are never more than `most`.
    #[inline]
    pub(super) fn grow(&mut self, entry: u32, most: usize) {
        let link = ListLink {
            older: NONE,
            newer: NONE,
        };
        self.0.grow(entry, most, link);
    }

    /// Appends `entry`, which is in no list, at the newest end of `list`.
    pub(super) fn push(&mut self, list: &mut LinkedEntries, entry: u32) {
        self.0[entry] = ListLink {
            older: list.newest,
            newer: NONE,
        };
        match list.newest {
            NONE => list.oldest = entry,
            newest => self.0[newest].newer = entry,
        }
        list.newest = entry;
        list.len += 1;
    }

    /// Inserts `entry`, which is in no list, just before (older than) `place`, which is in `list`.
    pub(super) fn push_before(&mut self, list: &mut LinkedEntries, place: u32, entry: u32) {
        let older = self.0[place].older;
        self.0[entry] = ListLink {
            older,
            newer: place,
        };
        self.0[place].older = entry;
        match older {
            NONE => list.oldest = entry,
            older => self.0[older].newer = entry,
        }
        list.len += 1;
    }

    /// Stores a number in the link of `entry`, which is in no list.
    pub(super) fn set_number(&mut self, entry: u32, number: u64) {
        let [a, b, c, d, e, f, g, h] = number.to_le_bytes();
        self.0[entry] = ListLink {
            older: u32::from_le_bytes([a, b, c, d]),
            newer: u32::from_le_bytes([e, f, g, h]),
        };
    }

    /// The number stored for `entry`, which is in no list.
    pub(super) fn number(&self, entry: u32) -> u64 {
        let ListLink { older, newer } = self.0[entry];
        u64::from(newer) << u32::BITS | u64::from(older)
    }

    /// Removes `entry` from `list`, which contains it.
    pub(super) fn remove(&mut self, list: &mut LinkedEntries, entry: u32) {
        let ListLink { older, newer } = self.0[entry];
        match older {
            NONE => list.oldest = newer,
            older => self.0[older].newer = newer,
        }
        match newer {
            NONE => list.newest = older,
            newer => self.0[newer].older = older,
        }
        list.len -= 1;
    }

    /// Whether `older` is directly before (older than) `newer`; both are in one list.
    pub(super) fn are_adjacent(&self, older: u32, newer: u32) -> bool {
        self.0[older].newer == newer
    }

    /// Moves the adjacent entries from `oldest` to `newest`, which are in `list`, to its newest end.
    pub(super) fn move_to_newest(&mut self, list: &mut LinkedEntries, oldest: u32, newest: u32) {
        let (older, newer) = (self.0[oldest].older, self.0[newest].newer);
        if newer == NONE {
            return;
        }
        match older {
            NONE => list.oldest = newer,
            older => self.0[older].newer = newer,
        }
        self.0[newer].older = older;
        self.0[oldest].older = list.newest;
        self.0[newest].newer = NONE;
        self.0[list.newest].newer = oldest;
        list.newest = newest;
    }

    /// The next newer entry after `entry`, which is in a list; [`NONE`] after the newest.
    pub(super) fn newer(&self, entry: u32) -> u32 {
        self.0[entry].newer
    }

    /// The entries of `list`, oldest first.
    pub(super) fn iter<'a>(&'a self, list: &LinkedEntries) -> impl Iterator<Item = u32> + 'a {
        let mut at = list.oldest;
        std::iter::from_fn(move || {
            let entry = (at != NONE).then_some(at)?;
            at = self.0[entry].newer;
            Some(entry)
        })
    }

    /// Asserts that the links of `list` agree in both directions.
    pub(super) fn check(&self, list: &LinkedEntries) {
        let mut before = NONE;
        let mut count = 0;
        for entry in self.iter(list) {
            assert_eq!(self.0[entry].older, before, "links of {entry}");
            before = entry;
            count += 1;
            assert!(count <= list.len, "a list with a cycle");
        }
        assert_eq!((before, count), (list.newest, list.len), "end of a list");
    }
}
