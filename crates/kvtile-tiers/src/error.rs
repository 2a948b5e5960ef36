//! What can go wrong in a tier.

use thiserror::Error;

/// Why a tier refused something. Every message names the values and what to do.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum TierError {}
