//! Token ids of blocks, from the program that made their keys.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
};

use kvtile_blocks::BlockKey;

/// The token ids of the last blocks that were given.
#[derive(Debug)]
pub(crate) struct TokenBook {
    tokens: HashMap<BlockKey, Arc<[u32]>>,
    /// The keys, the oldest first.
    order: VecDeque<BlockKey>,
    blocks_max: usize,
}

impl TokenBook {
    pub(crate) fn new(blocks_max: usize) -> TokenBook {
        TokenBook {
            tokens: HashMap::new(),
            order: VecDeque::new(),
            blocks_max,
        }
    }

    /// Adds a block; a block that is known stays as it is.
    pub(crate) fn give(&mut self, key: BlockKey, tokens: &[u32]) {
        if self.blocks_max == 0 || self.tokens.contains_key(&key) {
            return;
        }
        while self.order.len() >= self.blocks_max {
            if let Some(oldest) = self.order.pop_front() {
                self.tokens.remove(&oldest);
            }
        }
        self.tokens.insert(key, tokens.into());
        self.order.push_back(key);
    }

    pub(crate) fn of(&self, key: &BlockKey) -> Option<Arc<[u32]>> {
        self.tokens.get(key).map(Arc::clone)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(number: u8) -> BlockKey {
        BlockKey::from_bytes([number; 16])
    }

    #[test]
    fn the_oldest_tokens_are_dropped_first() {
        let mut book = TokenBook::new(2);
        for number in [1, 2, 1, 3] {
            book.give(key(number), &[u32::from(number)]);
        }
        assert_eq!(book.of(&key(1)), None);
        assert_eq!(book.of(&key(2)).as_deref(), Some(&[2][..]));
        assert_eq!(book.of(&key(3)).as_deref(), Some(&[3][..]));
        let mut none = TokenBook::new(0);
        none.give(key(1), &[1]);
        assert_eq!(none.of(&key(1)), None);
    }
}
