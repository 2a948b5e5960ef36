//! The results of a run, as printed and stored.

use serde::{Deserialize, Serialize};

use crate::{
    first_touch::FirstTouch, machine::MachineFacts, row::BenchRow, settings::BenchSettings,
};

/// The results of a run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BenchReport {
    /// The machine.
    pub machine: MachineFacts,
    /// The conditions of the measurement.
    pub how: RunConditions,
    /// The measurements.
    pub rows: Vec<BenchRow>,
    /// The time to allocate and populate a pool.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub first_touch: Vec<FirstTouch>,
    /// Requested measurements that were not possible, with the reasons.
    #[serde(default)]
    pub left_out: Vec<String>,
}

/// The conditions of a run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunConditions {
    /// The order of the blocks: `random`, fresh in each round, or `consecutive`.
    pub order: String,
    /// The seed of orders and contents.
    pub seed: u64,
    /// Whether it was a quick run.
    pub quick: bool,
    /// The comparisons that verified the copies.
    pub checked: String,
    /// Seconds that the run took.
    pub seconds: u64,
}

impl RunConditions {
    pub(crate) fn of(settings: &BenchSettings) -> RunConditions {
        let order = if settings.consecutive {
            "consecutive"
        } else {
            "random"
        };
        RunConditions {
            order: order.to_owned(),
            seed: settings.seed,
            quick: settings.quick,
            checked: "every block after the first round of a cell and four blocks after each \
                      other, byte by byte; destinations are poisoned before"
                .to_owned(),
            seconds: 0,
        }
    }
}

impl BenchReport {
    /// Parses the stored JSON of a run.
    ///
    /// # Errors
    /// A text that is not a report.
    pub fn parse(json: &str) -> Result<BenchReport, crate::BenchError> {
        Ok(serde_json::from_str(json)?)
    }
}
