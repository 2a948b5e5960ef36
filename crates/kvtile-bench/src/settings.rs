//! The settings of a run.

use std::{path::PathBuf, time::Duration};

use crate::matrix::{BenchModel, LayoutPair};

/// Settings of a run; the default is the whole matrix.
#[derive(Clone, Debug)]
pub struct BenchSettings {
    /// Models instead of the matrix's.
    pub models: Vec<BenchModel>,
    /// One pair instead of the matrix's.
    pub pair: Option<LayoutPair>,
    /// Alignment of block strides, in bytes.
    pub alignment: u64,
    /// Sizes instead of the matrix's, in bytes.
    pub bytes: Vec<u64>,
    /// Numbers of copy threads to measure.
    pub threads: Vec<u32>,
    /// Number of rounds; results are their median. By default as many as fit the time of a cell, at
    /// least 3.
    pub rounds: Option<u32>,
    /// Seed of block orders and contents.
    pub seed: u64,
    /// Copies blocks in the order of their numbers instead of a random one.
    pub consecutive: bool,
    /// Only rows whose text contains all of these.
    pub filters: Vec<String>,
    /// Less than a minute: fewer pairs, models and bytes.
    pub quick: bool,
    /// Also measures the alternatives.
    pub compare: bool,
    /// The folder for the temporary files of file rows.
    pub folder: PathBuf,
}

impl Default for BenchSettings {
    fn default() -> BenchSettings {
        BenchSettings {
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

/// Fewest rounds of a useful median.
const ROUNDS_MIN: u32 = 3;

/// More rounds than this do not improve the median.
const ROUNDS_MAX: u32 = 7;

impl BenchSettings {
    /// Rounds for a cell, by the time of its first, uncounted round.
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

    /// Whether `label` contains the text of every filter.
    pub(crate) fn wants(&self, label: &str) -> bool {
        self.filters.iter().all(|filter| label.contains(filter))
    }
}
