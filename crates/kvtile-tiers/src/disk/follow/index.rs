//! The index of a followed group: which block is in which place, as of the last comparison with the
//! folder.
//!
//! ```text
//! pages    [digest │ blocks][digest │ blocks] …     one entry a page of `records`, ascending
//! places   key ─► place                             a block's page is place / records of a page
//! ```
//!
//! A page whose bytes have the digest of the last comparison is not decoded again. The index is a
//! hint: a read verifies its block with the record that the folder has at that moment. It does no
//! I/O and knows no lock.

use std::collections::HashMap;

use crc_fast::{CrcAlgorithm, checksum};
use kvtile_blocks::{
    BlockKey, GroupId,
    events::{EventKind, StoredBlock, TierId},
};

use super::super::{
    capacity::PAGE,
    record::{DecodedRecord, RecordForm, SlotRecord, StoreId},
};

/// A page of empty records.
static EMPTY_PAGE: [u8; PAGE] = [0; PAGE];

/// The digest of a page of empty records, and of one that cannot be read.
const EMPTY_DIGEST: u64 = 0;

/// A block of a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct FollowedBlock {
    key: BlockKey,
    parent: Option<BlockKey>,
    /// The index of its record in the page; a page has at most 64.
    at: u8,
    /// Whether lookups do not find it, although its record is in the folder: a read failed.
    is_dropped: bool,
    tenant: u32,
    /// The number of its write.
    sequence: u64,
}

const _: () = assert!(size_of::<FollowedBlock>() == 48, "the memory of a block");

/// The content of a page of records.
#[derive(Debug, Default)]
pub(super) struct FollowedPage {
    digest: u64,
    blocks: Box<[FollowedBlock]>,
}

/// A block that a lookup found.
#[derive(Clone, Copy, Debug)]
pub(super) struct FoundBlock {
    pub(super) place: u32,
    pub(super) sequence: u64,
    pub(super) parent: Option<BlockKey>,
    pub(super) tenant: u32,
}

/// The blocks of one group of a followed folder.
#[derive(Debug, Default)]
pub(super) struct FollowedIndex {
    /// Records of a page; 0 while the folder has none.
    per_page: u32,
    pages: Vec<FollowedPage>,
    places: HashMap<BlockKey, u32>,
}

/// The digest of a page, or of its leading records.
pub(super) fn digest(bytes: &[u8]) -> u64 {
    match EMPTY_PAGE.get(..bytes.len()) {
        Some(empty) if bytes == empty => EMPTY_DIGEST,
        _ => checksum(CrcAlgorithm::Crc64Nvme, bytes),
    }
}

/// Records of a page.
pub(super) fn per_page(form: RecordForm) -> u32 {
    u32::try_from(PAGE / form.bytes()).unwrap_or(u32::MAX)
}

impl FollowedPage {
    /// Decodes a page whose first record is that of the place `first`. Records that are not whole
    /// or belong to another folder are no blocks.
    pub(super) fn decode(
        (form, store): (RecordForm, &StoreId),
        first: u32,
        (digest, bytes): (u64, &[u8]),
    ) -> FollowedPage {
        let records = (0..=u8::MAX).zip(bytes.chunks_exact(form.bytes()));
        let block = |(at, record): (u8, &[u8])| {
            let decoded = SlotRecord::decode(form, record, (store, first + u32::from(at)));
            let DecodedRecord::Stored(record) = decoded else {
                return None;
            };
            Some(FollowedBlock {
                key: record.key,
                parent: record.parent,
                at,
                is_dropped: false,
                tenant: record.tenant,
                sequence: record.sequence,
            })
        };
        FollowedPage {
            digest,
            blocks: records.filter_map(block).collect(),
        }
    }
}

impl FollowedIndex {
    /// Whether it can take records of this form: it has no page yet, or its pages have as many.
    pub(super) fn takes(&self, form: RecordForm) -> bool {
        self.pages.is_empty() || self.per_page == per_page(form)
    }

    /// Sets the form of the records, which it must take.
    pub(super) fn expect(&mut self, form: RecordForm) {
        assert!(
            self.takes(form),
            "{form:?} in an index with {} records of a page",
            self.per_page
        );
        self.per_page = per_page(form);
    }

    /// The number of blocks that lookups find.
    pub(super) fn len(&self) -> usize {
        self.places.len()
    }

    /// The number of pages up to the last one that had a block.
    pub(super) fn pages(&self) -> usize {
        self.pages.len()
    }

    /// The digest of a page at the last comparison.
    pub(super) fn digest(&self, page: usize) -> u64 {
        self.pages
            .get(page)
            .map_or(EMPTY_DIGEST, |page| page.digest)
    }

    pub(super) fn has(&self, key: &BlockKey) -> bool {
        self.places.contains_key(key)
    }

    pub(super) fn find(&self, key: &BlockKey) -> Option<FoundBlock> {
        let place = *self.places.get(key)?;
        let block = self.block(place)?;
        Some(FoundBlock {
            place,
            sequence: block.sequence,
            parent: block.parent,
            tenant: block.tenant,
        })
    }

    fn block(&self, place: u32) -> Option<&FollowedBlock> {
        let at = place.checked_rem(self.per_page)?;
        let page = self.pages.get(place.checked_div(self.per_page)? as usize)?;
        page.blocks.iter().find(|block| u32::from(block.at) == at)
    }

    /// Replaces the content of a page, and appends the changes that lookups see to `changes`.
    pub(super) fn replace(
        &mut self,
        page: usize,
        mut content: FollowedPage,
        changes: &mut Vec<EventKind>,
    ) {
        if page >= self.pages.len() {
            if content.digest == EMPTY_DIGEST {
                return;
            }
            self.pages.resize_with(page + 1, FollowedPage::default);
        }
        let before = match self.pages.get_mut(page) {
            Some(there) => std::mem::take(there),
            None => return,
        };
        let first = u32::try_from(page).map_or(u32::MAX, |page| page.saturating_mul(self.per_page));
        // A block that is still there keeps its state.
        let same = |one: &FollowedBlock, other: &FollowedBlock| {
            (one.at, one.key, one.sequence) == (other.at, other.key, other.sequence)
        };
        for block in &before.blocks {
            if !content.blocks.iter().any(|now| same(now, block)) {
                self.remove(block, first, changes);
            }
        }
        let mut came = Vec::new();
        for block in &mut content.blocks {
            match before.blocks.iter().find(|before| same(before, block)) {
                Some(before) => block.is_dropped = before.is_dropped,
                None => came.push(*block),
            }
        }
        if let Some(there) = self.pages.get_mut(page) {
            *there = content;
        }
        for block in came {
            self.add(&block, first, changes);
        }
    }

    fn remove(&mut self, block: &FollowedBlock, first: u32, changes: &mut Vec<EventKind>) {
        if self.places.get(&block.key) == Some(&(first + u32::from(block.at))) {
            self.places.remove(&block.key);
            changes.push(EventKind::Removed { key: block.key });
        }
    }

    /// Of two records of one block the later write counts: the other one is to be erased.
    fn add(&mut self, block: &FollowedBlock, first: u32, changes: &mut Vec<EventKind>) {
        let place = first + u32::from(block.at);
        let other = self
            .places
            .get(&block.key)
            .and_then(|other| self.block(*other));
        if other.is_some_and(|other| other.sequence > block.sequence) {
            return;
        }
        if self.places.insert(block.key, place).is_none() {
            let FollowedBlock { key, parent, .. } = *block;
            changes.push(EventKind::Stored { key, parent });
        }
    }

    /// Stops finding a block, until its record changes. Returns false if the block is no longer the
    /// one that `found` was.
    pub(super) fn drop_block(&mut self, key: &BlockKey, found: &FoundBlock) -> bool {
        let Some(at) = found.place.checked_rem(self.per_page) else {
            return false;
        };
        let page = found.place / self.per_page;
        let Some(page) = self.pages.get_mut(page as usize) else {
            return false;
        };
        let is_it = |block: &&mut FollowedBlock| {
            (u32::from(block.at), block.key, block.sequence) == (at, *key, found.sequence)
        };
        let Some(block) = page.blocks.iter_mut().find(is_it) else {
            return false;
        };
        block.is_dropped = true;
        let finds_it = self.places.get(key) == Some(&found.place);
        if finds_it {
            self.places.remove(key);
        }
        finds_it
    }

    /// Appends all blocks that lookups find.
    pub(super) fn list(&self, (tier, group): (TierId, GroupId), blocks: &mut Vec<StoredBlock>) {
        let found = self.places.keys().filter_map(|key| {
            let parent = self.find(key)?.parent;
            let key = *key;
            Some(StoredBlock {
                tier,
                group,
                key,
                parent,
            })
        });
        blocks.extend(found);
    }

    /// Asserts that each block that lookups find is on its page, and not dropped.
    pub(super) fn check_integrity(&self) {
        for (key, place) in &self.places {
            let block = self.block(*place);
            let is_it = block.is_some_and(|block| block.key == *key && !block.is_dropped);
            assert!(is_it, "block {key} in place {place}: {block:?}");
        }
        for page in &self.pages {
            let is_sorted = page.blocks.is_sorted_by_key(|block| block.at);
            assert!(is_sorted, "records of a page: {page:?}");
            for block in &page.blocks {
                assert!(u32::from(block.at) < self.per_page, "{block:?}");
            }
        }
    }
}
