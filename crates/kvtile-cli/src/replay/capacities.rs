//! The capacities of a replay for which the user gives none.

/// The first default capacity is at most this part of the trace's distinct blocks.
const SMALLEST_PART: u32 = 40;

/// Host memory of the largest default capacity where a replay moves bytes.
const HOST_BYTES_MAX: u64 = 2 << 30;

/// Capacities that fit a trace: the numbers 1, 2 and 5 times a power of ten from 1/40 of its distinct blocks
/// on, and all of its blocks. A replay with blocks of `block_bytes` leaves out those that need more than
/// 2 GiB of host memory, except the smallest.
pub(super) fn of_trace(distinct: usize, most: u32, block_bytes: Option<u64>) -> Vec<u32> {
    let all = u32::try_from(distinct).unwrap_or(most).clamp(1, most);
    let round = (0..10).flat_map(|power| [1, 2, 5].map(|digit| digit * 10_u64.pow(power)));
    let round: Vec<u32> = round
        .filter_map(|blocks| u32::try_from(blocks).ok())
        .collect();
    let smallest = all / SMALLEST_PART;
    let start = round
        .iter()
        .rposition(|&blocks| blocks <= smallest)
        .unwrap_or(0);
    let below = round
        .into_iter()
        .skip(start)
        .take_while(|&blocks| blocks < all);
    let mut capacities: Vec<u32> = below.collect();
    // Next to all blocks, a capacity that is nearly as large shows nothing more.
    if capacities.len() > 1 && capacities.last().is_some_and(|&last| last > all / 10 * 9) {
        capacities.pop();
    }
    capacities.push(all);
    if let Some(bytes) = block_bytes {
        let fits = |blocks: u32| u64::from(blocks).saturating_mul(bytes) <= HOST_BYTES_MAX;
        let count = capacities
            .iter()
            .take_while(|&&blocks| fits(blocks))
            .count();
        capacities.truncate(count.max(1));
    }
    capacities
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOST: u32 = 1 << 26;

    #[test]
    fn capacities_span_from_a_fortieth_to_all_blocks_of_the_trace() {
        assert_eq!(
            of_trace(100_131, MOST, None),
            [2_000, 5_000, 10_000, 20_000, 50_000, 100_131]
        );
        assert_eq!(
            of_trace(6_055, MOST, None),
            [100, 200, 500, 1_000, 2_000, 5_000, 6_055]
        );
        assert_eq!(of_trace(1, MOST, None), [1]);
        assert_eq!(of_trace(2, MOST, None), [1, 2]);
        assert_eq!(of_trace(51, MOST, None), [1, 2, 5, 10, 20, 51]);
        for distinct in (1..3_000).chain([1 << 20, usize::MAX]) {
            let capacities = of_trace(distinct, MOST, None);
            let all = u32::try_from(distinct).unwrap_or(MOST).min(MOST);
            assert!(
                capacities.is_sorted_by(|a, b| a < b),
                "{distinct}: {capacities:?}"
            );
            assert_eq!(capacities.last(), Some(&all), "{distinct}");
            assert!(capacities.len() <= 8, "{distinct}: {capacities:?}");
            let small = capacities[0] == 1 || capacities[0] <= all / SMALLEST_PART;
            assert!(small, "{distinct}: {capacities:?}");
        }
    }

    #[test]
    fn capacities_of_a_replay_with_bytes_fit_two_gibibytes() {
        let of = |block_bytes| of_trace(100_131, MOST, Some(block_bytes));
        assert_eq!(of(65_536), [2_000, 5_000, 10_000, 20_000]);
        assert_eq!(of(4_096), of_trace(100_131, MOST, None));
        assert_eq!(of(1 << 30), [2_000]);
    }
}
