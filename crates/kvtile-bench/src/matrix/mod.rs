//! The matrix of measurements: pairs of layouts, models, sizes, and their combinations.

mod models;
mod pairs;

use kvtile::{
    layout::{Axis, LayoutError, RangePair, Shape, StridedLayout, Word},
    presets::{Preset, PresetLayout},
};
pub use models::BenchModel;
use serde::{Deserialize, Serialize};

use crate::{
    error::BenchError, file_rows::FileCell, fio::FioDirection, lines, settings::BenchSettings,
};

/// Fewest blocks of a cell: a cell that is smaller than this many blocks of the model has fewer
/// layers.
const BLOCKS_MIN: u64 = 4;

/// Bytes of the cells that fit no cache.
const LARGE_BYTES: u64 = 64 << 20;

/// Bytes of the largest cells, which only the first model has.
const LARGEST_BYTES: u64 = 512 << 20;

/// One side of a pair.
#[derive(Clone, Debug)]
pub enum PairLayout {
    /// A word.
    Word(Word),
    /// A known layout.
    Known(&'static Preset),
}

impl PairLayout {
    /// The word, or the name of a known layout without a word.
    #[must_use]
    pub fn label(&self) -> String {
        match self {
            PairLayout::Word(word) => word.to_string(),
            PairLayout::Known(preset) => match &preset.layout {
                PresetLayout::Word(word) => word.to_string(),
                _ => preset.name.clone(),
            },
        }
    }

    fn resolve(&self, shape: &Shape, alignment: u64) -> Result<StridedLayout, LayoutError> {
        match self {
            PairLayout::Word(word) => StridedLayout::resolve(word, shape, alignment),
            PairLayout::Known(preset) => preset.resolve(shape, alignment),
        }
    }
}

/// Two layouts between which blocks are copied.
#[derive(Clone, Debug)]
pub struct LayoutPair {
    /// The source layout.
    pub source: PairLayout,
    /// The destination layout.
    pub destination: PairLayout,
}

impl LayoutPair {
    /// `L|KBNHC → BHLKNC`.
    #[must_use]
    pub fn label(&self) -> String {
        format!("{} → {}", self.source.label(), self.destination.label())
    }

    fn of_words(source: &str, destination: &str) -> Result<LayoutPair, BenchError> {
        let word = |text: &str| Word::parse(text).map_err(LayoutError::from);
        Ok(LayoutPair {
            source: PairLayout::Word(word(source)?),
            destination: PairLayout::Word(word(destination)?),
        })
    }
}

/// The purpose of a pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PairPurpose {
    /// Requested by the user.
    Requested,
    /// Equal layouts on both sides.
    Equal,
    /// From one engine, host pool or store to another.
    Across,
    /// From an engine to the order of stored blocks.
    Store,
    /// From the order of stored blocks to an engine.
    Load,
    /// A separate measurement without a pair of layouts.
    Extra,
}

impl PairPurpose {
    /// The title of the purpose in reports.
    #[must_use]
    pub fn title(self) -> &'static str {
        match self {
            PairPurpose::Requested => "the requested pair",
            PairPurpose::Equal => "equal layouts",
            PairPurpose::Across => "from one engine, host pool or store to another",
            PairPurpose::Store => "from an engine to the order of stored blocks",
            PairPurpose::Load => "from the order of stored blocks to an engine",
            PairPurpose::Extra => "beside the matrix",
        }
    }
}

/// One pair with one model in one size; its methods are measured in turns.
#[derive(Clone, Debug)]
pub(crate) struct BenchCell {
    pub(crate) pair: LayoutPair,
    pub(crate) purpose: PairPurpose,
    pub(crate) model: String,
    pub(crate) source: StridedLayout,
    pub(crate) destination: StridedLayout,
    /// The copied heads, where one side holds those of one rank only.
    pub(crate) heads: Option<RangePair>,
    /// Whether both sides fit the second-level cache.
    pub(crate) in_cache: bool,
}

impl BenchCell {
    /// The text that filters match.
    pub(crate) fn label(&self) -> String {
        let size = match (self.in_cache, self.bytes()) {
            (false, Ok(bytes)) => lines::bytes(bytes),
            _ => "in cache".to_owned(),
        };
        let part = self.part().map(|part| format!(", {part}"));
        let part = part.unwrap_or_default();
        format!("{}{part}  {}  {size}", self.pair.label(), self.model)
    }

    /// Payload of all blocks, by the side with fewer heads.
    pub(crate) fn bytes(&self) -> Result<u64, BenchError> {
        let source = self.source.shape().total_bytes()?;
        Ok(source.min(self.destination.shape().total_bytes()?))
    }

    /// The copied part of the model, where it is not the whole.
    pub(crate) fn part(&self) -> Option<String> {
        self.heads.map(|_| "rank 1 of 2".to_owned())
    }
}

/// The size of a cell.
#[derive(Clone, Copy, Debug)]
enum CellSize {
    /// At most this many bytes, so that both sides fit a cache; cells that cannot be that small are
    /// skipped.
    InCache(u64),
    /// About this many bytes.
    Bytes(u64),
}

/// The cells of the settings, before filters.
///
/// # Errors
/// A pair of the user that does not fit the model.
pub(crate) fn cells(
    settings: &BenchSettings,
    cache_bytes: u64,
) -> Result<Vec<BenchCell>, BenchError> {
    let models = match settings.models.as_slice() {
        [] => models::usual(settings.quick)?,
        given => given.to_vec(),
    };
    let mut cells = Vec::new();
    if let Some(pair) = &settings.pair {
        for model in &models {
            for size in sizes(settings, cache_bytes, true) {
                let cell = cell(
                    (pair, PairPurpose::Requested),
                    model,
                    None,
                    size,
                    settings.alignment,
                )?;
                cells.extend(cell);
            }
        }
        return Ok(cells);
    }
    let pairs = pairs::all();
    for (number, model) in models.iter().enumerate() {
        let fitting = pairs.iter().filter(|entry| entry.fits(&model.shape));
        // Of the models after the first, a quick run measures only the special pairs.
        let entries = fitting.filter(|entry| match (settings.quick, number) {
            (false, _) => true,
            (true, 0) => entry.usual,
            (true, _) => entry.usual && entry.special,
        });
        for entry in entries {
            let pair = LayoutPair::of_words(&entry.source, &entry.destination)?;
            for size in sizes(settings, cache_bytes, number == 0) {
                let named = (&pair, entry.purpose);
                let page_size = entry.page_size;
                cells.extend(cell(named, model, page_size, size, settings.alignment)?);
            }
        }
        if number == 0 && !settings.quick {
            for size in sizes(settings, cache_bytes, true) {
                cells.extend(ranks(model, size, settings.alignment)?);
            }
        }
    }
    Ok(cells)
}

/// Bytes of the cells with files.
const FILE_BYTES: u64 = 256 << 20;

/// Bytes of the cells with files in a quick run.
const FILE_BYTES_QUICK: u64 = 64 << 20;

/// The pairs with a file on one side: an engine's layout with the stored order in the file, and
/// stored blocks in the same order on both sides.
const FILES: [(&str, &str); 2] = [("L|BKNHC", "BHLKNC"), ("BHLKNC", "BHLKNC")];

/// The cells with files of the settings, before filters.
///
/// # Errors
/// A pair of the user that does not fit the model.
pub(crate) fn file_cells(settings: &BenchSettings) -> Result<Vec<FileCell>, BenchError> {
    let models = match settings.models.as_slice() {
        [] => models::usual(true)?,
        given => given.to_vec(),
    };
    let Some(model) = models.first() else {
        return Ok(Vec::new());
    };
    let heads = |axis: &BenchModel| axis.shape.planes().iter().all(|plane| plane.has(Axis::H));
    let (pairs, purpose) = match &settings.pair {
        Some(pair) => (vec![pair.clone()], PairPurpose::Requested),
        None if heads(model) => {
            let pairs = FILES.iter().map(|(a, b)| LayoutPair::of_words(a, b));
            (pairs.collect::<Result<_, _>>()?, PairPurpose::Extra)
        }
        None => return Ok(Vec::new()),
    };
    let usual = if settings.quick {
        FILE_BYTES_QUICK
    } else {
        FILE_BYTES
    };
    let sizes = match settings.bytes.as_slice() {
        [] => vec![usual],
        given => given.to_vec(),
    };
    let mut cells = Vec::new();
    for pair in &pairs {
        let back = LayoutPair {
            source: pair.destination.clone(),
            destination: pair.source.clone(),
        };
        let ways = [(pair, FioDirection::Write), (&back, FioDirection::Read)];
        for (size, (pair, direction), direct) in sizes.iter().flat_map(|size| {
            let ways = ways.iter().flat_map(|way| [(way, false), (way, true)]);
            ways.map(move |(way, direct)| (*size, *way, direct))
        }) {
            let named = (pair, purpose);
            let cell = cell(
                named,
                model,
                None,
                CellSize::Bytes(size),
                settings.alignment,
            )?;
            cells.extend(cell.map(|cell| FileCell {
                cell,
                direction,
                direct,
            }));
        }
    }
    Ok(cells)
}

/// The sizes of the flat copies on several threads.
pub(crate) fn flat_bytes(settings: &BenchSettings) -> Vec<u64> {
    match settings.bytes.as_slice() {
        [] if settings.quick => vec![LARGE_BYTES],
        [] => vec![LARGE_BYTES, LARGEST_BYTES],
        given => given.to_vec(),
    }
}

fn sizes(settings: &BenchSettings, cache_bytes: u64, first_model: bool) -> Vec<CellSize> {
    if !settings.bytes.is_empty() {
        return settings.bytes.iter().map(|&b| CellSize::Bytes(b)).collect();
    }
    let mut sizes = vec![CellSize::InCache(cache_bytes), CellSize::Bytes(LARGE_BYTES)];
    if first_model && !settings.quick {
        sizes.push(CellSize::Bytes(LARGEST_BYTES));
    }
    sizes
}

/// Builds a cell; `None` where one block of one layer exceeds the cache.
fn cell(
    (pair, purpose): (&LayoutPair, PairPurpose),
    model: &BenchModel,
    page_size: Option<u64>,
    size: CellSize,
    alignment: u64,
) -> Result<Option<BenchCell>, BenchError> {
    let page_size = page_size.unwrap_or(model.shape.page_size());
    let planes = || model.shape.planes().to_vec();
    let layer_bytes = Shape::new(1, 1, page_size, planes())?.block_bytes()?.max(1);
    let (bytes, in_cache) = match size {
        CellSize::InCache(bytes) if layer_bytes > bytes => return Ok(None),
        CellSize::InCache(bytes) => (bytes, true),
        CellSize::Bytes(bytes) => (bytes, false),
    };
    let all_layers = model.shape.num_layers();
    let layers = (bytes / (layer_bytes * BLOCKS_MIN)).clamp(1, all_layers);
    let blocks = (bytes / (layer_bytes * layers)).max(1);
    let shape = if layers == all_layers && page_size == model.shape.page_size() {
        model.shape.with_num_blocks(blocks)?
    } else {
        Shape::new(blocks, layers, page_size, planes())?
    };
    Ok(Some(BenchCell {
        pair: pair.clone(),
        purpose,
        model: model.name.clone(),
        source: pair.source.resolve(&shape, alignment)?,
        destination: pair.destination.resolve(&shape, alignment)?,
        heads: None,
        in_cache,
    }))
}

/// Cells between a rank with the second half of the heads and stored blocks of the whole model.
/// None where the heads cannot be halved, and none in the cache.
fn ranks(model: &BenchModel, size: CellSize, alignment: u64) -> Result<Vec<BenchCell>, BenchError> {
    let all = model.shape.num_heads();
    let (CellSize::Bytes(bytes), true) = (size, all.is_multiple_of(2)) else {
        return Ok(Vec::new());
    };
    // The size of the whole model, so that the half that moves is as large as other cells.
    let size = CellSize::Bytes(bytes.saturating_mul(2));
    let mut cells = Vec::new();
    for (held, stored, back) in pairs::RANKS {
        let pair = LayoutPair::of_words(held, stored)?;
        let Some(whole) = cell((&pair, PairPurpose::Store), model, None, size, alignment)? else {
            continue;
        };
        let half = models::half_of_heads(whole.destination.shape())?;
        let held = pair.source.resolve(&half, alignment)?;
        let (source, destination) = if back { (all / 2, 0) } else { (0, all / 2) };
        let heads = Some(RangePair {
            source,
            destination,
            count: all / 2,
        });
        cells.push(if back {
            BenchCell {
                pair: LayoutPair {
                    source: pair.destination,
                    destination: pair.source,
                },
                purpose: PairPurpose::Load,
                source: whole.destination,
                destination: held,
                heads,
                ..whole
            }
        } else {
            BenchCell {
                source: held,
                heads,
                ..whole
            }
        });
    }
    Ok(cells)
}
