//! A miniature Llama with seeded random weights.
//!
//! It replaces the real model where that cannot be fetched, and in tests: the same file format, the
//! same tokenizer (one token per byte, no merges), the same code from the first byte to the last
//! token. It has learned nothing, so its answers are noise; its name states that.

mod writer;

use crate::tokenizer::bytes::alphabet;
use kvtile_random::SplitMix64;
use writer::GgufWriter;

/// The name of the miniature in its own file.
pub const NAME: &str = "tiny Llama with random weights (no real model)";

const LAYERS: u32 = 4;
const HIDDEN: usize = 64;
const HEADS: usize = 4;
const KV_HEADS: usize = 2;
const HEAD_SIZE: usize = 16;
const FEED_FORWARD: usize = 128;
const CONTEXT: u32 = 16_384;
const CONTROL_TOKENS: [&str; 3] = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"];

/// The miniature as the bytes of a GGUF file: 4 layers, hidden size 64, 4 heads, 2 KV
/// heads of 16, 259 tokens. Equal seeds give equal bytes, everywhere.
pub fn gguf(seed: u64) -> Vec<u8> {
    let mut file = GgufWriter::default();
    write_metadata(&mut file, seed);
    let mut random = SplitMix64::new(seed);
    write_embedding(&mut file, &mut random);
    for layer in 0..LAYERS {
        let (queries, kv) = (HEADS * HEAD_SIZE, KV_HEADS * HEAD_SIZE);
        for (part, inner, rows) in [
            ("attn_q", HIDDEN, queries),
            ("attn_k", HIDDEN, kv),
            ("attn_v", HIDDEN, kv),
            ("attn_output", queries, HIDDEN),
            ("ffn_gate", HIDDEN, FEED_FORWARD),
            ("ffn_up", HIDDEN, FEED_FORWARD),
            ("ffn_down", FEED_FORWARD, HIDDEN),
        ] {
            let reach = 2.5 / (inner as f32).sqrt();
            let values = (0..inner * rows).map(|_| within(&mut random, reach));
            file.tensor(
                &format!("blk.{layer}.{part}.weight"),
                &[inner, rows],
                values,
            );
        }
        for part in ["attn_norm", "ffn_norm"] {
            let values = (0..HIDDEN).map(|_| 1.0 + within(&mut random, 0.2));
            file.tensor(&format!("blk.{layer}.{part}.weight"), &[HIDDEN], values);
        }
    }
    file.tensor(
        "output_norm.weight",
        &[HIDDEN],
        (0..HIDDEN).map(|_| 1.0 + within(&mut random, 0.2)),
    );
    file.finish()
}

fn write_metadata(file: &mut GgufWriter, seed: u64) {
    file.text("general.architecture", "llama");
    file.text("general.name", &format!("{NAME}, seed {seed}"));
    for (key, value) in [
        ("llama.block_count", LAYERS),
        ("llama.context_length", CONTEXT),
        ("llama.embedding_length", as_u32(HIDDEN)),
        ("llama.feed_forward_length", as_u32(FEED_FORWARD)),
        ("llama.attention.head_count", as_u32(HEADS)),
        ("llama.attention.head_count_kv", as_u32(KV_HEADS)),
        ("llama.rope.dimension_count", as_u32(HEAD_SIZE)),
    ] {
        file.unsigned(key, value);
    }
    file.float("llama.rope.freq_base", 10_000.0);
    file.float("llama.attention.layer_norm_rms_epsilon", 1e-5);
    file.text("tokenizer.ggml.model", "gpt2");
    file.text("tokenizer.ggml.pre", "smollm");
    let bytes = alphabet()
        .iter()
        .map(ToString::to_string)
        .collect::<Vec<_>>();
    let control = CONTROL_TOKENS.map(str::to_owned);
    file.texts("tokenizer.ggml.tokens", &[bytes, control.to_vec()].concat());
    file.integers(
        "tokenizer.ggml.token_type",
        &[vec![1; 256], vec![3; CONTROL_TOKENS.len()]].concat(),
    );
    file.texts("tokenizer.ggml.merges", &[]);
}

/// The embedding, tied to the output: letters and spaces have longer vectors than other tokens, so
/// that the noise is mostly readable and seldom ends a turn.
fn write_embedding(file: &mut GgufWriter, random: &mut SplitMix64) {
    let tokens = 256 + CONTROL_TOKENS.len();
    let values = (0..tokens * HIDDEN).map(|index| {
        let byte = u8::try_from(index / HIDDEN).unwrap_or(0);
        let readable = byte.is_ascii_lowercase() || byte == b' ';
        within(random, if readable { 1.0 } else { 0.2 })
    });
    file.tensor("token_embd.weight", &[HIDDEN, tokens], values);
}

fn as_u32(value: usize) -> u32 {
    u32::try_from(value).unwrap_or(u32::MAX)
}

/// Uniform in `-reach..reach`.
fn within(random: &mut SplitMix64, reach: f32) -> f32 {
    let fraction = (random.any() >> 40) as f32 / (1u64 << 24) as f32;
    (2.0 * fraction - 1.0) * reach
}
