//! Conversions of folders; the tests compute every byte and compare it.
//!
//! The code of version 1 wrote `tests/fixtures/version_1`: blocks of 2 layers, 2 heads, 16 tokens
//! and 12 elements of 2 bytes in the layout `BHLKNC`, in the slots of these numbers.
//!
//! ```text
//! 0 ── 1 ── 2 ── 3 ── 4        tenant 7; slot 1 has an older copy of block 1 with other bytes, slot 8 the newer one
//!           └─── 5 ── 6        tenant 9; a byte of block 5 is flipped
//! 7                            tenant 1; its record is torn
//! ```

mod crash;
mod hostile;
mod refusals;
mod version_1;
mod version_2;

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use kvtile_layout::{
    Shape, Unit,
    identity::{Identity, Rope},
};
use kvtile_tiers::{
    ConvertError, FolderError, SettingsError, TierError,
    disk::{ConversionReport, ConvertSettings, Inspection, StoredSlot, convert, medium::Medium},
    tier::STORAGE_WORD,
};

use kvtile_random::mix;

use crate::common::key;

/// Blocks of the fixture that are intact, in the order of their positions and ages.
const WHOLE: [u64; 6] = [0, 1, 2, 3, 4, 6];

/// A copy of the fixture in `folder`, which tests may change.
fn version_1(folder: &Path) -> PathBuf {
    let path = folder.join("from");
    fs::create_dir(&path).unwrap();
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/version_1");
    for (name, bytes) in files(&fixture) {
        fs::write(path.join(name), bytes).unwrap();
    }
    path
}

/// The names and contents of the files of a folder.
fn files(path: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = fs::read_dir(path).unwrap().map(Result::unwrap);
    entries
        .map(|entry| {
            let name = entry.file_name().into_string().unwrap();
            (name, fs::read(entry.path()).unwrap())
        })
        .collect()
}

fn shape(blocks: u64) -> Shape {
    let unit = Unit::new("bf16", 2, 1).unwrap();
    Shape::key_value(blocks, 2, 16, 2, 12, &unit).unwrap()
}

fn logical() -> Identity {
    let rope = Rope::new("llama3", 10_000.0).unwrap();
    Identity::new("toy", "0123abc", &shape(1))
        .unwrap()
        .with_rope(rope)
}

/// The bytes of block `number` of the fixture, in the layout of a word such as `BHLKNC`.
fn content(number: u64, word: &str) -> Vec<u8> {
    content_of(number, word, &|axis| match axis {
        'N' => 16,
        'C' => 12,
        _ => 2,
    })
}

/// The bytes of block `number` with these extents. Each element of two bytes is computed from
/// number, layer, plane, head, token and content.
fn content_of(number: u64, word: &str, extent: &dyn Fn(char) -> u64) -> Vec<u8> {
    let order = word.strip_prefix('B').unwrap();
    let elements: u64 = order.chars().map(extent).product();
    let mut bytes = Vec::new();
    for index in 0..elements {
        let (mut rest, mut at) = (index, BTreeMap::new());
        for axis in order.chars().rev() {
            at.insert(axis, rest % extent(axis));
            rest /= extent(axis);
        }
        let element = "LKHNC"
            .chars()
            .fold(0, |element, axis| element * extent(axis) + at[&axis]);
        let word = mix(number << 32 | element).to_le_bytes();
        bytes.extend([word[0], word[1]]);
    }
    bytes
}

fn settings(word: Option<&str>) -> ConvertSettings {
    ConvertSettings::new().layout(word.map(|word| word.parse().unwrap()))
}

fn run(from: &Path, to: &Path, settings: &ConvertSettings) -> Result<ConversionReport, TierError> {
    convert(from, to, settings, &mut |_| {})
}

/// Checks the blocks and bytes of a converted fixture.
fn check_converted(to: Inspection, word: &str) {
    let to = to.only().unwrap();
    let mut buffer = vec![0; 3072];
    let found: Vec<(u64, StoredSlot)> = to.blocks().map(|block| (number(&block), block)).collect();
    let numbers: Vec<u64> = found.iter().map(|(number, _)| *number).collect();
    assert_eq!(numbers, WHOLE);
    for (index, (number, block)) in found.into_iter().enumerate() {
        to.read(index, &mut buffer).unwrap();
        assert!(buffer == content(number, word), "block {number} in {word}");
        let (parent, position, tenant) = match number {
            0 => (None, 0, 7),
            6 => (Some(5), 4, 9),
            _ => (Some(number - 1), u32::try_from(number).unwrap(), 7),
        };
        assert_eq!(block.parent, parent.map(key));
        assert_eq!((block.position, block.tenant), (position, tenant));
    }
}

/// The number of a block of the fixture.
fn number(block: &StoredSlot) -> u64 {
    (0..8).find(|number| key(*number) == block.key).unwrap()
}

fn inspect(medium: Arc<dyn Medium>) -> Result<Inspection, TierError> {
    Inspection::open_on(medium)
}

/// A word, or the default layout.
fn word_or_default(word: Option<&str>) -> &str {
    word.unwrap_or(STORAGE_WORD)
}
