//! A small Llama on the CPU whose KV cache lives in kvtile blocks, for the
//! demonstration and its tests.
//!
//! The crate contains a small inference engine: it fetches a model ([`fetch`]), reads its file
//! ([`gguf`]) and its tokenizer ([`tokenizer`]), runs its forward pass ([`llama`]), and has a
//! seeded miniature for machines without network ([`tiny`]). The engine does not own the KV cache:
//! the caller does, and the model accesses it through [`kv::KvView`]. The demonstration itself
//! ([`demonstration`]) keeps it in kvtile blocks behind a cache, and loads it again from memory
//! and, after a restart, from disk into another layout.
//!
//! This crate does not read the environment.
//!
//! ```
//! use kvtile_demo::{
//!     gguf::Gguf,
//!     kv::{KvOrder, Sequence, VecKv},
//!     llama::Llama,
//!     tiny,
//!     tokenizer::Tokenizer,
//! };
//!
//! let file = tiny::gguf(1);
//! let tokenizer = Tokenizer::from_gguf(&Gguf::parse(&file)?)?;
//! let llama = Llama::from_gguf(&file, std::num::NonZeroUsize::MIN)?;
//! // 4 blocks of 16 tokens in the order of vLLM's CPU backend, owned by the caller.
//! let mut kv = VecKv::new(llama.config().kv_shape(4, 16), KvOrder::TransposedKeys);
//! let mut sequence = Sequence::new(vec![2, 0, 3, 1])?;
//! let tokens = tokenizer.encode("Once upon a time")?;
//! let next = llama.forward(&tokens, &mut sequence, &mut kv)?.greedy();
//! let after = llama.forward(&[next], &mut sequence, &mut kv)?.greedy();
//! assert_eq!(sequence.len(), 17);
//! println!("{}", tokenizer.decode(&[next, after])?);
//! # Ok::<(), kvtile_demo::DemoError>(())
//! ```

mod compute;
mod error;
mod hash;

pub mod demonstration;
pub mod fetch;
pub mod gguf;
pub mod kv;
pub mod llama;
pub mod prompt;
pub mod tiny;
pub mod tokenizer;

pub use error::DemoError;
