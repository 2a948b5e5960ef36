//! Past batches, and the ROUTER socket that sends them again.

use std::{collections::VecDeque, net::TcpStream, sync::Arc};

use super::{PublisherParts, TURN};
use crate::zmtp::{Connection, SocketType};

/// The number that ends a replay: -1 in 8 bytes.
pub(crate) const END: [u8; 8] = [0xff; 8];

/// A message.
#[derive(Debug)]
pub(super) struct PastMessage {
    pub(super) topic: String,
    pub(super) sequence: u64,
    pub(super) payload: Vec<u8>,
}

/// The last messages.
#[derive(Debug)]
pub(super) struct PastBatches {
    messages: VecDeque<Arc<PastMessage>>,
    bytes: usize,
    batches_max: usize,
    bytes_max: usize,
    next: u64,
}

impl PastBatches {
    pub(super) fn new(batches_max: usize, bytes_max: usize) -> PastBatches {
        PastBatches {
            messages: VecDeque::new(),
            bytes: 0,
            batches_max,
            bytes_max,
            next: 0,
        }
    }

    /// The number of the next message.
    pub(super) fn next(&self) -> u64 {
        self.next
    }

    pub(super) fn clear(&mut self) {
        self.messages.clear();
        self.bytes = 0;
    }

    pub(super) fn push(&mut self, message: Arc<PastMessage>) {
        self.next = message.sequence.saturating_add(1);
        self.bytes += message.payload.len();
        self.messages.push_back(message);
        while self.messages.len() > self.batches_max || self.bytes > self.bytes_max {
            let Some(oldest) = self.messages.pop_front() else {
                break;
            };
            self.bytes -= oldest.payload.len();
        }
    }

    /// The messages from a number on.
    fn since(&self, sequence: u64) -> Vec<Arc<PastMessage>> {
        let messages = self.messages.iter();
        let since = messages.filter(|message| message.sequence >= sequence);
        since.map(Arc::clone).collect()
    }
}

/// Serves a client of replays until it closes.
pub(super) fn serve(parts: &Arc<PublisherParts>, stream: TcpStream) {
    // A client that does not speak the protocol, or that stops to read, is closed.
    let _ = replay(parts, stream);
}

fn replay(parts: &PublisherParts, stream: TcpStream) -> std::io::Result<()> {
    let connection = Connection::open(stream, SocketType::Router);
    let mut connection = connection.map_err(std::io::Error::other)?;
    while !parts.is_closing() {
        let Some(frames) = connection.next(TURN)? else {
            continue;
        };
        // A REQ socket sends an empty frame before its request.
        let [empty, request] = frames.as_slice() else {
            continue;
        };
        let Ok(request) = <[u8; 8]>::try_from(request.as_slice()) else {
            continue;
        };
        if !empty.is_empty() {
            continue;
        }
        let messages = parts.past().since(u64::from_be_bytes(request));
        for message in messages {
            let sequence = message.sequence.to_be_bytes();
            connection.write(&[b"", message.topic.as_bytes(), &sequence, &message.payload])?;
        }
        connection.write(&[b"", b"", &END, b""])?;
    }
    Ok(())
}
