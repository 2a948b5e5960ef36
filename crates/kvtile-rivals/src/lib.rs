//! Block managers that other projects publish, as contenders of `kvtile bench blocks`.
//!
//! | module | what it is |
//! | --- | --- |
//! | `logical` | `kvbm-logical`, the block manager of NVIDIA Dynamo |
//!
//! They stand in a crate of their own because they bring many crates with them. The program is built with
//! it where its feature `rivals` is on, and nothing else is ever built with it. It measures nothing.

mod logical;

use kvtile_bench::blocks::MakeContender;

/// All rivals.
pub const RIVALS: [MakeContender; 2] = [logical::with_its_default, logical::with_lru];
