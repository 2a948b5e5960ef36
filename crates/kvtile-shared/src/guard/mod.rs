//! What protects a cache from its store, and the store from its caches.
//!
//! | module | contents |
//! | --- | --- |
//! | `pace` | measured latency and throughput, and the limit of calls in flight that follows them |
//! | `breaker` | pauses after failures |

mod breaker;
mod pace;

pub(crate) use breaker::StoreBreaker;
pub use breaker::StoreBreakerState;
pub(crate) use pace::StorePace;
