//! Limits of the contents of an identity, so that hostile files cost bounded memory and time.

use super::IdentityError;
use crate::error::LayoutError;

/// Longest text, in bytes.
const TEXT_BYTES_MAX: usize = 4096;

/// Most entries of a map.
pub(super) const MAP_ENTRIES_MAX: usize = 256;

/// Most numbers of a list.
pub(super) const LIST_ENTRIES_MAX: usize = 1 << 16;

pub(super) fn check_text(field: &str, text: &str) -> Result<(), LayoutError> {
    if text.is_empty() || text.len() > TEXT_BYTES_MAX {
        return Err(IdentityError::TextLength {
            field: field.to_owned(),
            bytes: text.len(),
            max: TEXT_BYTES_MAX,
        }
        .into());
    }
    Ok(())
}

pub(super) fn check_count(field: &str, count: usize, max: usize) -> Result<(), LayoutError> {
    if count > max {
        return Err(IdentityError::TooManyEntries {
            field: field.to_owned(),
            count,
            max,
        }
        .into());
    }
    Ok(())
}
