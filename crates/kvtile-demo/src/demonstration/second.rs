//! The second process: it knows the model and the file, and continues.

use std::time::Instant;

use kvtile::identity::LogicalIdentity;
use kvtile::saved::SavedCache;
use kvtile::transfer::{LayoutHandle, TransferManager};

use super::model::{Loaded, PROMPT_NOTE};
use super::store::{self, BlockKv, RESUMED_ORDER};
use super::{
    AnswerReport, Event, OpenReport, RestoreReport, ResumeReport, ResumeRequest, generate,
};
use crate::DemoError;
use crate::kv::{KvShape, Sequence};

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
    let started = Instant::now();
    let room = Room::new(&model, request)?;
    let (cache, open) = room.open(request)?;
    events(Event::Opened(open.clone()));
    let (manager, handle, restore) = room.restore(&cache)?;
    events(Event::Restored(restore.clone()));

    let order = (room.kv_shape, RESUMED_ORDER);
    let mut kv = BlockKv::lease(&manager, handle, &room.blocks, order)?;
    let Some((last, before)) = model.prompt.split_last() else {
        return Err(DemoError::NoTokens);
    };
    let page_size = room.kv_shape.page_size;
    let mut sequence = Sequence::resume(room.blocks.clone(), before.len(), page_size)?;
    let first = model
        .llama
        .forward(&[*last], &mut sequence, &mut kv)?
        .greedy();
    let first_token_seconds = started.elapsed().as_secs_f64();
    let computed_tokens = 1;
    events(Event::Resumed {
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
        open,
        restore,
        computed_tokens,
        first_token_seconds,
        answer,
    })
}

/// The blocks of the second process, and what they will mean.
struct Room<'a> {
    model: &'a Loaded,
    kv_shape: KvShape,
    identity: LogicalIdentity,
    /// The blocks of the sequence, in the order of its tokens. Not the order of the
    /// file: a block table says where the tokens are.
    blocks: Vec<usize>,
}

impl<'a> Room<'a> {
    fn new(model: &'a Loaded, request: &ResumeRequest) -> Result<Self, DemoError> {
        let page_size = request.page_size.get();
        let tokens = model
            .prompt
            .len()
            .saturating_add(request.answer_tokens.get());
        let count = tokens.div_ceil(page_size);
        let kv_shape = model.llama.config().kv_shape(count, page_size);
        let identity = store::identity(model.llama.facts(), &store::shape(kv_shape)?)?;
        Ok(Self {
            model,
            kv_shape,
            identity,
            blocks: (0..count).rev().collect(),
        })
    }

    /// Opens the file: header, identity, prompt.
    fn open(&self, request: &ResumeRequest) -> Result<(SavedCache, OpenReport), DemoError> {
        let started = Instant::now();
        let cache = SavedCache::open(&request.file, &self.identity)?;
        let header = cache.header();
        let expected = self.model.prompt_digest();
        let found = header.notes.get(PROMPT_NOTE).cloned().unwrap_or_default();
        let tokens = self.model.prompt.len();
        if found != expected || header.tokens != tokens as u64 {
            return Err(DemoError::PromptDiffers { expected, found });
        }
        let report = OpenReport {
            blocks: cache.num_blocks(),
            tokens,
            layout: header.word.to_string(),
            fingerprint: self.identity.fingerprint().to_string(),
            seconds: started.elapsed().as_secs_f64(),
        };
        Ok((cache, report))
    }

    /// Brings all blocks of the file into memory, in the order of the attention.
    fn restore(
        &self,
        cache: &SavedCache,
    ) -> Result<(TransferManager, LayoutHandle, RestoreReport), DemoError> {
        let started = Instant::now();
        let manager = TransferManager::new();
        let shape = store::shape(self.kv_shape)?;
        let handle = store::register(&manager, &shape, RESUMED_ORDER, &self.identity)?;
        let targets = (0..cache.num_blocks()).zip(self.blocks.iter().copied());
        let pairs: Vec<(usize, usize)> = targets.collect();
        let checks = cache.load(&manager, handle, &pairs)?;
        let count = checks.len();
        let mut bad = checks.into_iter().filter_map(|check| check.result.err());
        if let Some(first) = bad.next() {
            return Err(DemoError::BlocksDamaged {
                damaged: 1 + bad.count(),
                blocks: count,
                first,
            });
        }
        let report = RestoreReport {
            layout: RESUMED_ORDER.word().to_owned(),
            blocks: count,
            bytes: shape.block_bytes()? * count as u64,
            seconds: started.elapsed().as_secs_f64(),
        };
        Ok((manager, handle, report))
    }
}
