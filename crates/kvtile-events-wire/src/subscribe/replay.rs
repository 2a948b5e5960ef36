//! Requests of missed batches from the ROUTER socket of a publisher.

use std::time::{Duration, Instant};

use super::{WireMessage, message};
use crate::{
    error::WireError,
    zmtp::{Connection, Endpoint, SocketType},
};

/// Bytes of batches of one request.
const BYTES_MAX: usize = 256 << 20;

/// The batches with these numbers that the publisher has, in order. What does not come in time is missing.
pub(super) fn request(
    endpoint: &Endpoint,
    (from, until): (u64, u64),
    within: Duration,
) -> Vec<WireMessage> {
    let mut messages = Vec::new();
    // What came before a failure is good.
    let _ = collect(endpoint, (from, until), within, &mut messages);
    messages
}

fn collect(
    endpoint: &Endpoint,
    (from, until): (u64, u64),
    within: Duration,
    messages: &mut Vec<WireMessage>,
) -> Result<(), WireError> {
    let end = Instant::now() + within;
    let failed = |source| WireError::Socket {
        operation: "read past batches of",
        endpoint: endpoint.to_string(),
        source,
    };
    let mut connection = Connection::open(endpoint.connect()?, SocketType::Dealer)?;
    connection
        .write(&[b"", &from.to_be_bytes()])
        .map_err(failed)?;
    let mut bytes = 0;
    let mut next = from;
    while let Some(left) = end.checked_duration_since(Instant::now()) {
        let Some(mut frames) = connection.next(left).map_err(failed)? else {
            continue;
        };
        // The answer begins with an empty frame.
        if frames.first().is_none_or(|first| !first.is_empty()) {
            break;
        }
        frames.remove(0);
        let Some((topic, sequence, payload)) = message(frames) else {
            break;
        };
        // The end has the number -1; what follows `until` came already.
        if sequence >= until {
            break;
        }
        bytes += payload.len();
        if bytes > BYTES_MAX {
            break;
        }
        if sequence >= next {
            next = sequence + 1;
            messages.push((topic, sequence, payload));
        }
    }
    Ok(())
}
