//! Tests that every policy passes.

mod conformance;

pub(super) use conformance::Random;

use super::{EvictionPolicy, Hints, Insertion, PolicyKind, PolicySettings, Refusal, Visit};
use crate::{BlockId, BlockKey, Tick};
