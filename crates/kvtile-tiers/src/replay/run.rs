//! The replay of a trace on a target.

use super::trace::{Trace, TraceRequest};
use crate::TierError;

/// A cache on which requests can be replayed.
pub trait ReplayTarget {
    /// Serves a request and returns how many of its leading blocks were cached before it. Uses or stores all
    /// its blocks, as far as there is room, and leaves none pinned.
    ///
    /// # Errors
    /// The cache's errors.
    fn request(&mut self, request: &TraceRequest<'_>) -> Result<usize, TierError>;
}

/// The totals of a replay.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ReplayTotals {
    /// Requests.
    pub requests: u64,
    /// References to blocks.
    pub blocks: u64,
    /// Leading blocks of requests that were cached before the request.
    pub hit_blocks: u64,
    /// Tokens of the prompts.
    pub tokens: u64,
    /// Prompt tokens in such blocks.
    pub hit_tokens: u64,
}

impl ReplayTotals {
    /// Adds a request with `hits` leading blocks that were cached.
    pub(super) fn count(&mut self, request: &TraceRequest<'_>, hits: usize, page_size: u32) {
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

    /// The part of all prompt tokens that were in hit blocks.
    #[must_use]
    pub fn token_hit_ratio(&self) -> f64 {
        self.hit_tokens as f64 / self.tokens.max(1) as f64
    }
}

/// Replays a trace. Calls `progress` after each request with the number of requests so far.
///
/// # Errors
/// The target's errors.
pub fn replay(
    trace: &Trace,
    target: &mut dyn ReplayTarget,
    progress: &mut dyn FnMut(u64),
) -> Result<ReplayTotals, TierError> {
    let mut totals = ReplayTotals::default();
    for request in trace.requests() {
        let hits = target.request(&request)?;
        totals.count(&request, hits, trace.page_size());
        progress(totals.requests);
    }
    Ok(totals)
}
