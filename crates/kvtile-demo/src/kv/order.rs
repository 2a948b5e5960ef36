//! The two orders of a part that the attention supports.
//!
//! With `H` heads of `C` values and `N` tokens a block:
//!
//! ```text
//! TokenMajor           L|BKNHC        | K: N x H x C | V: N x H x C |
//! TransposedKeys       L|BH(kCN,vNC)  per head | K: C x N | V: N x C |
//! ```
//!
//! vLLM's CPU backend uses the second order (instruction sets `vec` and `vec16`): there the token
//! is the fastest axis of a key.

use super::KvShape;

/// The order of the values of one layer of one block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum KvOrder {
    /// Keys of all tokens, then values of all tokens; a token's heads together.
    TokenMajor,
    /// Per head the keys transposed (token fastest), then the values.
    TransposedKeys,
}

/// A run of slots of one head inside a part.
#[derive(Clone, Copy, Debug)]
pub(crate) struct HeadRun {
    pub(crate) head: usize,
    pub(crate) slot: usize,
    pub(crate) count: usize,
}

impl KvOrder {
    /// The order as a word of the layout language.
    pub fn word(self) -> &'static str {
        match self {
            Self::TokenMajor => "L|BKNHC",
            Self::TransposedKeys => "L|BH(kCN,vNC)",
        }
    }

    /// Writes one token's keys and values (heads together) into `slot`.
    pub(crate) fn write(
        self,
        shape: KvShape,
        part: &mut [f32],
        slot: usize,
        token: (&[f32], &[f32]),
    ) {
        let (key, value) = token;
        let (tokens, head_size) = (shape.page_size, shape.head_size);
        match self {
            Self::TokenMajor => {
                let (keys, values) = part.split_at_mut(part.len() / 2);
                let width = shape.token_values();
                copy(keys.chunks_exact_mut(width).nth(slot), key);
                copy(values.chunks_exact_mut(width).nth(slot), value);
            }
            Self::TransposedKeys => {
                let heads = part.chunks_exact_mut(2 * tokens * head_size);
                let token = key
                    .chunks_exact(head_size)
                    .zip(value.chunks_exact(head_size));
                for (head, (key, value)) in heads.zip(token) {
                    let (keys, values) = head.split_at_mut(tokens * head_size);
                    for (place, key) in keys.iter_mut().skip(slot).step_by(tokens).zip(key) {
                        *place = *key;
                    }
                    copy(values.chunks_exact_mut(head_size).nth(slot), value);
                }
            }
        }
    }

    /// Writes the keys of a run into `out`, which is `head_size` rows of `width`
    /// lanes: token `i` of the run goes to lane `lane + i`.
    pub(crate) fn read_keys(
        self,
        shape: KvShape,
        part: &[f32],
        run: HeadRun,
        out: &mut [f32],
        (width, lane): (usize, usize),
    ) {
        let (tokens, head_size) = (shape.page_size, shape.head_size);
        match self {
            Self::TokenMajor => {
                let keys = part
                    .chunks_exact(head_size)
                    .skip(run.slot * shape.kv_heads + run.head);
                for (index, key) in keys.step_by(shape.kv_heads).take(run.count).enumerate() {
                    for (place, key) in out.iter_mut().skip(lane + index).step_by(width).zip(key) {
                        *place = *key;
                    }
                }
            }
            Self::TransposedKeys => {
                let keys = part.chunks_exact(tokens).skip(2 * head_size * run.head);
                for (row, keys) in out.chunks_exact_mut(width).zip(keys) {
                    let from = keys.iter().skip(run.slot).take(run.count);
                    row.iter_mut()
                        .skip(lane)
                        .zip(from)
                        .for_each(|(place, key)| *place = *key);
                }
            }
        }
    }

    /// The values of a run, token by token.
    pub(crate) fn values(
        self,
        shape: KvShape,
        part: &[f32],
        run: HeadRun,
    ) -> impl Iterator<Item = &[f32]> {
        let (tokens, heads) = (shape.page_size, shape.kv_heads);
        let (first, step) = match self {
            Self::TokenMajor => ((tokens + run.slot) * heads + run.head, heads),
            Self::TransposedKeys => ((2 * run.head + 1) * tokens + run.slot, 1),
        };
        part.chunks_exact(shape.head_size)
            .skip(first)
            .step_by(step)
            .take(run.count)
    }
}

fn copy(to: Option<&mut [f32]>, from: &[f32]) {
    for (to, from) in to.into_iter().flatten().zip(from) {
        *to = *from;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHAPE: KvShape = KvShape {
        layers: 1,
        num_blocks: 1,
        page_size: 5,
        kv_heads: 3,
        head_size: 4,
    };

    /// A number that names plane, token, head and element.
    fn name(plane: usize, token: usize, head: usize, element: usize) -> f32 {
        (((plane * 10 + token) * 10 + head) * 10 + element) as f32
    }

    fn filled(order: KvOrder) -> Vec<f32> {
        let mut part = vec![f32::NAN; SHAPE.part_values()];
        for token in 0..5 {
            let plane = |plane| -> Vec<f32> {
                (0..12)
                    .map(|index| name(plane, token, index / 4, index % 4))
                    .collect()
            };
            order.write(SHAPE, &mut part, token, (&plane(1), &plane(2)));
        }
        part
    }

    #[test]
    fn token_major_is_planes_tokens_heads_elements() {
        let part = filled(KvOrder::TokenMajor);
        for (index, value) in part.iter().enumerate() {
            let (plane, rest) = (index / 60, index % 60);
            assert_eq!(
                *value,
                name(1 + plane, rest / 12, rest / 4 % 3, rest % 4),
                "at {index}"
            );
        }
    }

    #[test]
    fn transposed_keys_are_heads_then_elements_by_tokens_then_tokens_by_elements() {
        let part = filled(KvOrder::TransposedKeys);
        for (index, value) in part.iter().enumerate() {
            let (head, rest) = (index / 40, index % 40);
            let expected = if rest < 20 {
                name(1, rest % 5, head, rest / 5)
            } else {
                name(2, (rest - 20) / 4, head, rest % 4)
            };
            assert_eq!(*value, expected, "at {index}");
        }
    }

    #[test]
    fn both_orders_read_back_the_same_run() {
        for order in [KvOrder::TokenMajor, KvOrder::TransposedKeys] {
            let part = filled(order);
            for head in 0..3 {
                let run = HeadRun {
                    head,
                    slot: 1,
                    count: 3,
                };
                let mut lanes = [0.0; 4 * 8];
                order.read_keys(SHAPE, &part, run, &mut lanes, (8, 2));
                for (index, value) in lanes.iter().enumerate() {
                    let (element, lane) = (index / 8, index % 8);
                    let inside = (2..5).contains(&lane);
                    let expected = if inside {
                        name(1, lane - 1, head, element)
                    } else {
                        0.0
                    };
                    assert_eq!(*value, expected, "{order:?} head {head} at {index}");
                }
                let values: Vec<f32> = order.values(SHAPE, &part, run).flatten().copied().collect();
                let expected: Vec<f32> = (0..12)
                    .map(|index| name(2, 1 + index / 4, head, index % 4))
                    .collect();
                assert_eq!(values, expected, "{order:?} head {head}");
            }
        }
    }
}
