//! Numbers from a seed: the same seed gives the same numbers on every machine.

/// Numbers from a seed.
#[derive(Clone, Copy, Debug)]
pub struct Numbers(u64);

impl Numbers {
    /// The numbers of `seed`.
    #[must_use]
    pub fn new(seed: u64) -> Numbers {
        Numbers(scramble(seed))
    }

    /// The next number.
    pub fn any(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        scramble(self.0)
    }

    /// The next number below `limit`; 0 where that is 0.
    pub fn below(&mut self, limit: u64) -> u64 {
        let wide = u128::from(self.any()) * u128::from(limit);
        u64::try_from(wide >> 64).unwrap_or(0)
    }

    /// The next index of something with `len` elements; 0 where it has none.
    pub fn index(&mut self, len: usize) -> usize {
        usize::try_from(self.below(len as u64)).unwrap_or(0)
    }

    /// True once in `of` times; never where that is 0.
    pub fn once_in(&mut self, of: u64) -> bool {
        of > 0 && self.below(of) == 0
    }
}

/// Scrambles a number; the finalizer of SplitMix64.
fn scramble(number: u64) -> u64 {
    let mut z = number;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
