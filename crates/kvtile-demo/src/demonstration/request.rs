//! A request: its prefix loaded from the cache or computed, the following tokens computed, and the
//! answer.

use std::num::NonZeroUsize;
use std::time::Instant;

use kvtile::blocks::events::TierId;
use kvtile::tiers::cache::LoadReport;

use super::engine::DemoEngine;
use super::model::LoadedModel;
use super::{
    AnswerReport, DemoEvent, PrefixPart, PrefixReport, RecomputeReport, RequestReport,
    ServedReport, generate,
};
use crate::DemoError;
use crate::kv::{KvView, Sequence};

/// Tokens per pass of the prefill; each pass ends with a progress event.
const PASS_TOKENS: usize = 192;

/// A request and the expected location of its prefix.
#[derive(Debug)]
pub(super) struct DemoRequest<'a> {
    /// Its number, starting at 1.
    pub(super) number: usize,
    /// The question.
    pub(super) question: &'a str,
    /// The whole prompt.
    pub(super) tokens: &'a [u32],
    /// Full blocks that it shares with other requests; fewer than its prompt has.
    pub(super) prefix_blocks: usize,
    /// The tier that must have these blocks; `None` where no request stored them yet.
    pub(super) tier: Option<TierId>,
    /// Tokens to answer.
    pub(super) answer_tokens: usize,
}

/// Full blocks that each prompt shares with earlier ones; for the first prompt, those that it
/// shares with all others. At least one token of a prompt must be computed, because logits are not
/// stored.
///
/// # Errors
/// [`DemoError::PrefixTooShort`] where a prompt shares less than one block.
pub(super) fn shared_blocks(
    prompts: &[Vec<u32>],
    page_size: usize,
) -> Result<Vec<usize>, DemoError> {
    let mut shared = Vec::with_capacity(prompts.len());
    for (index, prompt) in prompts.iter().enumerate() {
        let common = |other: &Vec<u32>| {
            let pairs = prompt.iter().zip(other);
            pairs.take_while(|(ours, theirs)| ours == theirs).count()
        };
        let tokens = match index {
            0 => prompts.iter().skip(1).map(common).min(),
            _ => prompts.iter().take(index).map(common).max(),
        };
        let tokens = tokens.unwrap_or(0).min(prompt.len().saturating_sub(1));
        if tokens < page_size {
            return Err(DemoError::PrefixTooShort { tokens, page_size });
        }
        shared.push(tokens / page_size);
    }
    Ok(shared)
}

/// Answers a request like an engine: looks up its prefix, loads it into the first of `blocks`,
/// computes the missing tokens, and answers.
pub(super) fn serve(
    engine: &DemoEngine,
    model: &LoadedModel,
    request: &DemoRequest<'_>,
    blocks: &[usize],
    events: &mut dyn FnMut(DemoEvent),
) -> Result<ServedReport, DemoError> {
    events(DemoEvent::Request {
        number: request.number,
        question: request.question.to_owned(),
        prompt_tokens: request.tokens.len(),
    });
    let started = Instant::now();
    let page_size = engine.kv_shape.page_size;
    let keys = engine.keys(request.tokens)?;
    // The last token must be computed, because its logits give the next token.
    let usable = request.tokens.len().saturating_sub(1) / page_size;
    let keys = keys.keys().get(..usable).unwrap_or_default();
    let expected = match request.tier {
        Some(tier) => (request.prefix_blocks, tier),
        None => (0, TierId::HOST),
    };
    let loaded = engine.load(request.number, keys, expected, blocks)?;
    let mut run = RequestRun::begin(engine, request, blocks, loaded.blocks)?;
    run.prefix(model, events)?;
    let prefix = prefix(engine, request, &loaded, started.elapsed().as_secs_f64());
    events(DemoEvent::Prefix(prefix.clone()));
    let first = run.rest(model, events)?;
    let first_token_seconds = started.elapsed().as_secs_f64();
    let rest_tokens = request.tokens.len() - prefix.all().tokens;
    events(DemoEvent::FirstToken {
        rest_tokens,
        seconds: first_token_seconds,
    });
    let answer = run.answer(model, first, events)?;
    events(DemoEvent::Answered(answer.clone()));
    Ok(ServedReport {
        number: request.number,
        process_id: std::process::id(),
        question: request.question.to_owned(),
        prompt_tokens: request.tokens.len(),
        prefix,
        rest_tokens,
        first_token_seconds,
        answer,
    })
}

/// Answers the same request from an empty sequence, without the cache. It forwards only the
/// progress events.
pub(super) fn recompute(
    engine: &DemoEngine,
    model: &LoadedModel,
    request: &DemoRequest<'_>,
    blocks: &[usize],
    events: &mut dyn FnMut(DemoEvent),
) -> Result<RecomputeReport, DemoError> {
    let events = &mut |event| {
        if matches!(event, DemoEvent::Prefilling { .. }) {
            events(event);
        }
    };
    let started = Instant::now();
    let mut run = RequestRun::begin(engine, request, blocks, 0)?;
    run.prefix(model, events)?;
    let prefix_seconds = started.elapsed().as_secs_f64();
    let first = run.rest(model, events)?;
    let first_token_seconds = started.elapsed().as_secs_f64();
    let answer = run.answer(model, first, events)?;
    Ok(RecomputeReport {
        prefix_seconds,
        first_token_seconds,
        answer,
    })
}

/// Compares a request with its run from an empty sequence.
///
/// # Errors
/// [`DemoError::TokensDiffer`], after the event.
pub(super) fn compare(
    served: ServedReport,
    recompute: RecomputeReport,
    events: &mut dyn FnMut(DemoEvent),
) -> Result<RequestReport, DemoError> {
    let (ours, theirs) = (&served.answer.tokens, &recompute.answer.tokens);
    let tokens_compared = ours.len().max(theirs.len());
    let first_difference = (0..tokens_compared).find(|at| ours.get(*at) != theirs.get(*at));
    let differs = first_difference.map(|index| DemoError::TokensDiffer {
        request: served.number,
        index,
        cached: ours.get(index).copied(),
        recomputed: theirs.get(index).copied(),
    });
    let report = RequestReport {
        saved_seconds: recompute.prefix_seconds - served.prefix.seconds,
        first_token_ratio: recompute.first_token_seconds / served.first_token_seconds.max(1e-9),
        tokens_compared,
        first_difference,
        served,
        recompute,
    };
    events(DemoEvent::Compared(Box::new(report.clone())));
    match differs {
        Some(error) => Err(error),
        None => Ok(report),
    }
}

/// A request without cached blocks, which is itself the run from an empty sequence.
pub(super) fn uncached(served: ServedReport) -> RequestReport {
    RequestReport {
        recompute: RecomputeReport {
            prefix_seconds: served.prefix.seconds,
            first_token_seconds: served.first_token_seconds,
            answer: served.answer.clone(),
        },
        served,
        saved_seconds: 0.0,
        first_token_ratio: 1.0,
        tokens_compared: 0,
        first_difference: None,
    }
}

fn prefix(
    engine: &DemoEngine,
    request: &DemoRequest<'_>,
    loaded: &LoadReport,
    seconds: f64,
) -> PrefixReport {
    let part = |blocks| PrefixPart::of(blocks, engine.kv_shape.page_size);
    PrefixReport {
        layout: engine.order.word().to_owned(),
        recomputed: part(request.prefix_blocks - loaded.blocks),
        host: part(loaded.from_host),
        disk: part(loaded.blocks_from(TierId::DISK)),
        bytes: request.prefix_blocks as u64 * engine.block_bytes(),
        seconds,
    }
}

/// A request in computation; it leases its blocks until it ends.
struct RequestRun<'a, K> {
    request: &'a DemoRequest<'a>,
    prefix_tokens: usize,
    sequence: Sequence,
    kv: K,
}

impl<'a> RequestRun<'a, super::BlockKv> {
    /// Begins a run whose first `loaded` blocks are loaded.
    fn begin(
        engine: &DemoEngine,
        request: &'a DemoRequest<'a>,
        blocks: &[usize],
        loaded: usize,
    ) -> Result<Self, DemoError> {
        let page_size = engine.kv_shape.page_size;
        Ok(Self {
            request,
            prefix_tokens: request.prefix_blocks * page_size,
            sequence: Sequence::resume(blocks.to_vec(), loaded * page_size, page_size)?,
            kv: engine.lease(blocks)?,
        })
    }
}

impl<K: KvView> RequestRun<'_, K> {
    /// Computes the missing tokens of the prefix.
    fn prefix(
        &mut self,
        model: &LoadedModel,
        events: &mut dyn FnMut(DemoEvent),
    ) -> Result<(), DemoError> {
        if self.sequence.len() < self.prefix_tokens {
            self.prefill(model, self.prefix_tokens, events)?;
        }
        Ok(())
    }

    /// Computes the tokens after the prefix, and returns the first token of the answer.
    fn rest(
        &mut self,
        model: &LoadedModel,
        events: &mut dyn FnMut(DemoEvent),
    ) -> Result<u32, DemoError> {
        self.prefill(model, self.request.tokens.len(), events)
    }

    /// Computes the prompt up to `end`, and returns the most likely next token.
    fn prefill(
        &mut self,
        model: &LoadedModel,
        end: usize,
        events: &mut dyn FnMut(DemoEvent),
    ) -> Result<u32, DemoError> {
        let start = self.sequence.len();
        let tokens = self.request.tokens.get(start..end).unwrap_or_default();
        let (sequence, kv) = (&mut self.sequence, &mut self.kv);
        let (llama, total) = (&model.llama, tokens.len());
        let pass = NonZeroUsize::new(PASS_TOKENS).unwrap_or(NonZeroUsize::MIN);
        let logits = llama.prefill(tokens, pass, sequence, kv, &mut |done| {
            events(DemoEvent::Prefilling { done, total });
        })?;
        Ok(logits.greedy())
    }

    fn answer(
        mut self,
        model: &LoadedModel,
        first: u32,
        events: &mut dyn FnMut(DemoEvent),
    ) -> Result<AnswerReport, DemoError> {
        let speaker = (&model.llama, &model.tokenizer);
        let count = self.request.answer_tokens;
        generate::answer(
            speaker,
            (first, count),
            &mut self.sequence,
            &mut self.kv,
            events,
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prompts_share_full_blocks_and_one_token_is_always_left() {
        let prompts = vec![
            vec![1, 2, 3, 4, 5, 6, 7],
            vec![1, 2, 3, 4, 5, 9],
            // After the prefix of all prompts, it continues like the second one, to its own end.
            vec![1, 2, 3, 4, 5, 9],
        ];
        assert_eq!(shared_blocks(&prompts, 1).unwrap(), [5, 5, 5]);
        assert_eq!(shared_blocks(&prompts, 2).unwrap(), [2, 2, 2]);
        assert_eq!(shared_blocks(&prompts, 5).unwrap(), [1, 1, 1]);
        assert!(matches!(
            shared_blocks(&prompts, 6),
            Err(DemoError::PrefixTooShort {
                tokens: 5,
                page_size: 6
            })
        ));
        let longer = vec![vec![1, 2, 7], vec![1, 2, 3, 4, 8], vec![1, 2, 3, 4, 9]];
        assert_eq!(shared_blocks(&longer, 2).unwrap(), [1, 1, 2]);
    }
}
