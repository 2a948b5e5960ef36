//! Times of rounds, and statistics over them.

use std::time::Duration;

/// Times of one contender, one per round.
#[derive(Clone, Debug, Default)]
pub(crate) struct RoundTimes(Vec<Duration>);

impl RoundTimes {
    pub(crate) fn add(&mut self, time: Duration) {
        self.0.push(time);
    }

    /// The median of an odd number of times.
    pub(crate) fn median(&self) -> Duration {
        let mut sorted = self.0.clone();
        sorted.sort_unstable();
        sorted.get(sorted.len() / 2).copied().unwrap_or_default()
    }

    /// Longest minus shortest, as a part of the median.
    pub(crate) fn spread(&self) -> f64 {
        let longest = self.0.iter().max().copied().unwrap_or_default();
        let shortest = self.0.iter().min().copied().unwrap_or_default();
        (longest - shortest).as_secs_f64() / seconds(self.median())
    }

    /// 10^9 bytes per second, by the median.
    pub(crate) fn gb_per_s(&self, bytes: f64) -> f64 {
        bytes / seconds(self.median()) / 1e9
    }
}

/// Seconds, above zero, to divide by.
pub(crate) fn seconds(time: Duration) -> f64 {
    time.as_secs_f64().max(1e-9)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_counts() {
        let mut times = RoundTimes::default();
        for milliseconds in [30, 10, 20] {
            times.add(Duration::from_millis(milliseconds));
        }
        assert_eq!(times.median(), Duration::from_millis(20));
        assert!((times.spread() - 1.0).abs() < 1e-9);
        assert!((times.gb_per_s(2e7) - 1.0).abs() < 1e-9);
    }
}
