//! Queries to tiers that answer over a network, so that later lookups find their blocks.

use std::sync::Arc;

use kvtile_blocks::BlockKey;
use kvtile_transfer::completion::{Completer, Completion};

use super::{CacheParts, Priority, QueueLabel, below::GROUP, job::CacheJob};
use crate::{
    error::{RequestError, TierError},
    tier::{AnswerTime, TierAnswer},
};

/// A query that waits in the queue.
struct TierQuery {
    keys: Arc<[BlockKey]>,
    completer: Completer<TierAnswer>,
}

/// Starts a query.
pub(super) fn start(
    inner: &CacheParts,
    keys: &[BlockKey],
) -> Result<Completion<TierAnswer>, TierError> {
    let is_later = |answers| answers == AnswerTime::Later;
    let mut asked = inner.below.iter().map(|below| below.abilities.answers);
    if !asked.any(is_later) {
        return Ok(Completion::ended(0, TierAnswer::of(leading(inner, keys))));
    }
    let completer = Completer::new(0, 0);
    let completion = completer.completion();
    let question = TierQuery {
        keys: keys.into(),
        completer,
    };
    inner.queue(Priority::Normal, vec![Box::new(question)])?;
    Ok(completion)
}

impl CacheJob<CacheParts> for TierQuery {
    fn label(&self) -> QueueLabel {
        QueueLabel::Ask
    }

    fn run(self: Box<Self>, inner: &CacheParts) {
        let mut failure = None;
        // Starts all queries before it waits for the first, so that they overlap.
        let asked = inner.below.iter().filter(|below| {
            below.abilities.answers == AnswerTime::Later && below.reads.allows(inner.clock.now())
        });
        let asked: Vec<_> = asked
            .map(|below| (below, below.tier.ask(GROUP, &self.keys)))
            .collect();
        for (below, answer) in asked {
            match below.answer(&answer) {
                Ok(answer) => {
                    below.reads.succeeded(inner.clock.now());
                    failure = failure.or(answer.failure);
                }
                Err(error) => {
                    below.reads.failed(inner.clock.now(), &error);
                    failure = failure.or(Some(error));
                }
            }
        }
        self.completer.finish(TierAnswer {
            leading: leading(inner, &self.keys),
            failure,
        });
    }
}

impl Drop for TierQuery {
    /// Completes a query that never ran as closed. After `run` this has no effect: the first
    /// completion counts.
    fn drop(&mut self) {
        self.completer.finish(TierAnswer {
            leading: 0,
            failure: Some(TierError::Request(RequestError::Closed)),
        });
    }
}

/// How many leading blocks of `keys` are in host memory and the tiers, without pinning them.
fn leading(inner: &CacheParts, keys: &[BlockKey]) -> usize {
    let mut at = 0;
    loop {
        let before = at;
        let (_, rest) = keys.split_at(at);
        at += inner.host.pool.peek(rest);
        for below in &inner.below {
            let (_, rest) = keys.split_at(at);
            at += below
                .hold(rest)
                .map_or(0, |hold| hold.blocks().min(rest.len()));
        }
        if at == before || at == keys.len() {
            return at;
        }
    }
}
