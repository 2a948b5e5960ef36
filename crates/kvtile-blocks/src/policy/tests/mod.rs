//! Tests that every policy passes.

mod conformance;

use super::{
    EvictionHints, EvictionPolicy, EvictionRefusal, Insertion, PolicyKind, PolicySettings, Visit,
};
use crate::{BlockId, BlockKey, Tick};
