//! A growing token sequence, and the keys of its full blocks.
//!
//! A key is derived once, when its block becomes full; a partial tail has none. The sequence does
//! not know which blocks are stored.
//!
//! Inputs besides the tokens either apply to all blocks (an adapter) or belong to a range of tokens
//! (an image, whose placeholder tokens do not identify it). The extra keys of a block are first
//! those of all blocks. Then follows, in marking order, the content of each range that overlaps the
//! block: its bytes, followed by the range's start relative to the block's start, as a
//! little-endian i64.

#[cfg(test)]
mod tests;

use crate::key::{BlockHasher, ExtraDigest, ExtraKeys, ParentKey};
use crate::{BlockKey, BlocksError};
use std::ops::Range;

/// The tokens of one request or conversation.
#[derive(Clone, Debug)]
pub struct TokenSequence {
    hasher: BlockHasher,
    tokens: Vec<u32>,
    /// One key for each full block.
    keys: Vec<BlockKey>,
    /// Extra keys of every block.
    extra: Vec<Vec<u8>>,
    marks: Vec<ContentMark>,
    /// The digest of `extra`, for blocks that overlap no range.
    digest: Option<ExtraDigest>,
}

/// A range of tokens and the content that it represents.
#[derive(Clone, Debug)]
struct ContentMark {
    tokens: Range<usize>,
    content: Vec<u8>,
}

impl TokenSequence {
    /// An empty sequence whose blocks depend on their tokens and on `extra` (names of adapters).
    ///
    /// # Errors
    /// Extra keys with a profile that does not support them.
    pub fn new(hasher: BlockHasher, extra: ExtraKeys<'_>) -> Result<TokenSequence, BlocksError> {
        let digest = hasher.digest(extra.iter())?;
        Ok(TokenSequence {
            hasher,
            tokens: Vec::new(),
            keys: Vec::new(),
            extra: extra.iter().map(<[u8]>::to_vec).collect(),
            marks: Vec::new(),
            digest,
        })
    }

    /// Reserves room for `tokens` more tokens, so that appending them allocates nothing.
    pub fn reserve(&mut self, tokens: usize) {
        self.tokens.reserve(tokens);
        let in_all = self.tokens.len().saturating_add(tokens);
        let blocks = in_all / self.hasher.page_size();
        self.keys.reserve(blocks - self.keys.len());
    }

    /// Appends a token. Returns the key of the block that it completes.
    pub fn append(&mut self, token: u32) -> Option<BlockKey> {
        self.extend(&[token]).first().copied()
    }

    /// Appends tokens. Returns the keys of the blocks that they complete.
    pub fn extend(&mut self, tokens: &[u32]) -> &[BlockKey] {
        let before = self.keys.len();
        self.tokens.extend_from_slice(tokens);
        let page_size = self.hasher.page_size();
        let mut start = before * page_size;
        let (_, rest) = self.tokens.split_at(start);
        let mut parent = self.hasher.after(self.keys.last().copied());
        // One check for all these blocks: most sequences have no marks here.
        let marked = self.marks.iter().any(|mark| mark.tokens.end > start);
        for page in rest.chunks_exact(page_size) {
            let extra = if marked {
                self.digest_of(start)
            } else {
                self.digest
            };
            let key = self.hasher.key_of_page(parent, page, extra);
            self.keys.push(key);
            parent = ParentKey::from(key);
            start += page_size;
        }
        self.keys.split_at(before).1
    }

    /// Marks a range of tokens, after the last full block, as placeholders for `content` (the hash
    /// of an image). An empty range has no effect.
    ///
    /// # Errors
    /// A range that starts in a block that already has a key, or a profile that does not support
    /// extra keys.
    pub fn mark(&mut self, tokens: Range<usize>, content: &[u8]) -> Result<(), BlocksError> {
        let keyed = self.keys.len() * self.hasher.page_size();
        if tokens.start < keyed {
            return Err(BlocksError::MarkedTooLate {
                start: tokens.start,
                keyed,
            });
        }
        if tokens.is_empty() {
            return Ok(());
        }
        // Checked here, so that later blocks cannot fail.
        self.hasher.digest([content].into_iter())?;
        self.marks.push(ContentMark {
            tokens,
            content: content.to_vec(),
        });
        Ok(())
    }

    /// Keeps the first `length` tokens; a longer length changes nothing. A mark keeps the part of
    /// its range that remains, and a mark beyond it is dropped.
    pub fn truncate(&mut self, length: usize) {
        if length >= self.tokens.len() {
            return;
        }
        self.tokens.truncate(length);
        self.keys.truncate(length / self.hasher.page_size());
        self.marks.retain_mut(|mark| {
            mark.tokens.end = mark.tokens.end.min(length);
            !mark.tokens.is_empty()
        });
    }

    /// The keys of the full blocks, in order.
    #[must_use]
    pub fn keys(&self) -> &[BlockKey] {
        &self.keys
    }

    /// All tokens.
    #[must_use]
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// The tokens after the last full block, fewer than a page.
    #[must_use]
    pub fn tail(&self) -> &[u32] {
        let keyed = self.keys.len() * self.hasher.page_size();
        self.tokens.split_at(keyed).1
    }

    /// The key of the block before the one that contains the token at `position`. `None` in the
    /// first block, and where that previous block is not full yet.
    #[must_use]
    pub fn parent_of(&self, position: usize) -> Option<BlockKey> {
        let before = (position / self.hasher.page_size()).checked_sub(1)?;
        self.keys.get(before).copied()
    }

    /// The number of tokens.
    #[must_use]
    pub fn len(&self) -> usize {
        self.tokens.len()
    }

    /// Whether there are no tokens.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.tokens.is_empty()
    }

    /// The hasher of its keys.
    #[must_use]
    pub fn hasher(&self) -> &BlockHasher {
        &self.hasher
    }

    /// Asserts that the keys match the tokens; for tests.
    ///
    /// # Panics
    /// If an invariant is violated.
    pub fn check_integrity(&self) {
        let page_size = self.hasher.page_size();
        assert_eq!(
            self.keys.len(),
            self.tokens.len() / page_size,
            "full blocks"
        );
        let mut parent = self.hasher.after(None);
        for (index, (page, &key)) in self
            .tokens
            .chunks_exact(page_size)
            .zip(&self.keys)
            .enumerate()
        {
            let extra = self.digest_of(index * page_size);
            let expected = self.hasher.key_of_page(parent, page, extra);
            assert_eq!(key, expected, "block {index}");
            parent = ParentKey::from(key);
        }
    }

    /// The digest of the extra keys of the block that starts at token `start`.
    fn digest_of(&self, start: usize) -> Option<ExtraDigest> {
        let end = start + self.hasher.page_size();
        let marks = self
            .marks
            .iter()
            .filter(|mark| mark.tokens.start < end && mark.tokens.end > start);
        let marked: Vec<Vec<u8>> = marks.map(|mark| mark.in_block(start)).collect();
        if marked.is_empty() {
            return self.digest;
        }
        let all: Vec<&[u8]> = self
            .extra
            .iter()
            .chain(&marked)
            .map(Vec::as_slice)
            .collect();
        let digest = self.hasher.digest(all.into_iter());
        assert!(digest.is_ok(), "refused marks are not kept");
        digest.unwrap_or_default()
    }
}

impl ContentMark {
    /// The mark's extra key in the block that starts at token `block`.
    fn in_block(&self, block: usize) -> Vec<u8> {
        let start = self.tokens.start as u64;
        // Two's complement: the difference as an i64, negative where the range starts before.
        let from_block = start.wrapping_sub(block as u64);
        let mut bytes = self.content.clone();
        bytes.extend_from_slice(&from_block.to_le_bytes());
        bytes
    }
}
