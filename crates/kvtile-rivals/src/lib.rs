//! Block managers that other projects publish, as contenders of `kvtile bench blocks`.
//!
//! | module | content |
//! | --- | --- |
//! | `logical` | `kvbm-logical`, the block manager of NVIDIA Dynamo |
//!
//! The rivals are a crate of their own because they bring many dependencies. Only the program
//! depends on it, and only with its feature `rivals`. It measures nothing.

mod logical;

use kvtile_bench::blocks::MakeContender;

/// All rivals.
pub const RIVALS: [MakeContender; 2] = [logical::with_its_default, logical::with_lru];
