//! The results of a run, as printed and stored.

use serde::{Deserialize, Serialize};

use crate::{first_touch::FirstTouch, machine::MachineFacts, row::Row, settings::Settings};

/// The results of a run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// The machine.
    pub machine: MachineFacts,
    /// The conditions of the measurement.
    pub how: How,
    /// The measurements.
    pub rows: Vec<Row>,
    /// The time to allocate and populate a pool.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub first_touch: Vec<FirstTouch>,
    /// Requested measurements that were not possible, with the reasons.
    #[serde(default)]
    pub left_out: Vec<String>,
}

/// The conditions of a run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct How {
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

impl How {
    pub(crate) fn of(settings: &Settings) -> How {
        let order = if settings.consecutive {
            "consecutive"
        } else {
            "random"
        };
        How {
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

impl Report {
    /// Parses the stored JSON of a run.
    ///
    /// # Errors
    /// A text that is not a report.
    pub fn parse(json: &str) -> Result<Report, crate::BenchError> {
        Ok(serde_json::from_str(json)?)
    }
}
