//! Finds and loads the model.

use std::num::NonZeroUsize;
use std::path::Path;
use std::time::Instant;

use super::{DemoEvent, ModelFile, ModelReport, ModelSource};
use crate::DemoError;
use crate::fetch::{FetchStage, Fetcher, SMOLLM2_135M_INSTRUCT};
use crate::gguf::Gguf;
use crate::llama::Llama;
use crate::tiny;
use crate::tokenizer::Tokenizer;

/// Seed of the miniature's weights: its greedy answer does not start to loop at once, so that
/// comparing it is meaningful.
const TINY_SEED: u64 = 35;

/// A model with its tokenizer.
#[derive(Debug)]
pub(super) struct LoadedModel {
    pub(super) llama: Llama,
    pub(super) tokenizer: Tokenizer,
    pub(super) report: ModelReport,
}

/// Returns the file of a source, fetched if needed. Where the requested real model is not
/// available, returns the miniature and the reason.
pub(super) fn find(
    source: &ModelSource,
    cache: &Path,
    events: &mut dyn FnMut(DemoEvent),
) -> Result<(ModelFile, Option<String>), DemoError> {
    let fetcher = match source {
        ModelSource::Tiny => return Ok((ModelFile::Tiny, None)),
        ModelSource::File(path) => {
            // An absolute path, because the second process may have another working directory.
            let path = std::fs::canonicalize(path).map_err(|source| io("open", path, source))?;
            return Ok((ModelFile::Path(path), None));
        }
        ModelSource::Fetched => Fetcher::new(cache),
    };
    let (started, mut downloaded_bytes) = (Instant::now(), 0);
    let fetched = fetcher.fetch(&SMOLLM2_135M_INSTRUCT, &mut |progress| {
        if progress.stage == FetchStage::Downloading {
            downloaded_bytes = progress.total_bytes;
        }
        events(DemoEvent::Fetching(progress));
    });
    match fetched {
        Ok(path) => {
            let path = std::fs::canonicalize(&path).map_err(|source| io("open", &path, source))?;
            events(DemoEvent::Fetched {
                path: path.clone(),
                downloaded_bytes,
                seconds: started.elapsed().as_secs_f64(),
            });
            Ok((ModelFile::Path(path), None))
        }
        Err(
            error @ (DemoError::NoNetwork { .. }
            | DemoError::PythonMissing { .. }
            | DemoError::PipMissing { .. }
            | DemoError::PipFailed { .. }),
        ) => {
            let reason = error.to_string();
            events(DemoEvent::TinyInstead {
                reason: reason.clone(),
            });
            Ok((ModelFile::Tiny, Some(reason)))
        }
        Err(error) => Err(error),
    }
}

impl LoadedModel {
    /// Reads the weights and the tokenizer.
    pub(super) fn read(file: &ModelFile, threads: NonZeroUsize) -> Result<Self, DemoError> {
        let started = Instant::now();
        let bytes = match file {
            ModelFile::Tiny => tiny::gguf(TINY_SEED),
            ModelFile::Path(path) => {
                std::fs::read(path).map_err(|source| io("read", path, source))?
            }
        };
        let llama = Llama::from_gguf(&bytes, threads)?;
        let seconds = started.elapsed().as_secs_f64();
        let tokenizer = Tokenizer::from_gguf(&Gguf::parse(&bytes)?)?;
        let facts = llama.facts();
        let report = ModelReport {
            title: title(&facts.name, &facts.weights_sha256),
            name: facts.name.clone(),
            tiny: *file == ModelFile::Tiny,
            file_bytes: bytes.len() as u64,
            sha256: facts.weights_sha256.clone(),
            layers: facts.layers,
            kv_heads: facts.kv_heads,
            head_size: facts.head_size,
            rope_base: f64::from(facts.rope_base),
            threads: threads.get(),
            seconds,
        };
        Ok(Self {
            llama,
            tokenizer,
            report,
        })
    }

    /// The tokens of a user's message, in the chat template of the model.
    pub(super) fn tokens(&self, message: &str) -> Result<Vec<u32>, DemoError> {
        self.tokenizer.encode_chat(None, message)
    }
}

/// The title of the model.
fn title(name: &str, sha256: &str) -> String {
    let pin = SMOLLM2_135M_INSTRUCT;
    let known = (sha256 == pin.sha256).then_some(pin.model);
    known.unwrap_or(name).to_owned()
}

pub(super) fn io(action: &'static str, path: &Path, source: std::io::Error) -> DemoError {
    DemoError::Io {
        action,
        path: path.to_owned(),
        source,
    }
}
