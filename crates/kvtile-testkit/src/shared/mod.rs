//! The conformance suite of stores that many caches share, and a store that misbehaves by a seed.
//!
//! | module | content |
//! | --- | --- |
//! | `store` | the rules of [`kvtile_shared::store`], for one store |
//! | `above` | the guarantees of a tier over the store: damage, sweeps, closing, several caches |
//! | `tier` | tiers over a store with host memory, for these checks |
//! | `simulated` | a wrapper around any store that misbehaves |

mod above;
mod simulated;
mod store;
mod tier;

pub use above::check_above_store;
pub use simulated::{SimulatedStore, StoreFaults};
pub use store::{OpenStoreAt, check_store};
pub use tier::{SharedTierRig, chain_link};
