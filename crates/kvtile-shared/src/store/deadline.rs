//! The time by which a call should return.

use std::time::{Duration, Instant};

/// The time by which a call should return. Time limits of sockets and requests follow from
/// [`left`](Deadline::left).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Deadline(Instant);

impl Deadline {
    /// The longest time that a deadline may be away.
    const MAX: Duration = Duration::from_hours(24 * 365);

    /// A deadline `within` from now; at most a year.
    #[must_use]
    pub fn within(within: Duration) -> Deadline {
        let now = Instant::now();
        let within = within.min(Deadline::MAX);
        // A clock that cannot count to the deadline gives one that is over.
        Deadline(now.checked_add(within).unwrap_or(now))
    }

    /// The time until the deadline; 0 when it is over.
    #[must_use]
    pub fn left(self) -> Duration {
        self.0.saturating_duration_since(Instant::now())
    }

    /// Whether the deadline is over.
    #[must_use]
    pub fn is_over(self) -> bool {
        self.left().is_zero()
    }

    /// The deadline as a point in time.
    #[must_use]
    pub fn instant(self) -> Instant {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_deadline_is_over_when_its_time_has_passed() {
        assert!(Deadline::within(Duration::ZERO).is_over());
        let later = Deadline::within(Duration::from_secs(600));
        assert!(!later.is_over() && later.left() <= Duration::from_secs(600));
        assert!(Deadline::within(Duration::MAX).left() <= Deadline::MAX);
    }
}
