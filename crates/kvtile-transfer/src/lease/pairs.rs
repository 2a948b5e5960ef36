//! The block pairs of a transfer: borrowed while it runs on the caller's thread, owned while it is
//! queued. Planning, leasing and releasing read the same list.

use std::borrow::Cow;

use kvtile_layout::{BlockPair, CopyPlan, CopyPlanner, LayerPlans, LayoutError, RangePair};

/// The block pairs of a transfer.
pub(crate) enum Pairs<'a> {
    /// The same tokens of every block: source block `i` to destination block `i`.
    Blocks {
        source: Cow<'a, [usize]>,
        destination: Cow<'a, [usize]>,
        tokens: RangePair,
    },
    /// Any pairs.
    Selected(Cow<'a, [BlockPair]>),
}

impl<'a> Pairs<'a> {
    /// # Errors
    /// Lists of different lengths.
    pub(crate) fn blocks(
        source: &'a [usize],
        destination: &'a [usize],
        tokens: RangePair,
    ) -> Result<Pairs<'a>, LayoutError> {
        if source.len() != destination.len() {
            return Err(LayoutError::BlockListsDiffer {
                source_blocks: source.len(),
                destination_blocks: destination.len(),
            });
        }
        Ok(Pairs::Blocks {
            source: source.into(),
            destination: destination.into(),
            tokens,
        })
    }

    /// Converts to owned pairs.
    pub(crate) fn into_owned(self) -> Pairs<'static> {
        match self {
            Pairs::Blocks {
                source,
                destination,
                tokens,
            } => Pairs::Blocks {
                source: source.into_owned().into(),
                destination: destination.into_owned().into(),
                tokens,
            },
            Pairs::Selected(pairs) => Pairs::Selected(pairs.into_owned().into()),
        }
    }

    pub(crate) fn plan(&self, planner: &mut CopyPlanner) -> Result<CopyPlan, LayoutError> {
        match self {
            Pairs::Blocks {
                source,
                destination,
                tokens,
            } => planner.plan(block_pairs(source, destination, *tokens)),
            Pairs::Selected(pairs) => planner.plan(pairs.iter().copied()),
        }
    }

    pub(crate) fn plan_layers(&self, planner: &mut CopyPlanner) -> Result<LayerPlans, LayoutError> {
        match self {
            Pairs::Blocks {
                source,
                destination,
                tokens,
            } => planner.plan_layers(block_pairs(source, destination, *tokens)),
            Pairs::Selected(pairs) => planner.plan_layers(pairs.iter().copied()),
        }
    }

    /// The source blocks, including repetitions.
    pub(crate) fn sources(&self) -> Ids<'_> {
        match self {
            Pairs::Blocks { source, .. } => Ids::Listed(source.iter()),
            Pairs::Selected(pairs) => Ids::Sources(pairs.iter()),
        }
    }

    /// The destination blocks, including repetitions.
    pub(crate) fn destinations(&self) -> Ids<'_> {
        match self {
            Pairs::Blocks { destination, .. } => Ids::Listed(destination.iter()),
            Pairs::Selected(pairs) => Ids::Destinations(pairs.iter()),
        }
    }

    /// All pairs, one by one.
    pub(crate) fn to_vec(&self) -> Vec<BlockPair> {
        match self {
            Pairs::Blocks {
                source,
                destination,
                tokens,
            } => block_pairs(source, destination, *tokens).collect(),
            Pairs::Selected(pairs) => pairs.to_vec(),
        }
    }

    /// A block that is both source and destination.
    pub(crate) fn common(&self) -> Option<u64> {
        let mut read: Vec<u64> = self.sources().collect();
        read.sort_unstable();
        let both = |block: &u64| read.binary_search(block).is_ok();
        self.destinations().find(both)
    }
}

fn block_pairs(
    source: &[usize],
    destination: &[usize],
    tokens: RangePair,
) -> impl ExactSizeIterator<Item = BlockPair> + Clone {
    let pairs = source.iter().zip(destination);
    pairs.map(move |(&source, &destination)| BlockPair {
        source_block: source as u64,
        source_token: tokens.source,
        destination_block: destination as u64,
        destination_token: tokens.destination,
        tokens: tokens.count,
    })
}

/// The block ids of one side, from any of the lists that contain them.
#[derive(Clone)]
pub(crate) enum Ids<'a> {
    Listed(std::slice::Iter<'a, usize>),
    Leased(std::slice::Iter<'a, u64>),
    Sources(std::slice::Iter<'a, BlockPair>),
    Destinations(std::slice::Iter<'a, BlockPair>),
}

impl Iterator for Ids<'_> {
    type Item = u64;

    #[inline]
    fn next(&mut self) -> Option<u64> {
        match self {
            Ids::Listed(ids) => ids.next().map(|&id| id as u64),
            Ids::Leased(ids) => ids.next().copied(),
            Ids::Sources(pairs) => pairs.next().map(|pair| pair.source_block),
            Ids::Destinations(pairs) => pairs.next().map(|pair| pair.destination_block),
        }
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        match self {
            Ids::Listed(ids) => ids.size_hint(),
            Ids::Leased(ids) => ids.size_hint(),
            Ids::Sources(pairs) | Ids::Destinations(pairs) => pairs.size_hint(),
        }
    }
}

impl ExactSizeIterator for Ids<'_> {}
