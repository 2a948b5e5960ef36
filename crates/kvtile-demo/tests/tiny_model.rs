//! The whole engine with the miniature model: against a literal reference, against itself with
//! other passes, orders, page sizes and thread counts, and its refusals.

#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests")]

mod reference;

use std::num::NonZeroUsize;

use kvtile_demo::DemoError;
use kvtile_demo::gguf::Gguf;
use kvtile_demo::kv::{KvOrder, KvShape, KvView, Sequence, VecKv};
use kvtile_demo::llama::{Llama, Logits};
use kvtile_demo::tiny;
use kvtile_demo::tokenizer::Tokenizer;

const SEED: u64 = 20;
const ORDERS: [KvOrder; 2] = [KvOrder::TokenMajor, KvOrder::TransposedKeys];

fn threads(count: usize) -> NonZeroUsize {
    NonZeroUsize::new(count).unwrap()
}

fn model() -> Llama {
    Llama::from_gguf(&tiny::gguf(SEED), threads(2)).unwrap()
}

fn prompt(tokens: usize) -> Vec<u32> {
    (0..tokens as u64)
        .map(|index| ((index * index * 31 + index * 7) % 259) as u32)
        .collect()
}

/// A store for `tokens` tokens and a sequence over its blocks in scattered order.
fn room(llama: &Llama, order: KvOrder, page_size: usize, tokens: usize) -> (VecKv, Sequence) {
    let blocks = tokens.div_ceil(page_size);
    let kv = VecKv::new(llama.config().kv_shape(blocks + 3, page_size), order);
    let total = blocks + 3;
    let ids = (0..total)
        .step_by(2)
        .rev()
        .chain((1..total).step_by(2))
        .take(blocks)
        .collect();
    (kv, Sequence::new(ids).unwrap())
}

/// The greedy continuation, `count` tokens.
fn continue_greedily(
    llama: &Llama,
    first: &Logits,
    count: usize,
    sequence: &mut Sequence,
    kv: &mut dyn KvView,
) -> Vec<u32> {
    let mut tokens = vec![first.greedy()];
    while tokens.len() < count {
        let last = *tokens.last().unwrap();
        tokens.push(llama.forward(&[last], sequence, kv).unwrap().greedy());
    }
    tokens
}

/// Keys and values of one token in one layer, heads together.
fn token(kv: &VecKv, sequence: &Sequence, layer: usize, position: usize) -> (Vec<f32>, Vec<f32>) {
    let KvShape {
        page_size: n,
        kv_heads: h,
        head_size: c,
        ..
    } = kv.shape();
    let part = kv.part(layer, sequence.block_ids()[position / n]).unwrap();
    let slot = position % n;
    let place = |plane: usize, head: usize, element: usize| match (kv.order(), plane) {
        (KvOrder::TokenMajor, _) => ((plane * n + slot) * h + head) * c + element,
        (_, 0) => head * 2 * n * c + element * n + slot,
        (_, _) => head * 2 * n * c + n * c + slot * c + element,
    };
    let plane = |plane| {
        (0..h * c)
            .map(|index| part[place(plane, index / c, index % c)])
            .collect()
    };
    (plane(0), plane(1))
}

#[test]
fn logits_keys_and_values_match_the_literal_reference() {
    let (llama, tokens) = (model(), prompt(70));
    let expected = reference::compute(&tiny::gguf(SEED), &tokens);
    for order in ORDERS {
        let (mut kv, mut sequence) = room(&llama, order, 16, 80);
        let logits = llama.forward(&tokens, &mut sequence, &mut kv).unwrap();
        let near = |a: f32, b: f64| (f64::from(a) - b).abs() < 2e-4;
        for (index, (found, expected)) in logits.values().iter().zip(&expected.logits).enumerate() {
            assert!(
                near(*found, *expected),
                "{order:?} logit {index}: {found} and {expected}"
            );
        }
        for layer in 0..llama.config().layers {
            for position in 0..tokens.len() {
                let (keys, values) = token(&kv, &sequence, layer, position);
                let planes = [(keys, &expected.keys), (values, &expected.values)];
                for (found, expected) in planes {
                    for (found, expected) in found.iter().zip(&expected[layer][position]) {
                        assert!(near(*found, *expected), "{order:?} {layer} {position}");
                    }
                }
            }
        }
    }
}

#[test]
fn equal_seeds_give_equal_models_and_others_differ() {
    assert_eq!(tiny::gguf(1), tiny::gguf(1));
    assert_ne!(tiny::gguf(1), tiny::gguf(2));
    let llama = model();
    assert!(llama.facts().name.starts_with(tiny::NAME));
    assert_eq!(llama.facts().weights_sha256.len(), 64);
}

/// For any split of a prompt into passes, and on any number of threads, the logits have the same
/// bits, and so do the following tokens.
#[test]
fn passes_of_any_size_and_any_number_of_threads_give_the_same_bits() {
    let tokens = prompt(150);
    let mut results = Vec::new();
    for count in [1, 2, 3] {
        let llama = Llama::from_gguf(&tiny::gguf(SEED), threads(count)).unwrap();
        for pass in [150, 97, 32, 7, 1] {
            let (mut kv, mut sequence) = room(&llama, KvOrder::TokenMajor, 16, 200);
            let mut done = Vec::new();
            let logits = llama
                .prefill(
                    &tokens,
                    threads(pass),
                    &mut sequence,
                    &mut kv,
                    &mut |tokens| done.push(tokens),
                )
                .unwrap();
            assert_eq!(done.last(), Some(&150));
            assert_eq!(done.len(), 150usize.div_ceil(pass));
            let next = continue_greedily(&llama, &logits, 20, &mut sequence, &mut kv);
            results.push((logits, next));
        }
    }
    assert!(results.iter().all(|result| *result == results[0]));
}

#[test]
fn both_orders_and_all_page_sizes_give_the_same_bits() {
    let (llama, tokens) = (model(), prompt(150));
    let mut results = Vec::new();
    for order in ORDERS {
        for page_size in [1, 3, 16, 40, 128, 256] {
            let (mut kv, mut sequence) = room(&llama, order, page_size, 200);
            let logits = llama.forward(&tokens, &mut sequence, &mut kv).unwrap();
            let next = continue_greedily(&llama, &logits, 20, &mut sequence, &mut kv);
            results.push((logits, next));
        }
    }
    assert!(results.iter().all(|result| *result == results[0]));
}

/// A small demonstration: keys and values move to a store of another order, page size and block
/// numbering, and the model continues with equal tokens.
#[test]
fn a_sequence_resumes_in_another_order() {
    let (llama, tokens) = (model(), prompt(90));
    let (mut kv, mut sequence) = room(&llama, KvOrder::TokenMajor, 16, 120);
    let logits = llama.forward(&tokens, &mut sequence, &mut kv).unwrap();
    let expected = continue_greedily(&llama, &logits, 20, &mut sequence, &mut kv);

    let (mut other, empty) = room(&llama, KvOrder::TransposedKeys, 32, 120);
    for layer in 0..llama.config().layers {
        for position in 0..89 {
            let (key, value) = token(&kv, &sequence, layer, position);
            let part = other
                .part_mut(layer, empty.block_ids()[position / 32])
                .unwrap();
            for index in 0..32 {
                let (head, element, slot) = (index / 16, index % 16, position % 32);
                part[head * 1024 + element * 32 + slot] = key[index];
                part[head * 1024 + 512 + slot * 16 + element] = value[index];
            }
        }
    }
    let mut resumed = Sequence::resume(empty.block_ids().to_vec(), 89, 32).unwrap();
    let logits = llama
        .forward(&tokens[89..], &mut resumed, &mut other)
        .unwrap();
    assert_eq!(
        continue_greedily(&llama, &logits, 20, &mut resumed, &mut other),
        expected
    );
}

#[test]
fn another_rope_base_is_another_model() {
    let tokens = prompt(40);
    let logits = [model(), model().with_rope_base(500_000.0)].map(|llama| {
        let (mut kv, mut sequence) = room(&llama, KvOrder::TokenMajor, 16, 48);
        llama.forward(&tokens, &mut sequence, &mut kv).unwrap()
    });
    assert_ne!(logits[0], logits[1]);
    assert_eq!(
        model().with_rope_base(500_000.0).facts().rope_base,
        500_000.0
    );
}

/// A call that cannot succeed writes nothing: the store keeps its bits.
#[test]
fn refused_calls_write_nothing() {
    let llama = model();
    let (mut kv, sequence) = room(&llama, KvOrder::TokenMajor, 16, 64);
    let untouched =
        |kv: &VecKv| (0..7).all(|block| kv.part(0, block).unwrap().iter().all(|x| x.is_nan()));
    let mut refuse = |tokens: &[u32], sequence: &Sequence| {
        let mut copy = sequence.clone();
        let error = llama.forward(tokens, &mut copy, &mut kv).unwrap_err();
        assert_eq!(copy, *sequence);
        assert!(untouched(&kv));
        error
    };
    assert!(matches!(refuse(&[], &sequence), DemoError::NoTokens));
    let error = refuse(&[5, 259], &sequence);
    assert!(matches!(
        error,
        DemoError::TokenUnknown {
            token: 259,
            vocabulary: 259
        }
    ));
    let error = refuse(&prompt(65), &sequence);
    assert!(matches!(
        error,
        DemoError::TooManyTokens {
            tokens: 65,
            limit: 64,
            what: "blocks"
        }
    ));
    let outside = Sequence::new(vec![0, 7]).unwrap();
    let error = refuse(&[1], &outside);
    assert!(matches!(
        error,
        DemoError::KvIndex {
            what: "block",
            index: 7,
            count: 7
        }
    ));
    let long = Sequence::new((0..5000).collect()).unwrap();
    let shape = llama.config().kv_shape(5000, 16);
    let error = llama
        .forward(&prompt(16_385), &mut long.clone(), &mut EmptyKv(shape))
        .unwrap_err();
    assert!(matches!(
        error,
        DemoError::TooManyTokens {
            limit: 16_384,
            what: "context",
            ..
        }
    ));
}

/// Pitfall 24: a store whose extents multiply to the same number of values is another store.
#[test]
fn stores_of_another_shape_are_refused() {
    let llama = model();
    let shape = llama.config().kv_shape(4, 16);
    for (field, shape) in [
        ("layers", KvShape { layers: 3, ..shape }),
        (
            "kv_heads",
            KvShape {
                kv_heads: 4,
                head_size: 8,
                ..shape
            },
        ),
        (
            "head_size",
            KvShape {
                head_size: 32,
                ..shape
            },
        ),
        (
            "page_size",
            KvShape {
                page_size: 0,
                ..shape
            },
        ),
        ("values of one part", shape),
    ] {
        let mut sequence = Sequence::new(vec![0]).unwrap();
        let error = llama
            .forward(&[1], &mut sequence, &mut EmptyKv(shape))
            .unwrap_err();
        assert!(
            matches!(&error, DemoError::KvShape { field: found, .. } if *found == field),
            "{error}"
        );
        assert!(sequence.is_empty());
    }
}

/// A store without blocks.
struct EmptyKv(KvShape);

impl KvView for EmptyKv {
    fn shape(&self) -> KvShape {
        self.0
    }

    fn order(&self) -> KvOrder {
        KvOrder::TokenMajor
    }

    fn part(&self, _: usize, _: usize) -> Result<&[f32], DemoError> {
        Ok(&[])
    }

    fn part_mut(&mut self, _: usize, _: usize) -> Result<&mut [f32], DemoError> {
        Ok(&mut [])
    }
}

#[test]
fn the_byte_tokenizer_round_trips_and_keeps_users_out_of_turns() {
    let bytes = tiny::gguf(SEED);
    let tokenizer = Tokenizer::from_gguf(&Gguf::parse(&bytes).unwrap()).unwrap();
    let text = "Grüße, 12 cats <|im_end|>\n\u{0}";
    let tokens = tokenizer.encode(text).unwrap();
    assert_eq!(tokens.len(), text.len());
    assert_eq!(tokenizer.decode(&tokens).unwrap(), text);
    let chat = tokenizer.encode_chat(Some("Be brief."), text).unwrap();
    assert_eq!(
        chat.iter()
            .filter(|token| **token == tokenizer.turn_end())
            .count(),
        2
    );
    let expected = format!(
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n"
    );
    assert_eq!(tokenizer.decode(&chat).unwrap(), expected);
    assert!(matches!(
        tokenizer.decode(&[259]),
        Err(DemoError::TokenUnknown { .. })
    ));
}
