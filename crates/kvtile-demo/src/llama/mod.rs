//! A Llama whose forward pass reads and writes its KV cache through a [`KvView`].
//!
//! Weights are dequantised to f32 at load. The engine keeps no state between calls: the blocks of
//! the view hold the keys and values of a sequence, and the [`Sequence`] names these blocks.

mod attention;
mod config;
mod facts;
mod forward;
mod logits;
mod weights;

use std::num::NonZeroUsize;

use sha2::{Digest, Sha256};

pub use config::LlamaConfig;
pub use facts::ModelFacts;
pub use logits::Logits;

use crate::DemoError;
use crate::gguf::Gguf;
use crate::kv::{KvView, Sequence};
use forward::ForwardPass;
use weights::Weights;

/// A model, ready to compute.
#[derive(Debug)]
pub struct Llama {
    config: LlamaConfig,
    facts: ModelFacts,
    weights: Weights,
    pool: rayon::ThreadPool,
}

impl Llama {
    /// Reads a model from the bytes of a GGUF file; it computes on `threads` threads.
    ///
    /// # Errors
    /// The errors of [`Gguf::parse`] and [`LlamaConfig::from_gguf`], tensors that are
    /// absent or of other extents, threads that cannot be started.
    pub fn from_gguf(bytes: &[u8], threads: NonZeroUsize) -> Result<Self, DemoError> {
        let file = Gguf::parse(bytes)?;
        let config = LlamaConfig::from_gguf(&file)?;
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads.get())
            .build()
            .map_err(|error| DemoError::Threads {
                threads: threads.get(),
                reason: error.to_string(),
            })?;
        let (weights, digest) = pool.join(
            || Weights::read(&file, &config),
            || crate::hash::hexadecimal(&Sha256::digest(bytes)),
        );
        let name = file
            .find("general.name")
            .and_then(|name| name.as_text())
            .unwrap_or("unnamed");
        let facts = ModelFacts::new(name, digest, &config);
        Ok(Self {
            config,
            facts,
            weights: weights?,
            pool,
        })
    }

    /// The same weights with another base of the rotary embedding. For keys it is another model.
    #[must_use]
    pub fn with_rope_base(mut self, rope_base: f32) -> Self {
        self.config.rope_base = rope_base;
        self.facts.rope_base = rope_base;
        self
    }

    /// The dimensions.
    pub fn config(&self) -> &LlamaConfig {
        &self.config
    }

    /// The identifying facts of the model.
    pub fn facts(&self) -> &ModelFacts {
        &self.facts
    }

    /// Computes `tokens` after those of `sequence`, writes their keys and values into `kv`, and
    /// returns the logits after the last of them.
    ///
    /// The result is the same, bit for bit, for any split of the tokens into calls, in either
    /// [`KvOrder`](crate::kv::KvOrder), and with any number of threads.
    ///
    /// # Errors
    /// Before the first write: no tokens, tokens outside the vocabulary, a view of another shape
    /// than the model, too few blocks or too long a context. An error of the view leaves the
    /// sequence unchanged; slots past its end may be overwritten.
    pub fn forward(
        &self,
        tokens: &[u32],
        sequence: &mut Sequence,
        kv: &mut dyn KvView,
    ) -> Result<Logits, DemoError> {
        self.check(tokens, sequence, kv)?;
        let pass = ForwardPass {
            config: &self.config,
            weights: &self.weights,
            sequence,
            tokens,
        };
        let logits = self.pool.install(|| pass.run(kv))?;
        sequence.advance(tokens.len());
        Ok(logits)
    }

    /// [`Llama::forward`] in passes of up to `pass_tokens` tokens. `progress` gets the number of
    /// completed tokens after each pass.
    ///
    /// # Errors
    /// As [`Llama::forward`]; the sequence holds the passes before the failed one.
    pub fn prefill(
        &self,
        tokens: &[u32],
        pass_tokens: NonZeroUsize,
        sequence: &mut Sequence,
        kv: &mut dyn KvView,
        progress: &mut dyn FnMut(usize),
    ) -> Result<Logits, DemoError> {
        self.check(tokens, sequence, kv)?;
        let mut logits = Err(DemoError::NoTokens);
        let mut done = 0;
        for pass in tokens.chunks(pass_tokens.get()) {
            logits = Ok(self.forward(pass, sequence, kv)?);
            done += pass.len();
            progress(done);
        }
        logits
    }

    fn check(&self, tokens: &[u32], sequence: &Sequence, kv: &dyn KvView) -> Result<(), DemoError> {
        let (config, shape) = (&self.config, kv.shape());
        if tokens.is_empty() {
            return Err(DemoError::NoTokens);
        }
        let vocabulary = config.vocabulary;
        let known = |token: &u32| usize::try_from(*token).is_ok_and(|token| token < vocabulary);
        if let Some(token) = tokens.iter().copied().find(|token| !known(token)) {
            return Err(DemoError::TokenUnknown { token, vocabulary });
        }
        for (field, expected, found) in [
            ("layers", config.layers, shape.layers),
            ("kv_heads", config.kv_heads, shape.kv_heads),
            ("head_size", config.head_size, shape.head_size),
            ("page_size", shape.page_size.max(1), shape.page_size),
        ] {
            if expected != found {
                return Err(DemoError::KvShape {
                    field,
                    expected,
                    found,
                });
            }
        }
        let count = shape.num_blocks;
        if let Some(index) = sequence
            .block_ids()
            .iter()
            .copied()
            .find(|block| *block >= count)
        {
            return Err(DemoError::KvIndex {
                what: "block",
                index,
                count,
            });
        }
        let after = sequence.len().saturating_add(tokens.len());
        if after > config.context {
            let limit = config.context;
            return Err(DemoError::TooManyTokens {
                tokens: after,
                limit,
                what: "context",
            });
        }
        sequence.check_room(after, shape.page_size)
    }
}
