//! Random orders, the same for the same seed everywhere.

/// SplitMix64.
#[derive(Clone, Debug)]
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Random {
        Random(seed)
    }

    /// The next 64 bits.
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// The numbers below `count` in a random order.
    pub(crate) fn order(&mut self, count: usize) -> Vec<usize> {
        let mut order: Vec<usize> = (0..count).collect();
        for last in (1..count).rev() {
            let other = self.next() % (last as u64 + 1);
            order.swap(last, usize::try_from(other).unwrap_or(last));
        }
        order
    }
}

/// Fills memory with bytes that differ everywhere.
pub(crate) fn fill(bytes: &mut [u8], seed: u64) {
    let mut random = Random::new(seed);
    for chunk in bytes.chunks_mut(8) {
        for (to, from) in chunk.iter_mut().zip(random.next().to_le_bytes()) {
            *to = from;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orders_are_permutations_and_differ() {
        let mut random = Random::new(7);
        let (first, second) = (random.order(100), random.order(100));
        assert_ne!(first, second);
        let mut sorted = first.clone();
        sorted.sort_unstable();
        assert_eq!(sorted, (0..100).collect::<Vec<_>>());
        assert_eq!(Random::new(7).order(100), first);
        assert!(random.order(0).is_empty());
    }
}
