//! Vector clocks: what each actor of the stand-in knows to have happened.

/// An actor: the host (0), a stream, or the part of a stream that reads sources ahead of its order.
pub(crate) type ActorNumber = usize;

/// The host.
pub(crate) const HOST: ActorNumber = 0;

/// For each actor, how many of its steps are known to have ended.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct VectorClock(Vec<u64>);

impl VectorClock {
    /// Steps of `actor` that are known.
    pub(crate) fn of(&self, actor: ActorNumber) -> u64 {
        self.0.get(actor).copied().unwrap_or(0)
    }

    /// Knows step `epoch` of `actor`, and those before.
    pub(crate) fn learn(&mut self, actor: ActorNumber, epoch: u64) {
        if self.0.len() <= actor {
            self.0.resize(actor + 1, 0);
        }
        if let Some(known) = self.0.get_mut(actor) {
            *known = epoch.max(*known);
        }
    }

    /// Knows what `other` knows.
    pub(crate) fn join(&mut self, other: &VectorClock) {
        for (actor, epoch) in other.0.iter().enumerate() {
            self.learn(actor, *epoch);
        }
    }

    /// A step of `actor`: its number.
    pub(crate) fn step(&mut self, actor: ActorNumber) -> u64 {
        let epoch = self.of(actor) + 1;
        self.learn(actor, epoch);
        epoch
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clocks_learn_join_and_step() {
        let (mut a, mut b) = (VectorClock::default(), VectorClock::default());
        assert_eq!((a.step(1), a.step(1), b.step(2)), (1, 2, 1));
        b.join(&a);
        assert_eq!((b.of(1), b.of(2), a.of(2), a.of(99)), (2, 1, 0, 0));
        b.learn(1, 1);
        assert_eq!(b.of(1), 2);
    }
}
