//! Tests that every policy passes.

mod conformance;

use super::{EvictionPolicy, Hints, Insertion, Offer, PolicyKind, PolicySettings, Visit};
use crate::{BlockId, BlockKey, Tick};
