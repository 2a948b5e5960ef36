//! Models with groups of layers, from files that the Python package writes.

use std::path::Path;

use kvtile::identity::ModelIdentity;

use crate::{error::CliError, files};

/// Longest file of a model, in bytes.
const MODEL_BYTES_MAX: u64 = 16 << 20;

/// Reads the JSON of a model's identity.
pub(crate) fn read(path: &Path) -> Result<ModelIdentity, CliError> {
    let text = files::read(path, MODEL_BYTES_MAX)?;
    serde_json::from_str(&text).map_err(|source| CliError::NotAModel {
        path: path.to_owned(),
        source,
    })
}
