//! The class of a block, which predicts its future use: how often it was used, how often requests
//! passed it over since, and the length of the answer that followed.

/// The number of kinds: a partial last block, five use counts of reused blocks, and six of new
/// blocks by the use count of their parent.
pub(super) const KINDS: usize = 12;

/// The number of pass-over counts: 0, 1, or more.
pub(super) const PASSES: usize = 3;

/// The number of answer lengths, two octaves each; 0 if unknown.
pub(super) const OUTPUTS: usize = 6;

/// The number of classes.
pub(super) const CLASSES: usize = KINDS * PASSES * OUTPUTS;

/// The cap of the use counter.
pub(super) const COUNT_MAX: u8 = 16;

/// The kind of a partial last block.
pub(super) const PARTIAL: u8 = 0;

/// A class, as a number below [`CLASSES`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct BlockClass(u8);

impl BlockClass {
    /// The class of a block of this kind that was just used.
    pub(super) fn new(kind: u8, output: u8) -> BlockClass {
        BlockClass(kind * 18 + output)
    }

    /// The class of a number below [`CLASSES`].
    pub(super) fn from_index(index: usize) -> BlockClass {
        BlockClass(u8::try_from(index).unwrap_or(0))
    }

    /// The class as an index.
    pub(super) fn index(self) -> usize {
        usize::from(self.0)
    }

    /// The kind, below [`KINDS`].
    pub(super) fn kind(self) -> u8 {
        self.0 / 18
    }

    /// How often requests passed it over, capped below [`PASSES`].
    pub(super) fn passes(self) -> u8 {
        self.0 / 6 % 3
    }

    /// The length of the answer, below [`OUTPUTS`].
    pub(super) fn output(self) -> u8 {
        self.0 % 6
    }

    /// The class after one more request passed the block over; `None` if that does not change it.
    pub(super) fn passed(self) -> Option<BlockClass> {
        (self.passes() < 2).then_some(BlockClass(self.0 + 6))
    }
}

/// The kind of a block that was used `count` times, at least twice.
pub(super) fn used(count: u8) -> u8 {
    match count {
        0..=2 => 1,
        3 => 2,
        4..=7 => 3,
        8..=15 => 4,
        _ => 5,
    }
}

/// The kind of a new block whose parent was used `count` times before this request; 0 without a
/// parent.
pub(super) fn new(count: u8) -> u8 {
    match count {
        0..=3 => 6 + count,
        4..=7 => 10,
        _ => 11,
    }
}

/// The class of an answer's length.
pub(super) fn output(tokens: u32) -> u8 {
    let bits = u32::BITS - tokens.leading_zeros();
    u8::try_from((bits / 2).min(5)).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_class_is_its_three_parts() {
        let mut seen = [false; CLASSES];
        for kind in 0..12 {
            for output in 0..6 {
                let mut class = Some(BlockClass::new(kind, output));
                let mut passes = 0;
                while let Some(now) = class {
                    assert_eq!(
                        (now.kind(), now.passes(), now.output()),
                        (kind, passes, output)
                    );
                    assert_eq!(BlockClass::from_index(now.index()), now);
                    assert!(!std::mem::replace(&mut seen[now.index()], true));
                    passes += 1;
                    class = now.passed();
                }
                assert_eq!(passes, 3);
            }
        }
        assert!(seen.iter().all(|&seen| seen));
    }

    #[test]
    fn kinds_follow_the_counts() {
        assert_eq!(
            [1, 2, 3, 4, 7, 8, 15, 16].map(used),
            [1, 1, 2, 3, 3, 4, 4, 5]
        );
        assert_eq!(
            [0, 1, 2, 3, 4, 7, 8, 16].map(new),
            [6, 7, 8, 9, 10, 10, 11, 11]
        );
        assert_eq!(
            [0, 1, 2, 15, 16, 1023, 1024, u32::MAX].map(output),
            [0, 0, 1, 2, 2, 5, 5, 5]
        );
    }
}
