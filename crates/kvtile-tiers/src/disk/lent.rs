//! How the groups of a folder use one capacity together.
//!
//! ```text
//! capacity = fixed bytes + records of all places + data
//!   places of a group   up to LENT_MOST times its share; a place that the group does not own is a
//!                       hole of the file
//!   data                the places that all groups own together never take more bytes
//!   share               what a group gets back from groups that own more than theirs
//! ```
//!
//! The records of all places are on the disk, so a capacity for which they would be more than one
//! byte in [`RECORDS_PART`] is divided into fixed shares.

use super::{
    capacity::{self, PHYSICAL_MIN, SLOTS_MAX, SlotForm},
    share,
};
use crate::tier::TierGroup;

/// How many times its share a group can own, the largest number first.
const LENT_MOST: [u32; 3] = [8, 4, 2];

/// The additional records take at most this part of the capacity.
const RECORDS_PART: u64 = 32;

/// The division of a capacity among groups that lend room to each other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct LentCapacity {
    pub(super) groups: Vec<LentGroup>,
    /// The most bytes of the places that all groups own together.
    pub(super) data_bytes: u64,
}

/// A group of a [`LentCapacity`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct LentGroup {
    /// The most places that it can own.
    pub(super) places: u32,
    /// The places that it can claim.
    pub(super) share: u32,
    /// Bytes of one place.
    pub(super) slot_bytes: u64,
}

impl LentGroup {
    fn bytes(&self, places: u32) -> u64 {
        self.slot_bytes.saturating_mul(u64::from(places))
    }

    /// Bytes of the places that it can claim.
    pub(super) fn share_bytes(&self) -> u64 {
        self.bytes(self.share)
    }

    /// Bytes of the fewest places for `blocks`.
    fn needed_bytes(&self, blocks: u32) -> u64 {
        self.bytes(capacity::physical_for(blocks))
    }
}

/// The blocks for which a group with this number of places has room.
pub(super) fn room(places: u32) -> u32 {
    match places {
        0 => 0,
        places => places - capacity::reserve(places).min(places),
    }
}

impl LentCapacity {
    /// `None` for one group, and for a capacity that is too small or too large to be lent.
    pub(super) fn divide(
        capacity_bytes: u64,
        groups: &[TierGroup],
        manifest_bytes: u64,
    ) -> Option<LentCapacity> {
        if groups.len() < 2 {
            return None;
        }
        let fixed = share::divide(capacity_bytes, groups, manifest_bytes).ok()?;
        let forms: Vec<SlotForm> = groups.iter().map(share::form).collect();
        let records = |places: &[u32]| -> u64 {
            let pairs = places.iter().zip(&forms);
            pairs
                .map(|(places, form)| capacity::records_bytes(*places, form.record))
                .sum()
        };
        LENT_MOST.into_iter().find_map(|most| {
            let places: Vec<u32> = fixed
                .iter()
                .map(|share| share.saturating_mul(most))
                .collect();
            let all: u64 = places.iter().map(|places| u64::from(*places)).sum();
            let records_bytes = records(&places);
            let more = records_bytes.saturating_sub(records(&fixed));
            if all > u64::from(SLOTS_MAX) || more > capacity_bytes / RECORDS_PART {
                return None;
            }
            let rest = capacity_bytes.checked_sub(records_bytes)?;
            let shares = share::divide(rest, groups, manifest_bytes).ok()?;
            let data_bytes = rest.checked_sub(capacity::fixed_bytes(manifest_bytes)?)?;
            let of_group = |((places, share), form): ((u32, u32), &SlotForm)| {
                let slot_bytes = capacity::slot_bytes(form.block_bytes).ok()?;
                let whole = u32::try_from(data_bytes / slot_bytes).unwrap_or(u32::MAX);
                Some(LentGroup {
                    places: places.min(whole).max(share),
                    share,
                    slot_bytes,
                })
            };
            let groups = places.into_iter().zip(shares).zip(&forms).map(of_group);
            Some(LentCapacity {
                groups: groups.collect::<Option<_>>()?,
                data_bytes,
            })
        })
    }

    /// The number of places of each group.
    pub(super) fn places(&self) -> Vec<u32> {
        self.groups.iter().map(|group| group.places).collect()
    }

    /// How many of the blocks that were found in each group stay. If they do not fit together, each
    /// group keeps what is in its share, and the groups with more divide the rest in proportion.
    pub(super) fn fit(&self, found: &[u32]) -> Vec<u32> {
        let pairs = || self.groups.iter().zip(found);
        let needed: u64 = pairs()
            .map(|(group, found)| group.needed_bytes(*found))
            .sum();
        if needed <= self.data_bytes {
            return found.to_vec();
        }
        let base = |group: &LentGroup, found: u32| found.min(room(group.share));
        let based: u64 = pairs()
            .map(|(group, found)| group.needed_bytes(base(group, *found)))
            .sum();
        let rest = u128::from(self.data_bytes.saturating_sub(based));
        let excess = u128::from(needed.saturating_sub(based)).max(1);
        let stays = |(group, found): (&LentGroup, &u32)| {
            let base = base(group, *found);
            let least = group.needed_bytes(base);
            let more = u128::from(group.needed_bytes(*found) - least) * rest / excess;
            let places = u128::from(least).saturating_add(more) / u128::from(group.slot_bytes);
            let places = u32::try_from(places).unwrap_or(u32::MAX);
            room(places.max(PHYSICAL_MIN)).min(*found)
        };
        pairs().map(stays).collect()
    }
}

#[cfg(test)]
mod tests {
    use kvtile_testkit::disk::SplitMix64;

    use super::{
        super::share::tests::{MANIFEST, group},
        *,
    };

    /// All files, if the groups own all data bytes.
    fn most_bytes(lent: &LentCapacity, groups: &[TierGroup]) -> u64 {
        let records =
            lent.groups.iter().zip(groups).map(|(lent, group)| {
                capacity::records_bytes(lent.places, share::form(group).record)
            });
        capacity::fixed_bytes(MANIFEST).unwrap() + records.sum::<u64>() + lent.data_bytes
    }

    #[test]
    fn one_group_and_small_capacities_lend_nothing() {
        let two = [group("a", 4096, None), group("b", 4096, None)];
        assert_eq!(LentCapacity::divide(1 << 30, &two[..1], MANIFEST), None);
        assert_eq!(LentCapacity::divide(1000, &two, MANIFEST), None);
        assert!(LentCapacity::divide(1 << 30, &two, MANIFEST).is_some());
    }

    #[test]
    fn random_divisions_fit_and_every_group_can_own_its_share() {
        for seed in 0..200 {
            let mut numbers = SplitMix64::new(seed);
            let groups: Vec<TierGroup> = (0..2 + numbers.index(4))
                .map(|index| {
                    let share = [None, Some(0.7), Some(1.0), Some(40.0)][numbers.index(4)];
                    group(&index.to_string(), 1 + numbers.below(1 << 17), share)
                })
                .collect();
            let capacity_bytes = (1 << 20) + numbers.below(1 << 30);
            let Some(lent) = LentCapacity::divide(capacity_bytes, &groups, MANIFEST) else {
                continue;
            };
            assert!(most_bytes(&lent, &groups) <= capacity_bytes, "seed {seed}");
            let shares: u64 = lent.groups.iter().map(LentGroup::share_bytes).sum();
            assert!(shares <= lent.data_bytes, "seed {seed}");
            assert!(lent.data_bytes >= capacity_bytes * 8 / 10, "seed {seed}");
            for group in &lent.groups {
                assert!(group.share >= PHYSICAL_MIN && group.places >= group.share);
            }
            // What was found never exceeds the data, and what fits together stays.
            let found: Vec<u32> = lent
                .groups
                .iter()
                .map(|group| {
                    u32::try_from(numbers.below(u64::from(room(group.places)) + 1)).unwrap()
                })
                .collect();
            let stays = lent.fit(&found);
            let needed = |blocks: &[u32]| -> u64 {
                let pairs = lent.groups.iter().zip(blocks);
                pairs
                    .map(|(group, blocks)| group.needed_bytes(*blocks))
                    .sum()
            };
            assert!(
                needed(&stays) <= lent.data_bytes,
                "seed {seed}: {found:?} to {stays:?}"
            );
            if needed(&found) <= lent.data_bytes {
                assert_eq!(stays, found);
            }
            for ((group, found), stays) in lent.groups.iter().zip(&found).zip(&stays) {
                assert!(*stays <= *found && *stays >= (*found).min(room(group.share)));
            }
        }
    }
}
