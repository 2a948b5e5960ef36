//! Replays of request traces: how often a cache would have had what was asked for.
//!
//! | module | what it is |
//! | --- | --- |
//! | `trace` | requests as they are published: JSON lines, checked |
//! | `generate` | generated requests: conversations, shared prompts, documents, scans |
//! | `service` | generated requests with the lengths, returns and pauses of a published trace |
//! | `dry` | a cache without bytes: the block pool alone |
//! | `real` | the cache itself, with bytes that are compared when they come back |
//! | `bound` | a cache without end, and the best that any cache could have done |
//! | `run` | a trace through a cache, and what is counted |
//!
//! A hit is a leading block of a request that is stored before the request; then all its blocks are
//! used, or stored, one after the other, and nothing stays in use. It measures policies and caches;
//! it does not know how they decide.

mod bound;
mod dry;
mod generate;
mod real;
mod run;
mod service;
mod trace;

pub use bound::{belady, infinite};
pub use dry::DryCache;
pub use generate::{Workload, generate};
pub use real::RealCache;
pub use run::{ReplayTarget, Totals, replay};
pub use trace::{Request, Trace, TraceError, TraceLimits};
