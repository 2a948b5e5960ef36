//! A small Llama on the CPU whose KV cache lives in kvtile blocks, for the
//! demonstration and its tests.
//!
//! The crate holds a whole inference engine in little: fetching a model
//! ([`fetch`]), reading its file ([`gguf`]), its tokenizer ([`tokenizer`]), its
//! forward pass ([`llama`]) and a seeded miniature for machines without network
//! ([`tiny`]). What it does not hold is the KV cache: that belongs to the caller,
//! and the model reaches it through [`kv::KvView`].
//!
//! Nothing here reads the environment.

mod compute;
mod error;
mod hash;

pub mod fetch;
pub mod gguf;
pub mod kv;
pub mod llama;
pub mod prompt;
pub mod tiny;
pub mod tokenizer;

pub use error::DemoError;
