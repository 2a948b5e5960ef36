//! The identity of a model, for stores of its keys and values.

use super::LlamaConfig;

/// The facts of a model that define the meaning of its keys and values.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct ModelFacts {
    /// The model's own name.
    pub name: String,
    /// SHA-256 of the weights file, hexadecimal: its revision.
    pub weights_sha256: String,
    /// Layers.
    pub layers: usize,
    /// Query heads.
    pub heads: usize,
    /// KV heads.
    pub kv_heads: usize,
    /// Values of one head.
    pub head_size: usize,
    /// Base of the rotary embedding's frequencies.
    pub rope_base: f32,
    /// Which elements of a head are rotated together.
    pub rope_pairs: &'static str,
    /// Element type of keys and values.
    pub kv_dtype: &'static str,
}

impl ModelFacts {
    pub(super) fn new(name: &str, weights_sha256: String, config: &LlamaConfig) -> Self {
        Self {
            name: name.to_owned(),
            weights_sha256,
            layers: config.layers,
            heads: config.heads,
            kv_heads: config.kv_heads,
            head_size: config.head_size,
            rope_base: config.rope_base,
            rope_pairs: "halves",
            kv_dtype: "f32",
        }
    }
}
