//! Queries to tiers that answer over a network, so that later lookups find their blocks.

use std::sync::Arc;

use kvtile_blocks::BlockKey;
use kvtile_transfer::completion::{Completer, Completion};

use super::{Parts, Priority, QueueLabel, below::GROUP, job::Work};
use crate::{
    error::{RequestError, TierError},
    tier::{Answer, Answers},
};

/// A query that waits in the queue.
struct Question {
    keys: Arc<[BlockKey]>,
    completer: Completer<Answer>,
}

/// Starts a query.
pub(super) fn start(inner: &Parts, keys: &[BlockKey]) -> Result<Completion<Answer>, TierError> {
    let is_later = |answers| answers == Answers::Later;
    let mut asked = inner.below.iter().map(|below| below.abilities.answers);
    if !asked.any(is_later) {
        return Ok(Completion::ended(0, Answer::of(leading(inner, keys))));
    }
    let completer = Completer::new(0, 0);
    let completion = completer.completion();
    let question = Question {
        keys: keys.into(),
        completer,
    };
    inner.queue(Priority::Normal, vec![Box::new(question)])?;
    Ok(completion)
}

impl Work<Parts> for Question {
    fn label(&self) -> QueueLabel {
        QueueLabel::Ask
    }

    fn run(self: Box<Self>, inner: &Parts) {
        let mut failure = None;
        // Starts all queries before it waits for the first, so that they overlap.
        let asked = inner.below.iter().filter(|below| {
            below.abilities.answers == Answers::Later && below.reads.allows(inner.clock.now())
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
        self.completer.finish(Answer {
            leading: leading(inner, &self.keys),
            failure,
        });
    }
}

impl Drop for Question {
    /// Completes a query that never ran as closed. After `run` this has no effect: the first
    /// completion counts.
    fn drop(&mut self) {
        self.completer.finish(Answer {
            leading: 0,
            failure: Some(TierError::Request(RequestError::Closed)),
        });
    }
}

/// How many leading blocks of `keys` are in host memory and the tiers, without pinning them.
fn leading(inner: &Parts, keys: &[BlockKey]) -> usize {
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
