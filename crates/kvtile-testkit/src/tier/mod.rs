//! Tiers for tests, and the conformance suite for every implementation of the contract.
//!
//! | module | content |
//! | --- | --- |
//! | `memory` | a small, correct tier in process memory |
//! | `misbehaving` | a wrapper around any tier that breaks the contract on purpose |
//! | `serving` | the right and wrong bytes that it returns |
//! | `host` | host memory to lease to tiers, and block contents derived from names |
//! | `conformance` | checks of each rule of the contract of [`kvtile_tiers::tier`] |

pub mod conformance;
mod host;
mod memory;
mod misbehaving;
mod serving;

pub use host::{HostMemory, ReservedBlock, content};
pub use memory::MemoryTier;
pub use misbehaving::{MisbehavingTier, TierFaults};
