//! Files that the user names.

use std::{fs, path::Path};

use crate::error::CliError;

/// Writes a text.
///
/// # Errors
/// The file cannot be written.
pub fn write(path: &Path, text: &str) -> Result<(), CliError> {
    fs::write(path, text).map_err(|source| CliError::File {
        operation: "write",
        path: path.to_owned(),
        source,
    })
}
