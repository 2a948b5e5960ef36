//! Times of rounds: medians with their spread.

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::error::GpuCheckError;

/// Most repetitions inside a round.
const REPEATS_MAX: u32 = 1000;

/// Seconds of the rounds of one measurement.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct RoundSpread {
    /// The median.
    pub median: f64,
    /// The shortest.
    pub shortest: f64,
    /// The longest.
    pub longest: f64,
    /// Number of rounds.
    pub rounds: u32,
    /// How often a round repeated the work; its time is divided by them.
    pub repeats: u32,
}

impl RoundSpread {
    /// Of times in any order; an even number has the mean of the middle two as its median.
    pub(crate) fn of(mut times: Vec<f64>, repeats: u32) -> RoundSpread {
        times.sort_by(f64::total_cmp);
        let at = |index: usize| times.get(index).copied().unwrap_or(0.0);
        let count = times.len();
        let middle = match count % 2 {
            _ if count == 0 => 0.0,
            1 => at(count / 2),
            _ => f64::midpoint(at(count / 2), at(count / 2 - 1)),
        };
        RoundSpread {
            median: middle,
            shortest: at(0),
            longest: at(count.saturating_sub(1)),
            rounds: u32::try_from(count).unwrap_or(u32::MAX),
            repeats,
        }
    }

    /// Longest minus shortest, as a part of the median.
    #[must_use]
    pub fn spread(&self) -> f64 {
        match self.median > 0.0 {
            true => (self.longest - self.shortest) / self.median,
            false => 0.0,
        }
    }
}

/// How rounds are taken.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RoundSettings {
    pub(crate) rounds: u32,
    pub(crate) shortest: Duration,
    /// No round starts after this, apart from the first.
    pub(crate) deadline: Instant,
}

impl RoundSettings {
    /// Times `work`, which returns when its effects are there. One execution goes ahead and decides how often a round
    /// repeats the work.
    pub(crate) fn time(
        &self,
        mut work: impl FnMut() -> Result<(), GpuCheckError>,
    ) -> Result<RoundSpread, GpuCheckError> {
        let mut round = |repeats: u32| -> Result<Duration, GpuCheckError> {
            let start = Instant::now();
            for _ in 0..repeats {
                work()?;
            }
            Ok(start.elapsed())
        };
        let once = round(1)?.as_nanos().max(1);
        let repeats = self.shortest.as_nanos().div_ceil(once);
        let repeats = u32::try_from(repeats).unwrap_or(u32::MAX);
        let repeats = repeats.clamp(1, REPEATS_MAX);
        let mut times = Vec::new();
        for _ in 0..self.rounds.max(1) {
            if !times.is_empty() && Instant::now() >= self.deadline {
                break;
            }
            times.push(round(repeats)?.as_secs_f64() / f64::from(repeats));
        }
        Ok(RoundSpread::of(times, repeats))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_are_those_of_the_sorted_times() {
        let spread = RoundSpread::of(vec![3.0, 1.0, 2.0], 1);
        assert_eq!(
            (spread.median, spread.shortest, spread.longest),
            (2.0, 1.0, 3.0)
        );
        assert_eq!(spread.spread(), 1.0);
        assert_eq!(RoundSpread::of(vec![4.0, 1.0], 1).median, 2.5);
        assert_eq!(RoundSpread::of(Vec::new(), 1).median, 0.0);
    }

    #[test]
    fn short_work_is_repeated_and_late_rounds_are_left_out() {
        let mut calls = 0;
        let late = RoundSettings {
            rounds: 5,
            shortest: Duration::from_secs(1),
            deadline: Instant::now(),
        };
        let spread = late.time(|| {
            calls += 1;
            Ok(())
        });
        let spread = spread.unwrap();
        assert_eq!((spread.rounds, spread.repeats), (1, REPEATS_MAX));
        assert_eq!(calls, 1 + REPEATS_MAX);
    }
}
