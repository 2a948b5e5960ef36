//! KV cache events as vLLM publishes them.
//!
//! | room | what it is |
//! | --- | --- |
//! | `pack` | MessagePack values, read with bounds |
//! | `event` | batches of events: their fields, their bytes, their JSON |
//! | `zmtp` | the part of ZMTP 3.0 that the sockets need: greeting, frames, messages over TCP |
//! | `publish` | a PUB socket, and a ROUTER socket that sends past batches again |
//! | `subscribe` | a SUB socket that requests missed batches |
//! | `recording` | batches as lines of a file |
//!
//! A message has three frames: a topic, a sequence number of 8 bytes (big-endian, from 0 on), and a batch in
//! MessagePack. A replay request is a sequence number; the answers are the past messages from that number on,
//! and one with the sequence number -1 and no batch.
//!
//! The crate opens sockets and starts threads. It knows no cache and no engine.

mod error;
mod event;
mod pack;
mod publish;
mod recording;
mod subscribe;
mod zmtp;

pub use error::WireError;
pub use event::{WireBatch, WireEvent, WireStored};
pub use pack::WireValue;
pub use publish::{PublisherSettings, WirePublisher};
pub use recording::RecordedBatch;
pub use subscribe::{ReceivedBatch, SubscriberSettings, WireSubscriber};
