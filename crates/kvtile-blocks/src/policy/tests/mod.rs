//! Tests that every policy passes.

mod conformance;

use super::{EvictionPolicy, Hints, Insertion, PolicyKind, PolicySettings, Refusal, Visit};
use crate::{BlockId, BlockKey, Tick};
