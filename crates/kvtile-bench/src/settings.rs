//! What a run is asked to do.

use std::{path::PathBuf, time::Duration};

use crate::matrix::{Model, Pair};

/// Settings of a run; the default is the whole matrix.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Models instead of the matrix's.
    pub models: Vec<Model>,
    /// One pair instead of the matrix's.
    pub pair: Option<Pair>,
    /// Bytes that block strides are rounded up to.
    pub alignment: u64,
    /// Sizes instead of the matrix's, in bytes.
    pub bytes: Vec<u64>,
    /// Threads of transfers. Counts that cannot be had are left out, and the report says so.
    pub threads: Vec<u32>,
    /// Rounds of which the median counts; by default as many as fit the time of a cell, at least 3.
    pub rounds: Option<u32>,
    /// Seed of block orders and contents.
    pub seed: u64,
    /// Blocks in the order of their numbers instead of a random one.
    pub consecutive: bool,
    /// Only rows whose text has all of these.
    pub filters: Vec<String>,
    /// Less than a minute: fewer pairs, models and bytes.
    pub quick: bool,
    /// Rows for the plain ways.
    pub compare: bool,
    /// Where rows with files write theirs, and remove them.
    pub folder: PathBuf,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings {
            models: Vec::new(),
            pair: None,
            alignment: 1,
            bytes: Vec::new(),
            threads: vec![1, 2],
            rounds: None,
            seed: 1,
            consecutive: false,
            filters: Vec::new(),
            quick: false,
            compare: false,
            folder: "/var/tmp".into(),
        }
    }
}

/// Fewest rounds of which a median is worth something.
const ROUNDS_MIN: u32 = 3;

/// Rounds beyond which a median does not get better.
const ROUNDS_MAX: u32 = 7;

impl Settings {
    /// Rounds for a cell whose first, uncounted round took so long.
    pub(crate) fn rounds(&self, round: Duration) -> u32 {
        if let Some(rounds) = self.rounds {
            return rounds;
        }
        let budget = Duration::from_millis(250);
        let rounds = budget.as_secs_f64() / round.as_secs_f64().max(1e-6);
        // An odd number has a middle.
        let fitting = (ROUNDS_MIN..=ROUNDS_MAX).filter(|n| n % 2 == 1 && f64::from(*n) <= rounds);
        fitting.max().unwrap_or(ROUNDS_MIN)
    }

    /// Whether all filters find their text in `label`.
    pub(crate) fn wants(&self, label: &str) -> bool {
        self.filters.iter().all(|filter| label.contains(filter))
    }
}
