//! The first process: it computes and stores one request, and answers a second one with its prefix
//! from host memory. Later it compares with the second process and shows the refusal.

use std::num::NonZeroUsize;
use std::ops::Range;
use std::path::Path;

use kvtile::blocks::events::TierId;
use kvtile::layout::StridedLayout;
use kvtile::tiers::{MismatchError, TierError};

use super::engine::{DemoEngine, SLOT_ALIGNMENT};
use super::folder::RunFolder;
use super::model::{self, LoadedModel, io};
use super::request::{self, DemoRequest};
use super::store::{self, ENGINE_ORDER, EngineBlocks};
use super::{
    DemoEvent, DemoReport, DemoSettings, FirstReport, FolderRefusal, ModelFile, PromptReport,
    RecomputeReport, RequestReport, ResumeReport, ResumeRequest, StoreSettings, StoredReport,
};
use crate::DemoError;
use crate::prompt::{self, QUESTIONS};

/// Name of the disk tier in the run's folder.
const FOLDER: &str = "cache";
/// Name of the request to the second process, beside it.
const REQUEST: &str = "resume.json";
/// Candidates for another base of the rotary embedding: the first that differs from the model's.
const OTHER_BASES: [f32; 2] = [10_000.0, 500_000.0];

/// The first process after it closed its cache: the model and the folder remain.
#[derive(Debug)]
pub struct FirstProcess {
    model: LoadedModel,
    folder: RunFolder,
    request: ResumeRequest,
    report: FirstReport,
    requests: [RequestReport; 2],
    /// The request of the second process, computed without the cache.
    expected: RecomputeReport,
}

impl FirstProcess {
    /// Loads the model, answers two requests, computes the third answer for comparison, flushes the
    /// stored blocks to disk, and closes the cache. It refuses invalid settings before it computes.
    ///
    /// # Errors
    /// A model that is not available or not readable; a context, a page size or a store layout that
    /// does not fit; a prefix in the wrong tier; an answer that differs; a failed flush.
    pub fn run(
        settings: &DemoSettings,
        events: &mut dyn FnMut(DemoEvent),
    ) -> Result<Self, DemoError> {
        let (file, tiny_instead) = model::find(&settings.model, &settings.cache, events)?;
        let model = LoadedModel::read(&file, settings.threads)?;
        events(DemoEvent::Loaded(model.report.clone()));
        let prompts = Prompts::fitting(&model, settings)?;
        events(DemoEvent::Prompt(prompts.report.clone()));
        let folder = RunFolder::begin(&settings.cache, settings.keep)?;
        let path = folder.path().to_owned();
        events(DemoEvent::Folder { path });

        let blocks = (2 * prompts.needed_blocks, prompts.report.page_size);
        let blocks = EngineBlocks::allocate(&model.llama, blocks, ENGINE_ORDER)?;
        let allocate = blocks.report.clone();
        events(DemoEvent::Allocated(allocate.clone()));
        let request = prompts.resume_request(settings, file, folder.path())?;
        let (engine, open) = DemoEngine::open(blocks, &request.store)?;
        events(DemoEvent::Opened(open.clone()));
        let done = answer(&engine, &model, &prompts, events)?;
        let flushed = engine.flush(&request.store.folder)?;
        events(DemoEvent::Flushed(flushed.clone()));
        if settings.keep {
            write_request(&request, folder.path())?;
        }
        let report = FirstReport {
            process_id: std::process::id(),
            tiny_instead,
            model: model.report.clone(),
            prompt: prompts.report,
            allocate,
            open,
            stored: done.stored,
            flushed,
        };
        Ok(Self {
            model,
            folder,
            request,
            report,
            requests: done.requests,
            expected: done.expected,
        })
    }

    /// The request to the second process.
    pub fn request(&self) -> ResumeRequest {
        self.request.clone()
    }

    /// The report of the first process.
    pub fn report(&self) -> &FirstReport {
        &self.report
    }

    /// Compares the second process's answer, shows the refusal, and removes the files unless the
    /// settings keep them.
    ///
    /// # Errors
    /// [`DemoError::TokensDiffer`], [`DemoError::NotRefused`], or files that cannot be
    /// read or removed.
    pub fn finish(
        self,
        resumed: ResumeReport,
        events: &mut dyn FnMut(DemoEvent),
    ) -> Result<DemoReport, DemoError> {
        let [one, two] = self.requests;
        let three = request::compare(resumed.request, self.expected, events)?;
        let requests = [one, two, three];
        let refusal = refuse(self.model, &self.report, &self.request.store)?;
        events(DemoEvent::Refused(refusal.clone()));
        Ok(DemoReport {
            first: self.report,
            second: resumed.second,
            tokens_compared: requests.iter().map(|one| one.tokens_compared).sum(),
            tokens_equal: requests.iter().all(|one| one.first_difference.is_none()),
            requests,
            refusal,
            kept: self.folder.finish()?,
        })
    }
}

/// The prompts as tokens, and their blocks.
struct Prompts {
    tokens: Vec<Vec<u32>>,
    /// Full blocks that each prompt shares with earlier ones.
    shared: Vec<usize>,
    /// Blocks of the longest prompt with its answer.
    needed_blocks: usize,
    answer_tokens: usize,
    report: PromptReport,
}

impl Prompts {
    /// Tokenises the prompts. Refuses prompts that exceed the context or share no block, and blocks
    /// that do not fit the layout of the store.
    fn fitting(model: &LoadedModel, settings: &DemoSettings) -> Result<Self, DemoError> {
        let page_size = settings.page_size.get();
        let message = |question: &&str| model.tokens(&prompt::message(question));
        let tokens: Vec<Vec<u32>> = QUESTIONS.iter().map(message).collect::<Result<_, _>>()?;
        let config = model.llama.config();
        let longest = tokens.iter().map(Vec::len).max().unwrap_or(0);
        let all = longest.saturating_add(settings.answer_tokens.get());
        if all > config.context {
            return Err(DemoError::TooManyTokens {
                tokens: all,
                limit: config.context,
                what: "context",
            });
        }
        let shared = request::shared_blocks(&tokens, page_size)?;
        let prefix_blocks = shared.first().copied().unwrap_or(0);
        let shape = store::shape(config.kv_shape(prefix_blocks, page_size))?;
        StridedLayout::resolve(&settings.store_layout, &shape, SLOT_ALIGNMENT)?;
        let report = PromptReport {
            tokens: tokens.iter().map(Vec::len).collect(),
            page_size,
            prefix_blocks,
            prefix_tokens: prefix_blocks * page_size,
            block_bytes: shape.block_bytes()?,
            prefix_bytes: shape.total_bytes()?,
        };
        Ok(Self {
            tokens,
            shared,
            needed_blocks: all.div_ceil(page_size),
            answer_tokens: settings.answer_tokens.get(),
            report,
        })
    }

    /// Request `index`, whose prefix must be in `tier`.
    fn request(&self, index: usize, tier: Option<TierId>) -> DemoRequest<'_> {
        DemoRequest {
            number: index + 1,
            question: QUESTIONS.get(index).copied().unwrap_or_default(),
            tokens: self.tokens.get(index).map_or(&[], Vec::as_slice),
            prefix_blocks: self.shared.get(index).copied().unwrap_or(0),
            tier,
            answer_tokens: self.answer_tokens,
        }
    }

    /// The last request, for the second process.
    fn resume_request(
        &self,
        settings: &DemoSettings,
        model: ModelFile,
        folder: &Path,
    ) -> Result<ResumeRequest, DemoError> {
        let last = self.request(QUESTIONS.len() - 1, Some(TierId::DISK));
        let page_size = settings.page_size;
        // Prompts store a shared prefix once.
        let stored = |(index, prompt): (usize, &Vec<u32>)| match (index, self.shared.get(index)) {
            (1.., Some(shared)) => prompt.len() / page_size - shared,
            _ => prompt.len() / page_size,
        };
        let distinct: usize = self.tokens.iter().enumerate().map(stored).sum();
        let store = StoreSettings {
            folder: folder.join(FOLDER),
            layout: settings.store_layout.clone(),
            page_size,
            blocks: NonZeroUsize::new(distinct).ok_or(DemoError::NoTokens)?,
        };
        Ok(ResumeRequest {
            model,
            store,
            number: last.number,
            question: last.question.to_owned(),
            prompt: prompt::message(last.question),
            prefix_blocks: last.prefix_blocks,
            answer_tokens: settings.answer_tokens,
            threads: settings.threads,
        })
    }
}

/// The answers of the first process.
struct FirstAnswers {
    requests: [RequestReport; 2],
    stored: [StoredReport; 2],
    expected: RecomputeReport,
}

/// Answers two requests with the cache, and the last two without it.
fn answer(
    engine: &DemoEngine,
    model: &LoadedModel,
    prompts: &Prompts,
    events: &mut dyn FnMut(DemoEvent),
) -> Result<FirstAnswers, DemoError> {
    let half = prompts.needed_blocks;
    let blocks = |range: Range<usize>| -> Vec<usize> { range.collect() };
    let low = blocks(0..half);
    // Other blocks than those of the first request, in another order: correct contents can only
    // come from the cache.
    let mut high = blocks(half..2 * half);
    high.reverse();

    let first = prompts.request(0, None);
    let served = request::serve(engine, model, &first, &low, events)?;
    let all_stored = keep(engine, &first, &low, events)?;
    let uncached = request::uncached(served);

    let second = prompts.request(1, Some(TierId::HOST));
    let served = request::serve(engine, model, &second, &high, events)?;
    let rest_stored = keep(engine, &second, &high, events)?;
    let recomputed = request::recompute(engine, model, &second, &low, events)?;
    let compared = request::compare(served, recomputed, events)?;

    let third = prompts.request(2, Some(TierId::DISK));
    let expected = request::recompute(engine, model, &third, &low, events)?;
    Ok(FirstAnswers {
        requests: [uncached, compared],
        stored: [all_stored, rest_stored],
        expected,
    })
}

/// Stores the full blocks of a prompt.
fn keep(
    engine: &DemoEngine,
    request: &DemoRequest<'_>,
    blocks: &[usize],
    events: &mut dyn FnMut(DemoEvent),
) -> Result<StoredReport, DemoError> {
    let keys = engine.keys(request.tokens)?;
    let stored = engine.store(request.number, keys.keys(), blocks)?;
    events(DemoEvent::Stored(stored.clone()));
    Ok(stored)
}

fn write_request(request: &ResumeRequest, folder: &Path) -> Result<(), DemoError> {
    let path = folder.join(REQUEST);
    let text = serde_json::to_vec_pretty(request).map_err(DemoError::exchange)?;
    std::fs::write(&path, text).map_err(|source| io("write", &path, source))
}

/// Opens the folder for the same model with another base of the rotary embedding.
fn refuse(
    model: LoadedModel,
    report: &FirstReport,
    store: &StoreSettings,
) -> Result<FolderRefusal, DemoError> {
    let own = model.llama.facts().rope_base;
    let [base, second] = OTHER_BASES;
    let base = if own == base { second } else { base };
    let other = model.llama.with_rope_base(base);
    let blocks = EngineBlocks::allocate(&other, (1, report.prompt.page_size), ENGINE_ORDER)?;
    match DemoEngine::open(blocks, store) {
        Ok(_) => Err(DemoError::NotRefused { rope_base: base }),
        Err(DemoError::Tier(error)) => {
            let message = error.to_string();
            match error {
                TierError::Mismatch(MismatchError::FolderDiffers { difference, .. }) => {
                    Ok(FolderRefusal {
                        field: difference.field,
                        asked: difference.ours,
                        stored: difference.theirs,
                        message,
                    })
                }
                error => Err(error.into()),
            }
        }
        Err(error) => Err(error),
    }
}
