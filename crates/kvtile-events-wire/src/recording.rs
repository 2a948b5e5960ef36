//! Batches as lines of a file, in JSON. Bytes are `{"$hex": "…"}`.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{error::WireError, event::WireBatch, subscribe::ReceivedBatch};

/// A line of a recording.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct RecordingRow {
    received_ms: u64,
    topic: String,
    sequence: u64,
    #[serde(default, skip_serializing_if = "is_zero")]
    missed: u64,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    restart: bool,
    batch: Value,
}

fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// A batch with the time at which it came.
#[derive(Clone, Debug, PartialEq)]
pub struct RecordedBatch {
    /// When it came, in milliseconds since 1970.
    pub received_ms: u64,
    /// What came.
    pub received: ReceivedBatch,
}

impl RecordedBatch {
    /// The batch as a line, without its end.
    ///
    /// # Errors
    /// [`serde_json::Error`], where the batch has no JSON.
    pub fn to_line(&self) -> Result<String, serde_json::Error> {
        let received = &self.received;
        serde_json::to_string(&RecordingRow {
            received_ms: self.received_ms,
            topic: received.topic.clone(),
            sequence: received.sequence,
            missed: received.missed,
            restart: received.is_restart,
            batch: received.batch.to_json(),
        })
    }

    /// Reads a line.
    ///
    /// # Errors
    /// [`WireError::Line`] with the number of the line.
    pub fn read(line: usize, text: &str) -> Result<RecordedBatch, WireError> {
        let wrong = |problem| WireError::Line { line, problem };
        let row: Result<RecordingRow, _> = serde_json::from_str(text);
        let row = row.map_err(|error| wrong(error.to_string()))?;
        let batch = WireBatch::of_json(row.batch).map_err(wrong)?;
        Ok(RecordedBatch {
            received_ms: row.received_ms,
            received: ReceivedBatch {
                topic: row.topic,
                sequence: row.sequence,
                batch,
                missed: row.missed,
                is_restart: row.restart,
            },
        })
    }
}
