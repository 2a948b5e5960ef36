//! The block layouts of both folders, as words that layouts can be built from. A manifest records
//! only the offset of each value, so this module tries words until one gives the same offsets.

use kvtile_layout::{
    LayoutError, Shape, StridedLayout, Word,
    identity::{Difference, LayoutIdentity},
    tradition::LayoutSpec,
};
use kvtile_transfer::PhysicalLayout;

use super::{super::capacity::PAGE_BYTES, ConvertSettings, source::ConvertSource};
use crate::{
    error::{ConvertError, SettingsError, TierError},
    tier::{BlockPieces, STORAGE_WORD, StoreIdentity},
};

/// Axes of a block; every permutation of them is tried.
const AXES: &str = "LKNHC";

/// Words of some engines that store the planes apart from each other.
const SPLIT_WORDS: [&str; 4] = [
    "BLH(kCN,vNC)",
    "BHL(kCN,vNC)",
    "BLH(kNC,vCN)",
    "BHL(kNC,vCN)",
];

/// A block layout of a folder.
#[derive(Debug)]
pub(super) struct StoredOrder {
    pub(super) word: Word,
    shape: Shape,
    block: LayoutIdentity,
    pieces: BlockPieces,
}

/// The block layouts of the source folder and of the new folder.
#[derive(Debug)]
pub(super) struct ConvertOrders {
    pub(super) stored: StoredOrder,
    pub(super) target: StoredOrder,
    /// The identity of the new folder.
    pub(super) identity: StoreIdentity,
}

impl StoredOrder {
    fn new(word: Word, shape: &Shape) -> Result<StoredOrder, TierError> {
        let layout = StridedLayout::resolve(&word, shape, PAGE_BYTES)?;
        if !layout.blocks_are_contiguous() {
            return Err(TierError::Settings(SettingsError::StorageNotContiguous {
                layout: layout.describe(),
            }));
        }
        Ok(StoredOrder {
            word,
            shape: shape.clone(),
            block: LayoutIdentity::of_block(&layout),
            pieces: BlockPieces::of_layout(&layout)?,
        })
    }

    /// Allocates memory for `blocks` blocks in this layout.
    pub(super) fn memory(&self, blocks: u64) -> Result<PhysicalLayout, TierError> {
        let layout = PhysicalLayout::builder()
            .with_aligned_shape(self.shape.with_num_blocks(blocks)?, PAGE_BYTES)
            .layout(LayoutSpec::Word(self.word.clone()))
            .allocate_system()
            .build()?;
        Ok(layout)
    }

    /// Bytes of one block.
    pub(super) fn block_bytes(&self) -> u64 {
        self.pieces.block_bytes()
    }
}

impl ConvertOrders {
    pub(super) fn of(
        source: &ConvertSource,
        settings: &ConvertSettings,
    ) -> Result<ConvertOrders, TierError> {
        let identity = source.identity();
        let (shard, planes) = (identity.shard(), identity.planes().to_vec());
        let shape = Shape::new(1, shard.layers.count, identity.page_size(), planes)?;
        let shape = shape.with_shard(shard)?;
        let target = match &settings.layout {
            Some(word) => word.clone(),
            None => parse(STORAGE_WORD)?,
        };
        let target = StoredOrder::new(target, &shape)?;
        let stored = match &settings.stored_layout {
            Some(word) => named(source, StoredOrder::new(word.clone(), &shape)?)?,
            None => usual(source, &shape)?,
        };
        let identity = StoreIdentity {
            logical: identity.clone(),
            block_layout: target.block.clone(),
            pieces: target.pieces.clone(),
        };
        Ok(ConvertOrders {
            stored,
            target,
            identity,
        })
    }

    /// Whether both layouts are equal, so that no bytes move within a block.
    pub(super) fn are_equal(&self) -> bool {
        self.stored
            .block
            .first_difference(&self.target.block)
            .is_none()
            && self.stored.block_bytes() == self.target.block_bytes()
    }
}

/// The requested layout, if it is that of the stored blocks.
fn named(source: &ConvertSource, order: StoredOrder) -> Result<StoredOrder, TierError> {
    match difference(source, &order) {
        None => Ok(order),
        Some(difference) => Err(TierError::Convert(ConvertError::StoredOrderDiffers {
            folder: source.name().to_owned(),
            word: order.word.to_string(),
            difference: Box::new(difference),
        })),
    }
}

/// The first of the usual layouts that is that of the stored blocks.
fn usual(source: &ConvertSource, shape: &Shape) -> Result<StoredOrder, TierError> {
    let words = usual_words();
    for word in &words {
        // Some words do not fit some shapes.
        if let Ok(order) = StoredOrder::new(parse(word)?, shape)
            && difference(source, &order).is_none()
        {
            return Ok(order);
        }
    }
    Err(TierError::Convert(ConvertError::StoredOrderUnknown {
        folder: source.name().to_owned(),
        tried: words.len(),
    }))
}

fn difference(source: &ConvertSource, order: &StoredOrder) -> Option<Difference> {
    let layout = order.block.first_difference(source.block_layout());
    let (ours, theirs) = (order.block_bytes(), source.block_bytes());
    layout.or_else(|| {
        (ours != theirs).then(|| Difference {
            field: "block_bytes".to_owned(),
            ours: ours.to_string(),
            theirs: theirs.to_string(),
        })
    })
}

/// The words to try: the default one, every permutation of the axes, and the words with split
/// planes.
fn usual_words() -> Vec<String> {
    let mut words = vec![STORAGE_WORD.to_owned()];
    add_orders("B", AXES, &mut words);
    words.extend(SPLIT_WORDS.map(str::to_owned));
    words
}

/// Adds `begun` followed by each permutation of `rest`.
fn add_orders(begun: &str, rest: &str, words: &mut Vec<String>) {
    if rest.is_empty() {
        words.push(begun.to_owned());
    }
    for axis in rest.chars() {
        let begun = format!("{begun}{axis}");
        let rest: String = rest.chars().filter(|other| *other != axis).collect();
        add_orders(&begun, &rest, words);
    }
}

fn parse(word: &str) -> Result<Word, TierError> {
    Ok(Word::parse(word).map_err(LayoutError::from)?)
}
