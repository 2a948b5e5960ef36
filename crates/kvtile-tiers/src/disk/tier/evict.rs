//! Evicts blocks of several groups fairly.

use kvtile_blocks::Tick;

use super::group::DiskGroup;

/// Evicts up to `blocks` blocks, and returns how many. Each group loses a part in proportion to the
/// blocks that it has, the least valuable of the group. Blocks that no group's part covers because
/// of rounding come from the groups with the most blocks; those that a group cannot evict, because
/// they are in use, come from the groups after and before it.
pub(super) fn evict(groups: &[DiskGroup], blocks: usize, now: Tick) -> usize {
    let present: Vec<usize> = groups.iter().map(|group| group.pool.cached()).collect();
    let mut evicted = 0;
    for (group, part) in groups.iter().zip(parts(&present, blocks)) {
        if part > 0 {
            evicted += group.evict(part, now);
        }
    }
    for group in groups {
        let left = blocks - evicted.min(blocks);
        if left > 0 {
            evicted += group.evict(left, now);
        }
    }
    evicted
}

/// Divides `blocks` in proportion to `present`, at most all that are present.
fn parts(present: &[usize], blocks: usize) -> Vec<usize> {
    let all: u128 = present.iter().map(|count| *count as u128).sum();
    let blocks = (blocks as u128).min(all);
    // A part is at most `present`, so it is a `usize`.
    let part = |count: &usize| {
        let part = (blocks * *count as u128).checked_div(all).unwrap_or(0);
        usize::try_from(part).unwrap_or(*count)
    };
    let mut parts: Vec<usize> = present.iter().map(part).collect();
    let given: u128 = parts.iter().map(|part| *part as u128).sum();
    let mut left = blocks - given;
    let mut by_present: Vec<(&mut usize, usize)> =
        parts.iter_mut().zip(present.iter().copied()).collect();
    by_present.sort_by_key(|(_, present)| std::cmp::Reverse(*present));
    for (part, present) in by_present {
        if left > 0 && *part < present {
            *part += 1;
            left -= 1;
        }
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::parts;

    #[test]
    fn parts_are_in_proportion_and_add_up() {
        assert_eq!(parts(&[60, 30, 10], 10), [6, 3, 1]);
        assert_eq!(parts(&[60, 30, 10], 1), [1, 0, 0]);
        assert_eq!(parts(&[60, 30, 10], 5), [4, 1, 0]);
        assert_eq!(parts(&[60, 30, 10], 99), [60, 30, 9]);
        assert_eq!(parts(&[60, 30, 10], usize::MAX), [60, 30, 10]);
        assert_eq!(parts(&[0, 3], 2), [0, 2]);
        assert_eq!(parts(&[0, 0], 2), [0, 0]);
        assert_eq!(parts(&[7], 3), [3]);
        for blocks in 0..40 {
            let sum: usize = parts(&[11, 11, 7, 1], blocks).iter().sum();
            assert_eq!(sum, blocks.min(30));
        }
    }
}
