//! A directory of the blocks of other caches: which tier has which block. The scheduler of an engine keeps one for
//! each of its workers, from their events. It may lag behind the caches, so a load of what it lists may fail.

use std::collections::HashMap;

use kvtile_blocks::{BlockKey, events::TierId};

/// Most tiers of a directory.
pub const DIRECTORY_TIERS_MAX: usize = 32;

/// Which tiers of a cache have which blocks, from its events.
///
/// ```
/// use kvtile_blocks::{BlockKey, events::TierId};
/// use kvtile_tiers::TierDirectory;
///
/// let keys = [1_u8, 2, 3].map(|key| BlockKey::from_opaque(&[key]));
/// let mut directory = TierDirectory::new(&[TierId::HOST, TierId::DISK]);
/// directory.stored(TierId::HOST, keys[0]);
/// directory.stored(TierId::DISK, keys[0]);
/// directory.stored(TierId::DISK, keys[1]);
/// assert_eq!(directory.leading(&keys), [TierId::HOST, TierId::DISK]);
/// ```
#[derive(Clone, Debug, Default)]
pub struct TierDirectory {
    /// Fastest first.
    tiers: Vec<TierId>,
    /// For each block a bit for each tier.
    blocks: HashMap<BlockKey, u32>,
}

impl TierDirectory {
    /// An empty directory of these tiers, the fastest first. Tiers after the first [`DIRECTORY_TIERS_MAX`] are
    /// ignored, as are events of unlisted tiers.
    #[must_use]
    pub fn new(tiers: &[TierId]) -> TierDirectory {
        TierDirectory {
            tiers: tiers.iter().take(DIRECTORY_TIERS_MAX).copied().collect(),
            blocks: HashMap::new(),
        }
    }

    /// The tiers, the fastest first.
    #[must_use]
    pub fn tiers(&self) -> &[TierId] {
        &self.tiers
    }

    /// A tier has stored a block.
    pub fn stored(&mut self, tier: TierId, key: BlockKey) {
        let bit = self.bit(tier);
        if bit != 0 {
            *self.blocks.entry(key).or_default() |= bit;
        }
    }

    /// A tier has removed a block.
    pub fn removed(&mut self, tier: TierId, key: &BlockKey) {
        let bit = self.bit(tier);
        if let Some(tiers) = self.blocks.get_mut(key) {
            *tiers &= !bit;
            if *tiers == 0 {
                self.blocks.remove(key);
            }
        }
    }

    /// A tier has removed all blocks.
    pub fn cleared(&mut self, tier: TierId) {
        let bit = self.bit(tier);
        self.blocks.retain(|_, tiers| {
            *tiers &= !bit;
            *tiers != 0
        });
    }

    /// Removes all blocks of all tiers.
    pub fn clear(&mut self) {
        self.blocks.clear();
    }

    /// The number of different blocks.
    #[must_use]
    pub fn len(&self) -> usize {
        self.blocks.len()
    }

    /// Whether no tier has a block.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.blocks.is_empty()
    }

    /// The blocks of a tier, in no order.
    pub fn blocks(&self, tier: TierId) -> impl Iterator<Item = &BlockKey> {
        let bit = self.bit(tier);
        let of_tier = self
            .blocks
            .iter()
            .filter(move |(_, tiers)| *tiers & bit != 0);
        of_tier.map(|(key, _)| key)
    }

    /// The fastest tier of each leading block of `keys`, up to the first block that no tier has.
    #[must_use]
    pub fn leading(&self, keys: &[BlockKey]) -> Vec<TierId> {
        keys.iter().map_while(|key| self.fastest(key)).collect()
    }

    /// The fastest tier of a block.
    #[must_use]
    pub fn fastest(&self, key: &BlockKey) -> Option<TierId> {
        let tiers = self.blocks.get(key)?;
        self.tiers.get(tiers.trailing_zeros() as usize).copied()
    }

    fn bit(&self, tier: TierId) -> u32 {
        match self.tiers.iter().position(|known| *known == tier) {
            Some(at) => 1 << at,
            None => 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use kvtile_random::SplitMix64;

    use super::*;

    #[test]
    fn a_directory_equals_sets_of_blocks() {
        let tiers = [TierId::HOST, TierId::DISK];
        let keys: Vec<BlockKey> = (0..12_u8)
            .map(|key| BlockKey::from_opaque(&[key]))
            .collect();
        for seed in 0..200 {
            let mut numbers = SplitMix64::new(seed);
            let mut directory = TierDirectory::new(&tiers);
            let mut naive = [BTreeSet::new(), BTreeSet::new()];
            for _ in 0..200 {
                let tier = usize::try_from(numbers.below(2)).unwrap();
                let key = usize::try_from(numbers.below(12)).unwrap();
                match numbers.below(20) {
                    0 => {
                        directory.cleared(tiers[tier]);
                        naive[tier].clear();
                    }
                    1 if numbers.once_in(8) => {
                        directory.clear();
                        naive.iter_mut().for_each(BTreeSet::clear);
                    }
                    2..=8 => {
                        directory.removed(tiers[tier], &keys[key]);
                        naive[tier].remove(&key);
                    }
                    _ => {
                        directory.stored(tiers[tier], keys[key]);
                        naive[tier].insert(key);
                    }
                }
                let expected: Vec<TierId> = (0..12)
                    .map_while(|key| {
                        let has = |tier: &usize| naive[*tier].contains(&key);
                        (0..2).find(has).map(|tier| tiers[tier])
                    })
                    .collect();
                assert_eq!(directory.leading(&keys), expected, "seed {seed}");
                let of_host: BTreeSet<_> = directory.blocks(TierId::HOST).collect();
                assert_eq!(of_host, naive[0].iter().map(|key| &keys[*key]).collect());
                assert_eq!(
                    directory.len(),
                    (&naive[0] | &naive[1]).len(),
                    "seed {seed}"
                );
            }
        }
    }

    #[test]
    fn events_of_unlisted_tiers_change_nothing() {
        let key = BlockKey::from_opaque(b"key");
        let mut directory = TierDirectory::new(&[TierId::HOST]);
        directory.stored(TierId::DISK, key);
        assert!(directory.is_empty());
        directory.stored(TierId::HOST, key);
        directory.removed(TierId::DISK, &key);
        directory.cleared(TierId::DISK);
        assert_eq!(directory.fastest(&key), Some(TierId::HOST));
    }
}
