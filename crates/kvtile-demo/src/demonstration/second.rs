//! The second process: it knows the model and the file, and continues.

use std::path::Path;
use std::time::Instant;

use kvtile::saved::SavedCache;

use super::model::{Loaded, PROMPT_NOTE};
use super::store::{Pool, RESUMED_ORDER};
use super::{
    AnswerReport, Event, OpenReport, RestoreReport, ResumeReport, ResumeRequest, generate,
};
use crate::DemoError;
use crate::kv::Sequence;

/// Loads the model, opens the file, restores its blocks into `L|BH(kCN,vNC)` and
/// continues: the last token of the prompt is computed, because logits are not stored;
/// the rest of the prefill is skipped.
///
/// # Errors
/// A file that is damaged or of another model, prompt or page size; blocks whose
/// checksum fails ([`DemoError::BlocksDamaged`]): nothing of them is used.
pub fn resume(
    request: &ResumeRequest,
    events: &mut dyn FnMut(Event),
) -> Result<ResumeReport, DemoError> {
    let model = Loaded::read(&request.model, request.threads)?;
    events(Event::Loaded(model.report.clone()));
    let page_size = request.page_size.get();
    let tokens = model
        .prompt
        .len()
        .saturating_add(request.answer_tokens.get());
    let pool = Pool::allocate(&model.llama, (tokens, page_size), RESUMED_ORDER)?;
    let allocate = pool.report.clone();
    events(Event::Allocated(allocate.clone()));

    let started = Instant::now();
    let (cache, open) = open(&model, &pool, &request.file)?;
    events(Event::Opened(open.clone()));
    // Not the blocks of the file in their order: a block table says where tokens are.
    let blocks: Vec<usize> = (0..pool.kv_shape.num_blocks).rev().collect();
    let restore = restore(&pool, &cache, &blocks)?;
    events(Event::Restored(restore.clone()));
    let computing = Instant::now();
    let mut kv = pool.kv()?;
    let Some((last, before)) = model.prompt.split_last() else {
        return Err(DemoError::NoTokens);
    };
    let mut sequence = Sequence::resume(blocks, before.len(), page_size)?;
    let first = model
        .llama
        .forward(&[*last], &mut sequence, &mut kv)?
        .greedy();
    let first_token_seconds = started.elapsed().as_secs_f64();
    let computed_tokens = 1;
    events(Event::Resumed {
        step_seconds: computing.elapsed().as_secs_f64(),
        seconds: first_token_seconds,
        computed_tokens,
    });
    let answer: AnswerReport = generate::answer(
        (&model.llama, &model.tokenizer),
        (first, request.answer_tokens.get()),
        &mut sequence,
        &mut kv,
        events,
    )?;
    events(Event::Answered(answer.clone()));
    Ok(ResumeReport {
        process_id: std::process::id(),
        model: model.report,
        allocate,
        open,
        restore,
        computed_tokens,
        first_token_seconds,
        answer,
    })
}

/// Opens the file: header, identity, prompt.
fn open(model: &Loaded, pool: &Pool, file: &Path) -> Result<(SavedCache, OpenReport), DemoError> {
    let started = Instant::now();
    let cache = SavedCache::open(file, &pool.identity)?;
    let header = cache.header();
    let expected = model.prompt_digest();
    let found = header.notes.get(PROMPT_NOTE).cloned().unwrap_or_default();
    let tokens = model.prompt.len();
    if found != expected || header.tokens != tokens as u64 {
        return Err(DemoError::PromptDiffers { expected, found });
    }
    let report = OpenReport {
        blocks: cache.num_blocks(),
        tokens,
        layout: header.word.to_string(),
        fingerprint: pool.identity.fingerprint().to_string(),
        seconds: started.elapsed().as_secs_f64(),
    };
    Ok((cache, report))
}

/// Brings all blocks of the file into memory, in the order of the attention: the first
/// to the first of `blocks`, and so on.
fn restore(pool: &Pool, cache: &SavedCache, blocks: &[usize]) -> Result<RestoreReport, DemoError> {
    let started = Instant::now();
    let targets = (0..cache.num_blocks()).zip(blocks.iter().copied());
    let pairs: Vec<(usize, usize)> = targets.collect();
    let checks = cache.load(&pool.manager, pool.handle, &pairs)?;
    let count = checks.len();
    let mut bad = checks.into_iter().filter_map(|check| check.result.err());
    if let Some(first) = bad.next() {
        return Err(DemoError::BlocksDamaged {
            damaged: 1 + bad.count(),
            blocks: count,
            first,
        });
    }
    Ok(RestoreReport {
        layout: RESUMED_ORDER.word().to_owned(),
        blocks: count,
        bytes: cache.header().shape.block_bytes()? * count as u64,
        seconds: started.elapsed().as_secs_f64(),
    })
}
