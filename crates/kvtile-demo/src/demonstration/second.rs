//! The second process: it gets the model and the folder, and answers the last request.

use kvtile::blocks::events::TierId;

use super::engine::DemoEngine;
use super::model::LoadedModel;
use super::request::{self, DemoRequest};
use super::store::{EngineBlocks, RESUMED_ORDER};
use super::{DemoEvent, ResumeReport, ResumeRequest, SecondReport};
use crate::DemoError;

/// Loads the model, opens the cache on the folder, and answers: it loads the prefix from disk into
/// `L|BH(kCN,vNC)` and computes only the tokens after it.
///
/// # Errors
/// A folder of another model or page size, or one that is in use; a prefix that is not completely
/// on disk ([`DemoError::PrefixElsewhere`]); damaged blocks ([`DemoError::PrefixLost`]), which it
/// never uses.
pub fn resume(
    request: &ResumeRequest,
    events: &mut dyn FnMut(DemoEvent),
) -> Result<ResumeReport, DemoError> {
    let model = LoadedModel::read(&request.model, request.threads)?;
    events(DemoEvent::Loaded(model.report.clone()));
    let page_size = request.store.page_size.get();
    let tokens = model.tokens(&request.prompt)?;
    let all = tokens.len().saturating_add(request.answer_tokens.get());
    let count = all.div_ceil(page_size);
    let blocks = EngineBlocks::allocate(&model.llama, (count, page_size), RESUMED_ORDER)?;
    let allocate = blocks.report.clone();
    events(DemoEvent::Allocated(allocate.clone()));
    let (engine, open) = DemoEngine::open(blocks, &request.store)?;
    events(DemoEvent::Opened(open.clone()));

    let asked = DemoRequest {
        number: request.number,
        question: &request.question,
        tokens: &tokens,
        prefix_blocks: request.prefix_blocks,
        tier: Some(TierId::DISK),
        answer_tokens: request.answer_tokens.get(),
    };
    // In another order than that of the folder: a block table maps tokens to blocks.
    let blocks: Vec<usize> = (0..count).rev().collect();
    let served = request::serve(&engine, &model, &asked, &blocks, events)?;
    Ok(ResumeReport {
        second: SecondReport {
            process_id: std::process::id(),
            model: model.report,
            allocate,
            open,
        },
        request: served,
    })
}
