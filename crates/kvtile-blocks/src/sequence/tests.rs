//! Sequences against a recomputation from scratch.

use super::*;
use crate::key::{KeyProfile, KeySettings};
use kvtile_random::SplitMix64;

fn hasher(profile: KeyProfile, page_size: usize) -> BlockHasher {
    let settings = KeySettings::new().profile(profile).page_size(page_size);
    BlockHasher::new(&settings, b"model").unwrap()
}

fn sequence(page_size: usize) -> TokenSequence {
    TokenSequence::new(hasher(KeyProfile::Blake3, page_size), ExtraKeys::NONE).unwrap()
}

/// The marked content of each token, as a list per token: a model without ranges.
#[derive(Default)]
struct NaiveSequence {
    tokens: Vec<u32>,
    marks: Vec<(Range<usize>, Vec<u8>)>,
}

impl NaiveSequence {
    fn keys(&self, hasher: &BlockHasher, extra: &[Vec<u8>]) -> Vec<BlockKey> {
        let page_size = hasher.page_size();
        let mut keys: Vec<BlockKey> = Vec::new();
        for (index, page) in self.tokens.chunks_exact(page_size).enumerate() {
            let start = index * page_size;
            let mut lists = extra.to_vec();
            for (range, content) in &self.marks {
                if (start..start + page_size).any(|token| range.contains(&token)) {
                    let from = i64::try_from(range.start).unwrap() - i64::try_from(start).unwrap();
                    lists.push([content.as_slice(), &from.to_le_bytes()].concat());
                }
            }
            let lists: Vec<&[u8]> = lists.iter().map(Vec::as_slice).collect();
            let parent = keys.last().copied();
            keys.push(hasher.key(parent, page, ExtraKeys::new(&lists)).unwrap());
        }
        keys
    }

    fn truncate(&mut self, length: usize) {
        if length >= self.tokens.len() {
            return;
        }
        self.tokens.truncate(length);
        self.marks.retain_mut(|(range, _)| {
            range.end = range.end.min(length);
            range.start < range.end
        });
    }
}

#[test]
fn a_sequence_equals_a_recomputation_under_random_operations() {
    for seed in 0..300 {
        println!("seed {seed}");
        let mut random = SplitMix64::new(seed);
        let profile = [KeyProfile::Blake3, KeyProfile::Xxh3][random.index(2)];
        let hasher = hasher(profile, 1 + random.index(9));
        let extra = vec![b"adapter".to_vec(); random.index(2)];
        let borrowed: Vec<&[u8]> = extra.iter().map(Vec::as_slice).collect();
        let mut sequence = TokenSequence::new(hasher.clone(), ExtraKeys::new(&borrowed)).unwrap();
        let mut naive = NaiveSequence::default();
        for _ in 0..60 {
            let before = sequence.keys().to_vec();
            let mut completed = Vec::new();
            let mut truncated = false;
            match random.index(6) {
                0 | 1 => {
                    let token = u32::try_from(random.index(5)).unwrap();
                    completed.extend(sequence.append(token));
                    naive.tokens.push(token);
                }
                2 | 3 => {
                    let count = random.index(30);
                    let tokens: Vec<u32> = (0..count)
                        .map(|_| u32::try_from(random.index(5)).unwrap())
                        .collect();
                    completed.extend_from_slice(sequence.extend(&tokens));
                    naive.tokens.extend(tokens);
                }
                4 => {
                    let start = naive.tokens.len() + random.index(12);
                    let range = start..start + random.index(20);
                    sequence.mark(range.clone(), b"image").unwrap();
                    if !range.is_empty() {
                        naive.marks.push((range, b"image".to_vec()));
                    }
                }
                _ => {
                    let length = random.index(naive.tokens.len() + 5);
                    sequence.truncate(length);
                    naive.truncate(length);
                    truncated = true;
                }
            }
            sequence.check_integrity();
            assert_eq!(sequence.tokens(), naive.tokens);
            assert_eq!(sequence.keys(), naive.keys(&hasher, &extra));
            if !truncated {
                assert_eq!(sequence.keys(), [before, completed].concat());
            }
        }
    }
}

#[test]
fn truncating_over_block_borders_and_growing_again_is_as_if_it_never_was() {
    let tokens: Vec<u32> = (0..100).collect();
    for cut in 0..=100 {
        let mut sequence = sequence(16);
        sequence.extend(&tokens);
        let keys = sequence.keys().to_vec();
        sequence.truncate(cut);
        sequence.check_integrity();
        assert_eq!(sequence.tail().len(), cut % 16);
        sequence.extend(&tokens[cut..]);
        assert_eq!(sequence.keys(), keys);
    }
}

#[test]
fn the_parent_of_a_position_is_the_key_of_the_block_before() {
    let mut sequence = sequence(4);
    sequence.extend(&[1, 2, 3, 4, 5, 6, 7, 8, 9]);
    let [first, second] = sequence.keys()[..] else {
        panic!("two full blocks")
    };
    let parents: Vec<Option<BlockKey>> = (0..13).map(|at| sequence.parent_of(at)).collect();
    let expected = [[None; 4], [Some(first); 4], [Some(second); 4]].concat();
    assert_eq!(parents[..12], expected);
    assert_eq!(parents[12], None);
    assert_eq!(sequence.tail(), [9]);
}

/// Pitfall 23: the placeholder tokens of two images are equal, their content is not.
#[test]
fn pitfall_23_the_same_placeholders_of_other_content_have_other_keys() {
    let keys = |content: &[u8], range: Range<usize>| {
        let mut sequence = sequence(4);
        sequence.mark(range, content).unwrap();
        sequence.extend(&[0; 12]).to_vec()
    };
    let (one, other) = (keys(b"one", 5..7), keys(b"other", 5..7));
    let moved = keys(b"one", 6..8);
    assert_eq!(one[0], other[0], "before the image");
    for index in 1..3 {
        assert_ne!(one[index], other[index], "block {index}");
        assert_ne!(one[index], moved[index], "block {index}");
    }
}

#[test]
fn content_is_not_marked_in_blocks_with_keys() {
    let mut sequence = sequence(4);
    sequence.extend(&[0; 5]);
    let refused = sequence.mark(3..6, b"image").unwrap_err();
    assert_eq!(refused, BlocksError::MarkedTooLate { start: 3, keyed: 4 });
    sequence.mark(4..6, b"image").unwrap();
}

#[test]
fn a_router_sequence_refuses_content_before_it_fails_later() {
    let router = hasher(KeyProfile::Router { seed: 1 }, 4);
    let extra: &[&[u8]] = &[b"adapter"];
    assert!(TokenSequence::new(router.clone(), ExtraKeys::new(extra)).is_err());
    let mut sequence = TokenSequence::new(router, ExtraKeys::NONE).unwrap();
    assert!(sequence.mark(0..4, b"image").is_err());
    assert_eq!(sequence.extend(&[1, 2, 3, 4]).len(), 1);
}
