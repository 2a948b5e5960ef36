//! Rounds: every contender runs once in each, and another one begins each time.

use std::time::Duration;

/// A contender: its name, and a round, which returns its time.
pub(crate) struct TurnContender<'a> {
    pub(crate) name: &'static str,
    /// The least share of the first contender's speed; `None` without a goal.
    pub(crate) goal: Option<f64>,
    pub(crate) round: Box<dyn FnMut(usize) -> Duration + 'a>,
}

/// The times of a contender, by round.
pub(crate) struct TurnTimes {
    pub(crate) name: &'static str,
    pub(crate) goal: Option<f64>,
    pub(crate) rounds: Vec<Duration>,
}

/// Runs all contenders `rounds` times, after a round that is not counted.
pub(crate) fn in_turns(rounds: usize, contenders: Vec<TurnContender<'_>>) -> Vec<TurnTimes> {
    let mut lines: Vec<(usize, TurnContender<'_>, Vec<Duration>)> = contenders
        .into_iter()
        .enumerate()
        .map(|(number, contender)| (number, contender, Vec::new()))
        .collect();
    for round in 0..=rounds {
        for (_, contender, times) in &mut lines {
            let time = (contender.round)(round);
            if round > 0 {
                times.push(time);
            }
        }
        lines.rotate_left(1);
    }
    lines.sort_by_key(|(number, _, _)| *number);
    let times = lines.into_iter().map(|(_, contender, rounds)| TurnTimes {
        name: contender.name,
        goal: contender.goal,
        rounds,
    });
    times.collect()
}
