//! The tables of a program: differences between addresses, which wrap.

use std::collections::HashMap;

use crate::{
    error::LowerError,
    shape::{DeviceLoop, LoopSide},
};

/// Most words of a table of combined loops.
pub(super) const TABLE_WORDS_MAX: u64 = 1 << 20;

/// Tables one after the other; equal ones are kept once.
#[derive(Debug, Default)]
pub(super) struct TableWords {
    words: Vec<u64>,
    known: HashMap<Vec<u64>, u64>,
}

impl TableWords {
    pub(super) fn into_words(self) -> Vec<u64> {
        self.words
    }

    /// The side of a loop with these differences, which begin with 0: a stride where they have one.
    pub(super) fn side(&mut self, differences: Vec<u64>) -> LoopSide {
        let stride = differences.get(1).copied().unwrap_or(0);
        let mut expected = 0u64;
        let is_stride = differences.iter().all(|&difference| {
            let fits = difference == expected;
            expected = expected.wrapping_add(stride);
            fits
        });
        if is_stride {
            return LoopSide::Stride(stride);
        }
        if let Some(&word) = self.known.get(&differences) {
            return LoopSide::Table(word);
        }
        let word = self.words.len() as u64;
        self.words.extend(&differences);
        self.known.insert(differences, word);
        LoopSide::Table(word)
    }

    /// The difference of iteration `index`.
    pub(super) fn difference(&self, side: LoopSide, index: u64) -> u64 {
        match side {
            LoopSide::Stride(stride) => stride.wrapping_mul(index),
            LoopSide::Table(word) => {
                let at = usize::try_from(word.saturating_add(index)).ok();
                at.and_then(|at| self.words.get(at))
                    .copied()
                    .unwrap_or_default()
            }
        }
    }

    /// The bitwise or of all differences of a side: what divides it divides them.
    pub(super) fn bits(&self, l: &DeviceLoop, side: LoopSide) -> u64 {
        match side {
            LoopSide::Stride(stride) => stride,
            LoopSide::Table(_) => (0..l.extent).fold(0, |bits, i| bits | self.difference(side, i)),
        }
    }

    /// Combines the shortest loops behind the first `kept` until there are at most `max` loops.
    pub(super) fn fuse(
        &mut self,
        loops: &mut Vec<DeviceLoop>,
        kept: usize,
        max: usize,
    ) -> Result<(), LowerError> {
        while loops.len() > max {
            let mut order: Vec<usize> = (kept..loops.len()).collect();
            order.sort_by_key(|&i| loops.get(i).map_or(0, |l| l.extent));
            let [Some(&first), Some(&second)] = [order.first(), order.get(1)] else {
                // Fewer than two loops are left to combine; `max` is above `kept`.
                return Ok(());
            };
            // Removing the later one first keeps the position of the other.
            let outer = loops.remove(first.max(second));
            let inner = loops.remove(first.min(second));
            let combinations = inner.extent.saturating_mul(outer.extent);
            if combinations > TABLE_WORDS_MAX {
                return Err(LowerError::TableTooLong {
                    combinations,
                    max: TABLE_WORDS_MAX,
                });
            }
            let mut side = |of: fn(&DeviceLoop) -> LoopSide| {
                let all = (0..outer.extent).flat_map(|o| (0..inner.extent).map(move |i| (o, i)));
                let differences = all.map(|(o, i)| {
                    let (outer, inner) = (
                        self.difference(of(&outer), o),
                        self.difference(of(&inner), i),
                    );
                    outer.wrapping_add(inner)
                });
                let differences = differences.collect();
                self.side(differences)
            };
            let fused = DeviceLoop {
                extent: combinations,
                source: side(|l| l.source),
                destination: side(|l| l.destination),
            };
            loops.push(fused);
        }
        Ok(())
    }
}
