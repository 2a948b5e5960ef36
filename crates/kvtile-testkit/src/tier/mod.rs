//! Tiers for tests, and the suite that each implementation of the contract runs.
//!
//! | module | what it is |
//! | --- | --- |
//! | `memory` | a small, right tier in the memory of the process |
//! | `misbehaving` | a tier that breaks the contract on purpose, around any other one |
//! | `serving` | the right and wrong bytes that it serves |
//! | `host` | host memory to lease from, and blocks whose bytes follow from their names |
//! | `conformance` | the contract of [`kvtile_tiers::tier`], sentence by sentence |

pub mod conformance;
mod host;
mod memory;
mod misbehaving;
mod serving;

pub use host::{HostMemory, ReservedBlock, content};
pub use memory::MemoryTier;
pub use misbehaving::{Misbehaving, TierFaults};
