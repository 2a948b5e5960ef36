//! Tokens that grow, and the keys of their full blocks.
//!
//! Keys are made once, when a block becomes full; a tail that is not full has none. The sequence
//! does not know which blocks are stored anywhere.
//!
//! What a block depends on beside its tokens is either the same for all blocks (an adapter) or
//! belongs to a range of tokens (an image, whose placeholder tokens say nothing of it). A block has,
//! as extra keys, what belongs to all, then, in the order in which it was marked, the content of
//! each range that overlaps it: its bytes, followed by where the range starts, counted from the
//! start of the block, as a little-endian i64.

#[cfg(test)]
mod tests;

use crate::key::{BlockHasher, ExtraDigest, ExtraKeys, Parent};
use crate::{BlockKey, BlocksError};
use std::ops::Range;

/// The tokens of one request or conversation.
#[derive(Clone, Debug)]
pub struct TokenSequence {
    hasher: BlockHasher,
    tokens: Vec<u32>,
    /// One for each full block.
    keys: Vec<BlockKey>,
    /// Extra keys of every block.
    extra: Vec<Vec<u8>>,
    marks: Vec<Mark>,
    /// The hash of `extra`, for the blocks that no range touches.
    digest: Option<ExtraDigest>,
}

/// Content that a range of tokens stands for.
#[derive(Clone, Debug)]
struct Mark {
    tokens: Range<usize>,
    content: Vec<u8>,
}

impl TokenSequence {
    /// An empty sequence whose blocks depend on their tokens, and on `extra` (names of adapters).
    ///
    /// # Errors
    /// Extra keys where the hasher's profile has no place for them.
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

    /// Makes room for so many more tokens, so that appending them allocates nothing.
    pub fn reserve(&mut self, tokens: usize) {
        self.tokens.reserve(tokens);
        let in_all = self.tokens.len().saturating_add(tokens);
        let blocks = in_all / self.hasher.page_size();
        self.keys.reserve(blocks - self.keys.len());
    }

    /// Adds a token. Returns the key of the block that it completes.
    pub fn append(&mut self, token: u32) -> Option<BlockKey> {
        self.extend(&[token]).first().copied()
    }

    /// Adds tokens. Returns the keys of the blocks that they complete.
    pub fn extend(&mut self, tokens: &[u32]) -> &[BlockKey] {
        let before = self.keys.len();
        self.tokens.extend_from_slice(tokens);
        let page_size = self.hasher.page_size();
        let mut start = before * page_size;
        let (_, rest) = self.tokens.split_at(start);
        let mut parent = self.hasher.after(self.keys.last().copied());
        // The marks are looked at once for all these blocks, as most sequences have none here.
        let marked = self.marks.iter().any(|mark| mark.tokens.end > start);
        for page in rest.chunks_exact(page_size) {
            let extra = if marked {
                self.digest_of(start)
            } else {
                self.digest
            };
            let key = self.hasher.key_of_page(parent, page, extra);
            self.keys.push(key);
            parent = Parent::from(key);
            start += page_size;
        }
        self.keys.split_at(before).1
    }

    /// Says that the tokens of a range, which come next or later, stand for `content` (the hash of
    /// an image). Empty ranges say nothing.
    ///
    /// # Errors
    /// A range that starts in a block whose key is made already, or a profile that has no place for
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
        // Refused here, so that later blocks cannot fail.
        self.hasher.digest([content].into_iter())?;
        self.marks.push(Mark {
            tokens,
            content: content.to_vec(),
        });
        Ok(())
    }

    /// Keeps the first `length` tokens; more than there are changes nothing. Content stands for
    /// what is left of its range, and what was marked beyond is forgotten.
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

    /// The keys of the full blocks, the first one first.
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

    /// The key of the block before the one that the token at `position` belongs to. `None` in the
    /// first block, and where that block is not full yet.
    #[must_use]
    pub fn parent_of(&self, position: usize) -> Option<BlockKey> {
        let before = (position / self.hasher.page_size()).checked_sub(1)?;
        self.keys.get(before).copied()
    }

    /// How many tokens there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.tokens.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.tokens.is_empty()
    }

    /// What makes its keys.
    #[must_use]
    pub fn hasher(&self) -> &BlockHasher {
        &self.hasher
    }

    /// Asserts that the keys are those of the tokens; for tests.
    ///
    /// # Panics
    /// Where something does not hold.
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
            parent = Parent::from(key);
        }
    }

    /// The hash of the extra keys of the block that starts at a token.
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
        assert!(digest.is_ok(), "a mark that was refused is kept");
        digest.unwrap_or_default()
    }
}

impl Mark {
    /// Its extra key in the block that starts at a token.
    fn in_block(&self, block: usize) -> Vec<u8> {
        let start = self.tokens.start as u64;
        // Two's complement: the difference as an i64, negative where the range starts before.
        let from_block = start.wrapping_sub(block as u64);
        let mut bytes = self.content.clone();
        bytes.extend_from_slice(&from_block.to_le_bytes());
        bytes
    }
}
