//! The first process: prefill, answer, save; then compare and refuse.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::path::Path;
use std::time::Instant;

use kvtile::layout::{StridedLayout, Word};
use kvtile::saved::{SaveOptions, SavedCache, save};
use kvtile::transfer::TransferError;

use super::folder::RunFolder;
use super::model::{self, Loaded, PROMPT_NOTE, io};
use super::store::{self, ENGINE_ORDER, Pool};
use super::{
    AnswerReport, Comparison, DemoReport, Event, FirstReport, ModelFile, PrefillReport,
    PromptReport, Refusal, ResumeReport, ResumeRequest, SaveReport, Settings, generate,
};
use crate::DemoError;
use crate::kv::Sequence;

/// Tokens of one pass of the prefill: after each the caller hears of it.
const PASS_TOKENS: usize = 192;
/// Name of the saved cache in the run's folder.
const FILE: &str = "prompt.kvtile";
/// Name of the request to the second process, beside it.
const REQUEST: &str = "resume.json";
/// Bases of the rotary embedding that the model has not: the first that differs.
const OTHER_BASES: [f32; 2] = [10_000.0, 500_000.0];

/// The first process after it has saved: the model is still there, and the file.
#[derive(Debug)]
pub struct FirstProcess {
    model: Loaded,
    folder: RunFolder,
    request: ResumeRequest,
    report: FirstReport,
}

impl FirstProcess {
    /// Loads, prefills, answers and saves. What cannot work is refused before anything
    /// is computed.
    ///
    /// # Errors
    /// A model that cannot be had or read, a context or a store layout that does not
    /// fit, a file that cannot be written.
    pub fn run(settings: &Settings, events: &mut dyn FnMut(Event)) -> Result<Self, DemoError> {
        let (file, tiny_instead) = model::find(&settings.model, &settings.cache, events)?;
        let model = Loaded::read(&file, settings.threads)?;
        events(Event::Loaded(model.report.clone()));
        let prompt = fits(&model, settings)?;
        events(Event::Prompt(prompt.clone()));
        let folder = RunFolder::begin(&settings.cache, settings.keep)?;
        let path = folder.path().to_owned();
        events(Event::Folder { path });
        let request = request(settings, file, folder.path());

        let count = settings.answer_tokens.get();
        let needed = (prompt.tokens + count, prompt.page_size);
        let pool = Pool::allocate(&model.llama, needed, ENGINE_ORDER)?;
        let allocate = pool.report.clone();
        events(Event::Allocated(allocate.clone()));
        let (prefill, answer) = compute(&model, &pool, count, events)?;
        let save = save_prompt(&model, &pool, &settings.store_layout, &request.file)?;
        events(Event::Saved(save.clone()));
        if settings.keep {
            write_request(&request, folder.path())?;
        }
        let report = FirstReport {
            process_id: std::process::id(),
            tiny_instead,
            model: model.report.clone(),
            prompt,
            allocate,
            prefill,
            answer,
            save,
        };
        Ok(Self {
            model,
            folder,
            request,
            report,
        })
    }

    /// What the second process is to be told.
    pub fn request(&self) -> ResumeRequest {
        self.request.clone()
    }

    /// What was done so far.
    pub fn report(&self) -> &FirstReport {
        &self.report
    }

    /// Compares the second process with this one, shows the refusal, and removes the
    /// files unless they are to be kept.
    ///
    /// # Errors
    /// [`DemoError::TokensDiffer`], [`DemoError::NotRefused`], or files that cannot be
    /// read or removed.
    pub fn finish(
        self,
        second: ResumeReport,
        events: &mut dyn FnMut(Event),
    ) -> Result<DemoReport, DemoError> {
        let Self {
            model,
            folder,
            request,
            report,
        } = self;
        let comparison = compare(&report, &second);
        events(Event::Compared(comparison.clone()));
        if let Some(index) = comparison.first_difference {
            return Err(DemoError::TokensDiffer {
                index,
                first: report.answer.tokens.get(index).copied(),
                second: second.answer.tokens.get(index).copied(),
            });
        }
        let refusal = refuse(model, &report, &request.file)?;
        events(Event::Refused(refusal.clone()));
        Ok(DemoReport {
            first: report,
            second,
            comparison,
            refusal,
            kept: folder.finish()?,
        })
    }
}

/// The blocks that prompt and answer take; refused where they do not fit the context,
/// or the prompt's blocks not the layout of the file.
fn fits(model: &Loaded, settings: &Settings) -> Result<PromptReport, DemoError> {
    let (tokens, page_size) = (model.prompt.len(), settings.page_size.get());
    let config = model.llama.config();
    let all = tokens.saturating_add(settings.answer_tokens.get());
    if all > config.context {
        return Err(DemoError::TooManyTokens {
            tokens: all,
            limit: config.context,
            what: "context",
        });
    }
    let blocks = tokens.div_ceil(page_size);
    let shape = store::shape(config.kv_shape(blocks, page_size))?;
    let options = SaveOptions::new(store::identity(model.llama.facts(), &shape)?, 0)?;
    StridedLayout::resolve(&settings.store_layout, &shape, options.alignment)?;
    Ok(PromptReport {
        tokens,
        page_size,
        blocks,
        block_bytes: shape.block_bytes()?,
        bytes: shape.total_bytes()?,
    })
}

fn request(settings: &Settings, model: ModelFile, folder: &Path) -> ResumeRequest {
    ResumeRequest {
        model,
        file: folder.join(FILE),
        page_size: settings.page_size,
        answer_tokens: settings.answer_tokens,
        threads: settings.threads,
    }
}

fn write_request(request: &ResumeRequest, folder: &Path) -> Result<(), DemoError> {
    let path = folder.join(REQUEST);
    let text = serde_json::to_vec_pretty(request).map_err(DemoError::exchange)?;
    std::fs::write(&path, text).map_err(|source| io("write", &path, source))
}

/// Prefill and answer, the blocks in the engine's own order.
fn compute(
    model: &Loaded,
    pool: &Pool,
    count: usize,
    events: &mut dyn FnMut(Event),
) -> Result<(PrefillReport, AnswerReport), DemoError> {
    let started = Instant::now();
    let page_size = pool.kv_shape.page_size;
    let mut kv = pool.kv()?;
    let mut sequence = Sequence::new((0..pool.kv_shape.num_blocks).collect())?;
    let total = model.prompt.len();
    let pass = NonZeroUsize::new(PASS_TOKENS).unwrap_or(NonZeroUsize::MIN);
    let logits = model
        .llama
        .prefill(&model.prompt, pass, &mut sequence, &mut kv, &mut |done| {
            events(Event::Prefilling { done, total });
        })?;
    let first = logits.greedy();
    let shape = pool.kv_shape;
    let prefill = PrefillReport {
        layout: ENGINE_ORDER.word().to_owned(),
        tokens: total,
        bytes: (total * shape.layers * 2 * shape.token_values() * size_of::<f32>()) as u64,
        seconds: started.elapsed().as_secs_f64(),
    };
    events(Event::Prefilled(prefill.clone()));
    let speaker = (&model.llama, &model.tokenizer);
    let answer = generate::answer(speaker, (first, count), &mut sequence, &mut kv, events)?;
    events(Event::Answered(answer.clone()));
    // The file is to hold the prompt and nothing of the answer.
    if !total.is_multiple_of(page_size) {
        kv.clear_from(total / page_size, total % page_size)?;
    }
    Ok((prefill, answer))
}

/// Writes the prompt's blocks to a file in the order `word`.
fn save_prompt(
    model: &Loaded,
    pool: &Pool,
    word: &Word,
    path: &Path,
) -> Result<SaveReport, DemoError> {
    let started = Instant::now();
    let tokens = model.prompt.len();
    let blocks: Vec<usize> = (0..tokens.div_ceil(pool.kv_shape.page_size)).collect();
    let mut options = SaveOptions::new(pool.identity.clone(), tokens as u64)?;
    options.word = word.clone();
    options.notes = BTreeMap::from([(PROMPT_NOTE.to_owned(), model.prompt_digest())]);
    let done = save(&pool.manager, pool.handle, &blocks, path, &options)?;
    let seconds = started.elapsed().as_secs_f64();
    let metadata = std::fs::metadata(path).map_err(|source| io("look at", path, source))?;
    Ok(SaveReport {
        file: path.to_owned(),
        file_bytes: metadata.len(),
        layout: word.to_string(),
        blocks: blocks.len(),
        tokens,
        bytes: done.bytes,
        copy_seconds: done.elapsed.as_secs_f64(),
        seconds,
    })
}

fn compare(first: &FirstReport, second: &ResumeReport) -> Comparison {
    let (ours, theirs) = (&first.answer.tokens, &second.answer.tokens);
    let compared = ours.len().max(theirs.len());
    let first_difference = (0..compared).find(|index| ours.get(*index) != theirs.get(*index));
    let speed = |bytes: u64, seconds: f64| bytes as f64 / seconds.max(1e-9) / 1e9;
    let (cold, warm) = (first.prefill.seconds, second.first_token_seconds);
    Comparison {
        cold_seconds: cold,
        warm_seconds: warm,
        ratio: cold / warm.max(1e-9),
        saved_bytes: first.save.bytes,
        save_gb_per_second: speed(first.save.bytes, first.save.seconds),
        restored_bytes: second.restore.bytes,
        restore_gb_per_second: speed(second.restore.bytes, second.restore.seconds),
        tokens_compared: compared,
        tokens_equal: first_difference.is_none(),
        first_difference,
    }
}

/// Opens the file for the same model with another base of the rotary embedding.
fn refuse(model: Loaded, report: &FirstReport, file: &Path) -> Result<Refusal, DemoError> {
    let own = model.llama.facts().rope_base;
    let [base, second] = OTHER_BASES;
    let base = if own == base { second } else { base };
    let other = model.llama.with_rope_base(base);
    let prompt = &report.prompt;
    let shape = store::shape(other.config().kv_shape(prompt.blocks, prompt.page_size))?;
    let identity = store::identity(other.facts(), &shape)?;
    let not_refused = DemoError::NotRefused { rope_base: base };
    let error = SavedCache::open(file, &identity).err().ok_or(not_refused)?;
    let message = error.to_string();
    match error {
        TransferError::IdentityDiffers(difference) => Ok(Refusal {
            field: difference.field,
            asked: difference.ours,
            stored: difference.theirs,
            message,
        }),
        error => Err(error.into()),
    }
}
