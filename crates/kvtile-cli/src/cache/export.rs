//! Blocks in one safetensors file: one byte tensor per block, named by its key.
//!
//! ```text
//! 0    length of the header, u64 little-endian
//! 8    header: JSON, spaces at its end
//! …    the blocks' bytes, one after the other
//! ```
//!
//! The file's metadata has the identity, the layout of a block, and for each block its parent,
//! position and tenant, all as JSON.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    io::{BufWriter, Seek, SeekFrom, Write},
};

use kvtile::tiers::disk::{InspectedGroup, SlotMiss, StoredSlot};
use serde::Serialize;

use super::{
    read_all,
    report::{BadStoredBlock, ReadBlocks},
};
use crate::{
    error::CliError,
    files::{self, NewFile},
};

/// Readers refuse a longer header.
const HEADER_BYTES_MAX: usize = 100_000_000;

/// The header ends at a multiple of eight bytes.
const HEADER_ALIGNMENT: usize = 8;

/// The result of an export.
pub(super) struct BlockExport {
    /// The blocks of the file, in its order.
    pub(super) whole: Vec<StoredSlot>,
    pub(super) read: ReadBlocks,
}

#[derive(Serialize)]
struct SafetensorsEntry {
    dtype: &'static str,
    shape: [u64; 1],
    data_offsets: [u64; 2],
}

/// The facts of a block besides its bytes.
#[derive(Serialize)]
pub(super) struct BlockFacts {
    key: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    parent: Option<String>,
    position: u32,
    tenant: u32,
}

#[derive(Serialize)]
struct SafetensorsHeader<'a> {
    #[serde(rename = "__metadata__")]
    metadata: BTreeMap<&'static str, String>,
    #[serde(flatten)]
    tensors: BTreeMap<String, &'a SafetensorsEntry>,
}

/// Writes every whole block to a new file. After an error, no file exists.
pub(super) fn export(group: &InspectedGroup, new: NewFile) -> Result<BlockExport, CliError> {
    let path = new.path().to_owned();
    let failed = |operation| {
        let path = path.clone();
        move |source| files::failed(operation, &path, source)
    };
    let mut out = BufWriter::new(new);
    let block_bytes = group.manifest().block_bytes();
    let all = newest(group);
    // The header with all blocks is the longest possible one; it comes first in the file.
    let longest = header(group, &all)?.len();
    let room = (8 + longest).next_multiple_of(HEADER_ALIGNMENT) - 8;
    if room > HEADER_BYTES_MAX {
        return Err(CliError::TooManyBlocks {
            blocks: all.len(),
            header_bytes: room,
        });
    }
    out.seek(SeekFrom::Start(8 + room as u64))
        .map_err(failed("write"))?;
    let exported = read_whole(group, |_, bytes| {
        out.write_all(bytes).map_err(failed("write"))
    })?;
    let mut header = header(group, &exported.whole)?;
    header.resize(room, b' ');
    out.seek(SeekFrom::Start(0)).map_err(failed("write"))?;
    out.write_all(&(room as u64).to_le_bytes())
        .map_err(failed("write"))?;
    out.write_all(&header).map_err(failed("write"))?;
    let file = out
        .into_inner()
        .map_err(|error| failed("write")(error.into_error()))?;
    // Without blocks, the file is the header alone.
    let length = 8 + room as u64 + block_bytes * exported.whole.len() as u64;
    file.finish(length)?;
    Ok(exported)
}

/// The blocks of a group without duplicates: a crash can leave a block twice, and the newer one
/// counts.
pub(super) fn newest(group: &InspectedGroup) -> Vec<StoredSlot> {
    let newest: HashMap<_, _> = group.blocks().map(|b| (b.key, b.sequence)).collect();
    group
        .blocks()
        .filter(|b| newest.get(&b.key) == Some(&b.sequence))
        .collect()
}

/// Reads each block of a group once, passes undamaged blocks to `take`, and counts damaged ones.
pub(super) fn read_whole(
    group: &InspectedGroup,
    mut take: impl FnMut(&StoredSlot, &[u8]) -> Result<(), CliError>,
) -> Result<BlockExport, CliError> {
    let newest: HashSet<_> = newest(group).iter().map(|b| (b.key, b.sequence)).collect();
    let mut exported = BlockExport {
        whole: Vec::new(),
        read: ReadBlocks::default(),
    };
    read_all(group, "exporting blocks", |block, read| {
        match read {
            _ if !newest.contains(&(block.key, block.sequence)) => {}
            Ok(bytes) => {
                take(&block, bytes)?;
                exported.whole.push(block);
            }
            Err(SlotMiss::Replaced) => exported.read.replaced += 1,
            Err(miss) => exported.read.bad.push(BadStoredBlock::of(&block, &miss)),
        }
        Ok(())
    })?;
    Ok(exported)
}

/// The facts of the blocks, in the order of the file.
pub(super) fn facts(blocks: &[StoredSlot]) -> Vec<BlockFacts> {
    let facts = blocks.iter().map(|block| BlockFacts {
        key: block.key.to_string(),
        parent: block.parent.map(|parent| parent.to_string()),
        position: block.position,
        tenant: block.tenant,
    });
    facts.collect()
}

fn header(group: &InspectedGroup, blocks: &[StoredSlot]) -> Result<Vec<u8>, CliError> {
    let manifest = group.manifest();
    let bytes = manifest.block_bytes();
    let facts = facts(blocks);
    let tensors: Vec<SafetensorsEntry> = (0..blocks.len() as u64)
        .map(|index| SafetensorsEntry {
            dtype: "U8",
            shape: [bytes],
            data_offsets: [index * bytes, (index + 1) * bytes],
        })
        .collect();
    let names = facts.iter().map(|facts| facts.key.clone());
    let header = SafetensorsHeader {
        metadata: BTreeMap::from([
            ("format", "kvtile blocks 1".to_owned()),
            ("identity", serde_json::to_string(manifest.identity())?),
            (
                "block_layout",
                serde_json::to_string(manifest.block_layout())?,
            ),
            ("blocks", serde_json::to_string(&facts)?),
        ]),
        tensors: names.zip(&tensors).collect(),
    };
    Ok(serde_json::to_vec(&header)?)
}
