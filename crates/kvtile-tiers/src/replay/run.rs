//! A trace through a cache.

use super::trace::{Request, Trace};
use crate::TierError;

/// A cache that requests can be replayed on.
pub trait ReplayTarget {
    /// Serves a request: how many of its leading blocks were stored before it. Afterwards all its
    /// blocks were used or stored, as far as there is room, and none is in use.
    ///
    /// # Errors
    /// What the cache says.
    fn request(&mut self, request: &Request<'_>) -> Result<usize, TierError>;
}

/// What a replay counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Requests.
    pub requests: u64,
    /// References to blocks.
    pub blocks: u64,
    /// Of these, leading ones that were stored.
    pub hit_blocks: u64,
    /// Tokens of the prompts.
    pub tokens: u64,
    /// Of these, in blocks that were stored.
    pub hit_tokens: u64,
}

impl Totals {
    /// Adds a request of which so many leading blocks were stored.
    pub(super) fn count(&mut self, request: &Request<'_>, hits: usize, page_size: u32) {
        let tokens = u64::from(request.input_tokens);
        self.requests += 1;
        self.blocks += request.blocks.len() as u64;
        self.hit_blocks += hits as u64;
        self.tokens += tokens;
        self.hit_tokens += (hits as u64 * u64::from(page_size)).min(tokens);
    }

    /// The part of all references that were hits.
    #[must_use]
    pub fn block_hit_ratio(&self) -> f64 {
        self.hit_blocks as f64 / self.blocks.max(1) as f64
    }

    /// The part of all tokens of prompts that were in blocks that were hit.
    #[must_use]
    pub fn token_hit_ratio(&self) -> f64 {
        self.hit_tokens as f64 / self.tokens.max(1) as f64
    }
}

/// Replays a trace; `progress` hears the number of requests that are done.
///
/// # Errors
/// What the cache says.
pub fn replay(
    trace: &Trace,
    target: &mut dyn ReplayTarget,
    progress: &mut dyn FnMut(u64),
) -> Result<Totals, TierError> {
    let mut totals = Totals::default();
    for request in trace.requests() {
        let hits = target.request(&request)?;
        totals.count(&request, hits, trace.page_size());
        progress(totals.requests);
    }
    Ok(totals)
}
