//! How the capacity of a folder is divided among its groups.
//!
//! ```text
//! capacity = fixed bytes + rest        fixed: folder, lock, manifests, once for all groups
//!   a group with a share s             rest * s / sum
//!   the n groups without a share       rest * n / sum, the same number of slots for each
//!   sum                                all shares + n
//! ```
//!
//! A group gets the slots that fit its part. Bytes of a part that no whole slot fills stay free, so
//! a larger capacity never takes a slot from any group. The arithmetic is exact: shares become
//! integer weights.

use kvtile_layout::broken;

use super::{
    capacity,
    capacity::{PHYSICAL_MIN, SLOTS_MAX, SlotForm},
    record::RecordForm,
};
use crate::{
    error::{SettingsError, TierError},
    tier::TierGroup,
};

/// The smallest and the largest share.
const SHARES: std::ops::RangeInclusive<f64> = 1e-6..=1e6;

/// Bits of a weight after the binary point: the weight of share 1 is 2^40.
const WEIGHT_BITS: u32 = 40;

/// Groups that divide a part of the capacity evenly: one group with a share, or all groups without.
#[derive(Debug, Default)]
struct CapacityPart<'a> {
    groups: Vec<&'a TierGroup>,
    weight: u128,
}

/// Refuses groups that a folder cannot have.
pub(crate) fn check_groups(groups: &[TierGroup]) -> Result<(), TierError> {
    let refused = |error| Err(TierError::Settings(error));
    if groups.is_empty() || groups.len() > capacity::GROUPS_MAX {
        return refused(SettingsError::GroupCount {
            groups: groups.len(),
            most: capacity::GROUPS_MAX,
        });
    }
    for (index, group) in groups.iter().enumerate() {
        let name = group.name.clone();
        if !TierGroup::is_name(&name) {
            let name = name.chars().take(TierGroup::NAME_BYTES_MAX).collect();
            return refused(SettingsError::GroupName { name });
        }
        if groups.iter().take(index).any(|other| other.name == name) {
            return refused(SettingsError::GroupTwice { name });
        }
        if let Some(share) = group.share
            && !SHARES.contains(&share)
        {
            return refused(SettingsError::GroupShare { group: name, share });
        }
        capacity::slot_bytes(group.identity.block_bytes())?;
    }
    Ok(())
}

/// The number of slots of each group, erased ones included.
pub(super) fn divide(
    capacity_bytes: u64,
    groups: &[TierGroup],
    manifest_bytes: u64,
) -> Result<Vec<u32>, TierError> {
    if let [group] = groups {
        let slots = capacity::physical_slots(capacity_bytes, form(group), manifest_bytes)?;
        return Ok(vec![slots]);
    }
    let fixed = capacity::fixed_bytes(manifest_bytes).unwrap_or(u64::MAX);
    let division = CapacityDivision::new(groups);
    let rest = u128::from(capacity_bytes.saturating_sub(fixed));
    let slots = division.slots(rest);
    let pairs = || division.parts.iter().zip(&slots);
    if let Some((part, _)) = pairs().find(|(_, slots)| **slots < PHYSICAL_MIN) {
        let group = part.largest();
        return Err(TierError::Settings(SettingsError::GroupTooSmall {
            group: group.name.clone(),
            block_bytes: group.identity.block_bytes(),
            capacity_bytes,
            needed_bytes: with_fixed(fixed, division.least()),
        }));
    }
    if !division.is_small_enough(&slots) {
        let group = match pairs().max_by_key(|(_, slots)| **slots) {
            Some((part, _)) => part.largest(),
            None => broken(format_args!("a folder without groups")),
        };
        return Err(TierError::Settings(SettingsError::GroupTooLarge {
            group: group.name.clone(),
            block_bytes: group.identity.block_bytes(),
            capacity_bytes,
            blocks_max: SLOTS_MAX,
            most_bytes: with_fixed(fixed, division.most(rest)),
        }));
    }
    let of_group = |group: &TierGroup| {
        let mut found = pairs();
        found.find_map(|(part, slots)| part.has(group).then_some(*slots))
    };
    Ok(groups.iter().filter_map(of_group).collect())
}

/// The sizes of a group's slots.
pub(super) fn form(group: &TierGroup) -> SlotForm {
    SlotForm {
        block_bytes: group.identity.block_bytes(),
        record: RecordForm::of(&group.identity.pieces),
    }
}

/// All parts of a capacity.
struct CapacityDivision<'a> {
    parts: Vec<CapacityPart<'a>>,
    /// The sum of their weights.
    sum: u128,
}

impl<'a> CapacityDivision<'a> {
    fn new(groups: &'a [TierGroup]) -> CapacityDivision<'a> {
        let mut parts: Vec<CapacityPart<'_>> = Vec::new();
        let mut even = CapacityPart::default();
        for group in groups {
            match group.share {
                Some(share) => parts.push(CapacityPart {
                    groups: vec![group],
                    weight: share_weight(share),
                }),
                None => {
                    even.groups.push(group);
                    even.weight += 1 << WEIGHT_BITS;
                }
            }
        }
        if !even.groups.is_empty() {
            parts.push(even);
        }
        let sum = parts.iter().map(|part| part.weight).sum();
        CapacityDivision { parts, sum }
    }

    /// The slots of each group of each part, in `rest` bytes for all.
    fn slots(&self, rest: u128) -> Vec<u32> {
        let of_part = |part: &CapacityPart<'_>| part.slots(rest * part.weight / self.sum);
        self.parts.iter().map(of_part).collect()
    }

    /// Whether all groups together have at most [`SLOTS_MAX`] slots.
    fn is_small_enough(&self, slots: &[u32]) -> bool {
        let of_part =
            |(part, slots): (&CapacityPart<'_>, &u32)| part.groups.len() as u64 * u64::from(*slots);
        let all: u64 = self.parts.iter().zip(slots).map(of_part).sum();
        all <= u64::from(SLOTS_MAX)
    }

    /// The fewest bytes in which each group has its fewest slots.
    fn least(&self) -> u128 {
        let of_part =
            |part: &CapacityPart<'_>| (part.bytes(PHYSICAL_MIN) * self.sum).div_ceil(part.weight);
        self.parts.iter().map(of_part).max().unwrap_or(0)
    }

    /// The most bytes in which all groups together have few enough slots; `too_many` are more.
    fn most(&self, too_many: u128) -> u128 {
        let (mut most, mut too_many) = (0, too_many);
        while too_many - most > 1 {
            let middle = most + (too_many - most) / 2;
            match self.is_small_enough(&self.slots(middle)) {
                true => most = middle,
                false => too_many = middle,
            }
        }
        most
    }
}

impl<'a> CapacityPart<'a> {
    fn has(&self, group: &TierGroup) -> bool {
        self.groups.iter().any(|ours| ours.name == group.name)
    }

    /// Bytes of all of its groups with `slots` slots each.
    fn bytes(&self, slots: u32) -> u128 {
        let bytes = |group: &&TierGroup| {
            u128::from(capacity::group_bytes(slots, form(group)).unwrap_or(u64::MAX))
        };
        self.groups.iter().map(bytes).sum()
    }

    /// The most slots for each group in `budget` bytes.
    fn slots(&self, budget: u128) -> u32 {
        capacity::most_slots(|slots| self.bytes(slots) <= budget)
    }

    /// Its group with the largest blocks.
    fn largest(&self) -> &'a TierGroup {
        let largest = self
            .groups
            .iter()
            .max_by_key(|group| group.identity.block_bytes());
        match largest {
            Some(group) => group,
            None => broken(format_args!("a part of the capacity without groups")),
        }
    }
}

fn with_fixed(fixed: u64, rest: u128) -> u64 {
    let all = rest.saturating_add(u128::from(fixed));
    u64::try_from(all).unwrap_or(u64::MAX)
}

/// `share` times 2^40, rounded down. A share is in [`SHARES`], so the weight is neither 0 nor too
/// large.
pub(crate) fn share_weight(share: f64) -> u128 {
    const FRACTION_BITS: u32 = 52;
    const EXPONENT_BIAS: u32 = 1023;
    let bits = share.to_bits();
    let fraction = u128::from(bits & ((1 << FRACTION_BITS) - 1)) | 1 << FRACTION_BITS;
    // `share` is fraction * 2^(exponent - bias - 52).
    let exponent = u32::try_from(bits >> FRACTION_BITS & 0x7ff).unwrap_or(0);
    (fraction << (exponent + WEIGHT_BITS).saturating_sub(EXPONENT_BIAS)) >> FRACTION_BITS
}

#[cfg(test)]
pub(super) mod tests {
    use kvtile_layout::{
        Shape, StridedLayout, Unit,
        identity::{Identity, LayoutIdentity},
    };
    use kvtile_testkit::disk::SplitMix64;

    use super::*;
    use crate::tier::{BlockPieces, StoreIdentity};

    /// Bytes of the manifest.
    pub(in super::super) const MANIFEST: u64 = 5000;

    /// A group with blocks of so many bytes.
    pub(in super::super) fn group(
        name: &str,
        block_bytes: u64,
        share: impl Into<Option<f64>>,
    ) -> TierGroup {
        let unit = Unit::new("bf16", 2, 1).unwrap();
        let shape = Shape::key_value(1, 2, 16, 2, 64, &unit).unwrap();
        let layout = StridedLayout::resolve(&"BLHKNC".parse().unwrap(), &shape, 1).unwrap();
        let identity = StoreIdentity {
            logical: Identity::new("toy", "1", &shape).unwrap(),
            block_layout: LayoutIdentity::of_block(&layout),
            pieces: BlockPieces::whole(block_bytes),
        };
        TierGroup::new(name, identity).share(share)
    }

    fn total(groups: &[TierGroup], slots: &[u32]) -> u64 {
        let of = |(group, slots): (&TierGroup, &u32)| {
            capacity::group_bytes(*slots, form(group)).unwrap()
        };
        let slots: u64 = groups.iter().zip(slots).map(of).sum();
        capacity::fixed_bytes(MANIFEST).unwrap() + slots
    }

    #[test]
    fn a_weight_is_the_share_times_two_to_the_forty() {
        assert_eq!(share_weight(1.0), 1 << 40);
        assert_eq!(share_weight(3.0), 3 << 40);
        assert_eq!(share_weight(0.5), 1 << 39);
        assert_eq!(share_weight(0.75), 3 << 38);
        assert_eq!(share_weight(1e6), 1_000_000 << 40);
        assert_eq!(share_weight(1e-6), 1_099_511);
    }

    #[test]
    fn groups_without_a_share_have_the_same_number_of_slots_and_fill_the_capacity_to_the_byte() {
        let groups = [
            group("full", 1 << 20, None),
            group("swa", 70_000, None),
            group("state", 1, None),
        ];
        for slots in [2, 3, 64, 65, 1000] {
            let exact = total(&groups, &[slots; 3]);
            assert_eq!(divide(exact, &groups, MANIFEST).unwrap(), [slots; 3]);
            let less = divide(exact - 1, &groups, MANIFEST);
            match slots {
                2 => assert!(matches!(
                    less,
                    Err(TierError::Settings(SettingsError::GroupTooSmall {
                        group,
                        block_bytes: 0x10_0000,
                        needed_bytes,
                        ..
                    })) if group == "full" && needed_bytes == exact
                )),
                _ => assert_eq!(less.unwrap(), [slots - 1; 3]),
            }
        }
    }

    #[test]
    fn shares_divide_the_bytes_and_groups_without_one_count_one_on_average() {
        let groups = [
            group("a", 4096, 3.0),
            group("b", 8192, 1.0),
            group("c", 4096, None),
            group("d", 12_288, None),
        ];
        let slots = divide(600 << 20, &groups, MANIFEST).unwrap();
        let bytes: Vec<f64> = groups
            .iter()
            .zip(&slots)
            .map(|(group, slots)| capacity::group_bytes(*slots, form(group)).unwrap() as f64)
            .collect();
        let near = |a: f64, b: f64| (a / b - 1.0).abs() < 0.001;
        assert!(near(bytes[0], 300e0 * 1_048_576.0), "{bytes:?}");
        assert!(near(bytes[1], 100e0 * 1_048_576.0), "{bytes:?}");
        assert!(near(bytes[2] + bytes[3], 200e0 * 1_048_576.0), "{bytes:?}");
        assert_eq!(slots[2], slots[3]);
    }

    #[test]
    fn random_divisions_stay_within_the_capacity_and_never_shrink_a_group_when_it_grows() {
        for seed in 0..300 {
            let mut numbers = SplitMix64::new(seed);
            let groups: Vec<TierGroup> = (0..2 + numbers.index(5))
                .map(|index| {
                    let share = [None, Some(1e-3), Some(0.7), Some(1.0), Some(40.0)];
                    let share = share[numbers.index(5)];
                    group(&index.to_string(), 1 + numbers.below(1 << 16), share)
                })
                .collect();
            let mut before = vec![0; groups.len()];
            let mut capacity_bytes = 40_000;
            for _ in 0..40 {
                capacity_bytes += numbers.below(capacity_bytes / 4);
                match divide(capacity_bytes, &groups, MANIFEST) {
                    Ok(slots) => {
                        assert!(total(&groups, &slots) <= capacity_bytes, "seed {seed}");
                        let grown = slots.iter().zip(&before).all(|(now, was)| now >= was);
                        assert!(grown, "seed {seed}: {before:?} to {slots:?}");
                        before = slots;
                    }
                    Err(TierError::Settings(SettingsError::GroupTooSmall {
                        needed_bytes, ..
                    })) => {
                        assert!(before.iter().all(|slots| *slots == 0), "seed {seed}");
                        let slots = divide(needed_bytes, &groups, MANIFEST).unwrap();
                        assert!(slots.iter().all(|slots| *slots >= 2), "seed {seed}");
                        assert!(slots.contains(&2), "seed {seed}");
                        assert!(divide(needed_bytes - 1, &groups, MANIFEST).is_err());
                    }
                    Err(error) => panic!("seed {seed}: {error}"),
                }
            }
        }
    }

    #[test]
    fn a_capacity_for_too_many_slots_names_the_group_with_the_most_and_the_largest_capacity() {
        let groups = [group("full", 1 << 20, 1.0), group("state", 64, 1.0)];
        let refused = divide(1 << 45, &groups, MANIFEST);
        let Err(TierError::Settings(SettingsError::GroupTooLarge {
            group, most_bytes, ..
        })) = refused
        else {
            panic!("{refused:?}");
        };
        assert_eq!(group, "state");
        let all = |slots: Vec<u32>| slots.iter().map(|slots| u64::from(*slots)).sum::<u64>();
        let most = all(divide(most_bytes, &groups, MANIFEST).unwrap());
        assert_eq!(most, u64::from(SLOTS_MAX));
        assert!(divide(most_bytes + 1, &groups, MANIFEST).is_err());
        // Groups without shares have half of the slots each.
        let groups = groups.map(|group| group.share(None));
        let Err(TierError::Settings(SettingsError::GroupTooLarge { most_bytes, .. })) =
            divide(u64::MAX, &groups, MANIFEST)
        else {
            panic!("a capacity for all of them");
        };
        let most = divide(most_bytes, &groups, MANIFEST).unwrap();
        assert_eq!(most, [SLOTS_MAX / 2; 2]);
    }

    #[test]
    fn names_shares_and_counts_that_no_folder_can_have_are_refused() {
        let refused = |groups: &[TierGroup]| match check_groups(groups) {
            Err(TierError::Settings(error)) => error,
            other => panic!("{other:?}"),
        };
        assert!(matches!(
            refused(&[]),
            SettingsError::GroupCount {
                groups: 0,
                most: 64
            }
        ));
        let many: Vec<TierGroup> = (0..65)
            .map(|index: u32| group(&index.to_string(), 4096, None))
            .collect();
        assert!(check_groups(&many[..64]).is_ok());
        assert!(matches!(
            refused(&many),
            SettingsError::GroupCount { groups: 65, .. }
        ));
        let twice = [group("kv", 64, None), group("kv", 65, None)];
        assert!(matches!(refused(&twice), SettingsError::GroupTwice { name } if name == "kv"));
        for name in ["", "a b", "a\n", "é", &"x".repeat(65)] {
            let error = refused(&[group(name, 64, None)]);
            assert!(matches!(error, SettingsError::GroupName { .. }), "{name:?}");
        }
        for share in [0.0, -1.0, f64::NAN, f64::INFINITY, 1e7, 1e-300] {
            let error = refused(&[group("kv", 64, share)]);
            assert!(
                matches!(&error, SettingsError::GroupShare { group, .. } if group == "kv"),
                "{error}"
            );
        }
        assert!(matches!(
            refused(&[group("kv", 1 << 41, None)]),
            SettingsError::BlockBytes { .. }
        ));
    }
}
