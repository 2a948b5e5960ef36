//! The dimensions of a Llama, read from GGUF metadata and checked.

use crate::DemoError;
use crate::gguf::Gguf;
use crate::kv::KvShape;

/// The largest value accepted for any dimension of a model.
const DIMENSION_MAX: u64 = 1 << 20;

/// Dimensions and constants of a Llama.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct LlamaConfig {
    /// Layers.
    pub layers: usize,
    /// Width of the residual stream, values.
    pub hidden: usize,
    /// Width of the feed-forward part, values.
    pub feed_forward: usize,
    /// Query heads.
    pub heads: usize,
    /// KV heads; divides `heads`.
    pub kv_heads: usize,
    /// Values of one head; even.
    pub head_size: usize,
    /// Tokens of the vocabulary.
    pub vocabulary: usize,
    /// Context length in tokens that the model was trained for.
    pub context: usize,
    /// Base of the rotary embedding's frequencies.
    pub rope_base: f32,
    /// The epsilon of the norms, added under the root.
    pub norm_epsilon: f32,
}

impl LlamaConfig {
    /// Reads the configuration of a `llama` model.
    ///
    /// # Errors
    /// [`DemoError::Unsupported`] for another architecture, scaled or partial rotary
    /// embeddings; [`DemoError::ConfigInvalid`] for dimensions that contradict one
    /// another; the metadata errors of [`Gguf`].
    pub fn from_gguf(file: &Gguf<'_>) -> Result<Self, DemoError> {
        refuse_unsupported(file)?;
        let heads = dimension(file, "heads", "llama.attention.head_count")?;
        let hidden = dimension(file, "hidden", "llama.embedding_length")?;
        let head_size = match file.find("llama.attention.key_length") {
            Some(_) => dimension(file, "head_size", "llama.attention.key_length")?,
            None => hidden / heads,
        };
        let kv_heads = match file.find("llama.attention.head_count_kv") {
            Some(_) => dimension(file, "kv_heads", "llama.attention.head_count_kv")?,
            None => heads,
        };
        let vocabulary = file.tensor("token_embd.weight")?.rows();
        let config = Self {
            layers: dimension(file, "layers", "llama.block_count")?,
            hidden,
            feed_forward: dimension(file, "feed_forward", "llama.feed_forward_length")?,
            heads,
            kv_heads,
            head_size,
            vocabulary,
            context: dimension(file, "context", "llama.context_length")?,
            rope_base: file
                .find("llama.rope.freq_base")
                .map_or(Ok(10_000.0), |_| file.float("llama.rope.freq_base"))?,
            norm_epsilon: file.float("llama.attention.layer_norm_rms_epsilon")?,
        };
        config.check(file)?;
        Ok(config)
    }

    fn check(&self, file: &Gguf<'_>) -> Result<(), DemoError> {
        let invalid = |field, value: usize, reason| {
            Err(DemoError::ConfigInvalid {
                field,
                value: value as u64,
                reason,
            })
        };
        if !self.heads.is_multiple_of(self.kv_heads) {
            return invalid(
                "kv_heads",
                self.kv_heads,
                "does not divide the number of heads",
            );
        }
        if self.head_size == 0 || !self.head_size.is_multiple_of(2) {
            return invalid("head_size", self.head_size, "is not a positive even number");
        }
        let rotated = file
            .find("llama.rope.dimension_count")
            .and_then(|value| value.as_u64());
        if rotated.is_some_and(|rotated| rotated != self.head_size as u64) {
            return invalid(
                "head_size",
                self.head_size,
                "differs from the rotated dimensions",
            );
        }
        if !self.rope_base.is_finite() || self.rope_base <= 1.0 {
            return Err(unsupported("llama.rope.freq_base", self.rope_base));
        }
        if !self.norm_epsilon.is_finite() || self.norm_epsilon < 0.0 {
            return Err(unsupported(
                "llama.attention.layer_norm_rms_epsilon",
                self.norm_epsilon,
            ));
        }
        Ok(())
    }

    /// Query heads that share one KV head.
    pub fn group(&self) -> usize {
        self.heads / self.kv_heads
    }

    /// Values of all query heads of a token.
    pub fn query_values(&self) -> usize {
        self.heads * self.head_size
    }

    /// Values of the keys (or of the values) of a token in one layer.
    pub fn kv_values(&self) -> usize {
        self.kv_heads * self.head_size
    }

    /// The shape of a KV store of this model.
    pub fn kv_shape(&self, num_blocks: usize, page_size: usize) -> KvShape {
        KvShape {
            layers: self.layers,
            num_blocks,
            page_size,
            kv_heads: self.kv_heads,
            head_size: self.head_size,
        }
    }
}

fn dimension(file: &Gguf<'_>, field: &'static str, key: &str) -> Result<usize, DemoError> {
    let value = file.unsigned(key)?;
    usize::try_from(value)
        .ok()
        .filter(|_| (1..=DIMENSION_MAX).contains(&value))
        .ok_or(DemoError::ConfigInvalid {
            field,
            value,
            reason: "is not in 1..=1048576",
        })
}

fn unsupported(key: &str, value: impl ToString) -> DemoError {
    DemoError::Unsupported {
        key: key.to_owned(),
        value: value.to_string(),
    }
}

fn refuse_unsupported(file: &Gguf<'_>) -> Result<(), DemoError> {
    let architecture = file.text("general.architecture")?;
    if architecture != "llama" {
        return Err(unsupported("general.architecture", architecture));
    }
    if let Some(scaling) = file
        .find("llama.rope.scaling.type")
        .and_then(|value| value.as_text())
        && scaling != "none"
    {
        return Err(unsupported("llama.rope.scaling.type", scaling));
    }
    let refused = file.tensors().map(|tensor| tensor.name).find(|name| {
        *name == "rope_freqs.weight" || name.ends_with(".bias") || name.contains("_exps")
    });
    refused.map_or(Ok(()), |name| Err(unsupported(name, "a tensor")))
}
