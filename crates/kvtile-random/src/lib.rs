//! Seeded random numbers: the same seed gives the same numbers on every machine and in every version.
//!
//! For tests, generated data and benchmarks, whose results a seed reproduces. The generator is SplitMix64
//! (Steele, Lea, Flood: Fast splittable pseudorandom number generators, OOPSLA 2014), which is not
//! cryptographically secure. The crate has no dependencies, so every other crate's tests can use it.
#![forbid(unsafe_code)]

/// The increment of the state for each number: 2^64 divided by the golden ratio, made odd.
const GAMMA: u64 = 0x9e37_79b9_7f4a_7c15;

/// A pseudorandom number generator.
///
/// ```
/// use kvtile_random::SplitMix64;
///
/// let mut numbers = SplitMix64::new(7);
/// let order = numbers.order(5);
/// assert!(numbers.below(10) < 10);
/// assert_eq!(SplitMix64::new(7).order(5), order);
/// ```
#[derive(Clone, Copy, Debug)]
pub struct SplitMix64(u64);

impl SplitMix64 {
    /// A generator that starts from `seed`.
    #[must_use]
    pub const fn new(seed: u64) -> SplitMix64 {
        SplitMix64(seed)
    }

    /// The next number.
    pub const fn any(&mut self) -> u64 {
        let number = mix(self.0);
        self.0 = self.0.wrapping_add(GAMMA);
        number
    }

    /// The next number below `limit`; 0 if `limit` is 0.
    pub fn below(&mut self, limit: u64) -> u64 {
        let wide = u128::from(self.any()) * u128::from(limit);
        // The upper half of the product.
        u64::try_from(wide >> 64).unwrap_or(0)
    }

    /// A random index into `len` elements; 0 if `len` is 0.
    pub fn index(&mut self, len: usize) -> usize {
        // Below `len`, so it fits.
        usize::try_from(self.below(len as u64)).unwrap_or(0)
    }

    /// True with probability 1 in `of`; never if `of` is 0.
    pub fn once_in(&mut self, of: u64) -> bool {
        of > 0 && self.below(of) == 0
    }

    /// The numbers below `count` in a random order.
    pub fn order(&mut self, count: usize) -> Vec<usize> {
        let mut order: Vec<usize> = (0..count).collect();
        for last in (1..count).rev() {
            order.swap(last, self.index(last + 1));
        }
        order
    }

    /// Fills `bytes` with random bytes.
    pub fn fill(&mut self, bytes: &mut [u8]) {
        for chunk in bytes.chunks_mut(8) {
            for (to, from) in chunk.iter_mut().zip(self.any().to_le_bytes()) {
                *to = from;
            }
        }
    }
}

/// Mixes the bits of a number: returns the first number of the seed `number`. It is a bijection.
#[must_use]
pub const fn mix(number: u64) -> u64 {
    let z = number.wrapping_add(GAMMA);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The values of the authors' reference program for the seed 1234567.
    #[test]
    fn the_numbers_are_those_of_splitmix64() {
        let mut numbers = SplitMix64::new(1_234_567);
        for expected in [
            6_457_827_717_110_365_317,
            3_203_168_211_198_807_973,
            9_817_491_932_198_370_423,
            4_593_380_528_125_082_431,
            16_408_922_859_458_223_821,
        ] {
            assert_eq!(numbers.any(), expected);
        }
        assert_eq!(mix(1_234_567), 6_457_827_717_110_365_317);
    }

    #[test]
    fn numbers_below_a_limit_are_all_reached_and_never_the_limit() {
        let mut numbers = SplitMix64::new(3);
        let mut counts = [0; 7];
        for _ in 0..7000 {
            counts[numbers.index(7)] += 1;
        }
        assert!(counts.iter().all(|count| (800..1200).contains(count)));
        assert_eq!((numbers.below(0), numbers.index(0)), (0, 0));
        assert_eq!((numbers.below(1), numbers.once_in(1)), (0, true));
        assert!(!numbers.once_in(0));
        assert!((0..100).any(|_| numbers.below(u64::MAX) > u64::MAX / 2));
    }

    #[test]
    fn orders_are_permutations_and_differ() {
        let mut numbers = SplitMix64::new(7);
        let (first, second) = (numbers.order(100), numbers.order(100));
        assert_ne!(first, second);
        let mut sorted = first.clone();
        sorted.sort_unstable();
        assert_eq!(sorted, (0..100).collect::<Vec<_>>());
        assert_eq!(SplitMix64::new(7).order(100), first);
        assert!(numbers.order(0).is_empty());
    }

    #[test]
    fn fill_covers_a_last_partial_chunk() {
        let mut bytes = [0; 13];
        SplitMix64::new(1).fill(&mut bytes);
        let [first, second] = [mix(1), mix(1u64.wrapping_add(GAMMA))].map(u64::to_le_bytes);
        assert_eq!(bytes[..8], first);
        assert_eq!(bytes[8..], second[..5]);
    }
}
