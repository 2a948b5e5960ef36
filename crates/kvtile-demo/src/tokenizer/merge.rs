//! Byte-pair merges (Sennrich, Haddow and Birch, 2016): of all neighbouring pairs the one with the
//! lowest rank is joined first, and the leftmost among equals. A heap keeps the cost of a word of n
//! symbols at n log n, so that no text makes encoding slow.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};

/// The result of a merge, and its rank.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Merge {
    pub(super) rank: u32,
    pub(super) token: u32,
}

/// The merges of a vocabulary.
pub(super) type Merges = HashMap<(u32, u32), Merge>;

/// A pair on the heap, ordered by rank, then by position.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct MergeCandidate {
    rank: u32,
    place: usize,
    next: usize,
    pair: (u32, u32),
    token: u32,
}

/// A symbol of the word; `token` is `None` after it was merged into its left neighbour.
#[derive(Clone, Copy)]
struct MergeSymbol {
    token: Option<u32>,
    previous: Option<usize>,
    next: Option<usize>,
}

struct MergeWord<'a> {
    merges: &'a Merges,
    symbols: Vec<MergeSymbol>,
    heap: BinaryHeap<Reverse<MergeCandidate>>,
}

/// Merges the symbols of one word until no pair merges.
pub(super) fn merge(merges: &Merges, tokens: impl Iterator<Item = u32>) -> Vec<u32> {
    let mut symbols: Vec<MergeSymbol> = tokens
        .enumerate()
        .map(|(place, token)| MergeSymbol {
            token: Some(token),
            previous: place.checked_sub(1),
            next: Some(place + 1),
        })
        .collect();
    if let Some(last) = symbols.last_mut() {
        last.next = None;
    }
    let mut word = MergeWord {
        merges,
        symbols,
        heap: BinaryHeap::new(),
    };
    for place in 0..word.symbols.len() {
        word.propose(place);
    }
    while let Some(Reverse(candidate)) = word.heap.pop() {
        word.join(candidate);
    }
    word.symbols
        .iter()
        .filter_map(|symbol| symbol.token)
        .collect()
}

impl MergeWord<'_> {
    fn token(&self, place: usize) -> Option<u32> {
        self.symbols.get(place)?.token
    }

    /// Pushes the pair at `place` and its right neighbour on the heap, if it merges.
    fn propose(&mut self, place: usize) -> Option<()> {
        let next = self.symbols.get(place)?.next?;
        let pair = (self.token(place)?, self.token(next)?);
        let Merge { rank, token } = *self.merges.get(&pair)?;
        self.heap.push(Reverse(MergeCandidate {
            rank,
            place,
            next,
            pair,
            token,
        }));
        Some(())
    }

    /// Joins a pair if both symbols are still current.
    fn join(&mut self, candidate: MergeCandidate) -> Option<()> {
        let MergeCandidate {
            place,
            next,
            pair,
            token,
            ..
        } = candidate;
        if self.symbols.get(place)?.next != Some(next)
            || (self.token(place)?, self.token(next)?) != pair
        {
            return None;
        }
        let after = self.symbols.get_mut(next).and_then(|symbol| {
            symbol.token = None;
            symbol.next
        });
        let joined = self.symbols.get_mut(place)?;
        joined.token = Some(token);
        joined.next = after;
        let previous = joined.previous;
        if let Some(after) = after.and_then(|after| self.symbols.get_mut(after)) {
            after.previous = Some(place);
        }
        self.propose(place);
        if let Some(previous) = previous {
            self.propose(previous);
        }
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kvtile_random::SplitMix64;

    fn merges(rules: &[(u32, u32, u32)]) -> Merges {
        let ranked = (0..).zip(rules);
        ranked
            .map(|(rank, rule)| {
                (
                    (rule.0, rule.1),
                    Merge {
                        rank,
                        token: rule.2,
                    },
                )
            })
            .collect()
    }

    /// The reference by search: find the best pair, join it, repeat.
    fn by_search(merges: &Merges, mut tokens: Vec<u32>) -> Vec<u32> {
        loop {
            let best = (1..tokens.len())
                .filter_map(|i| {
                    merges
                        .get(&(tokens[i - 1], tokens[i]))
                        .map(|m| (m.rank, i, m.token))
                })
                .min();
            let Some((_, i, token)) = best else {
                return tokens;
            };
            tokens[i - 1] = token;
            tokens.remove(i);
        }
    }

    #[test]
    fn lower_ranks_go_first_and_equal_ones_from_the_left() {
        let merges = merges(&[(1, 1, 2), (2, 1, 3), (2, 2, 4)]);
        assert_eq!(merge(&merges, [1, 1, 1].into_iter()), [3]);
        assert_eq!(merge(&merges, [1, 1, 1, 1].into_iter()), [4]);
        assert_eq!(merge(&merges, [5].into_iter()), [5]);
        assert_eq!(merge(&merges, std::iter::empty()), Vec::<u32>::new());
    }

    #[test]
    fn heap_and_search_agree_on_random_rules_and_words() {
        let mut numbers = SplitMix64::new(7);
        let mut random = move |below: u64| u32::try_from(numbers.below(below)).unwrap();
        for _ in 0..200 {
            let mut rules: Vec<(u32, u32, u32)> = Vec::new();
            for token in 4..20 {
                let pair = (random(u64::from(token)), random(u64::from(token)));
                if rules.iter().all(|rule| (rule.0, rule.1) != pair) {
                    rules.push((pair.0, pair.1, token));
                }
            }
            let merges = merges(&rules);
            let word: Vec<u32> = (0..random(40)).map(|_| random(4)).collect();
            let merged = merge(&merges, word.iter().copied());
            assert_eq!(
                merged,
                by_search(&merges, word.clone()),
                "{word:?} under {rules:?}"
            );
        }
    }
}
