//! Publishes the events of a cache or a block store in vLLM's format, for routers.
//!
//! ```text
//!  Cache, BlockStore          EventPublisher                        routers, recorders
//!  event log  ──── poll ───►  changes ──► batches ──► PUB  ──────►  live batches
//!  snapshot   ─ after a gap ►    ▲                └─► ROUTER ────►  past batches again
//!                                └── blocks that are published
//! ```
//!
//! | room | what it is |
//! | --- | --- |
//! | `settings` | the settings |
//! | `state` | the published blocks, and what an event or a snapshot changes of them |
//! | `chains` | blocks of a snapshot, parents first |
//! | `tokens` | token ids of blocks, as far as the program gives them |
//! | `wire` | changes as events on the wire |
//! | `publisher` | the thread that reads the log and publishes |
//! | `sockets` | sockets that are bound before there is anything to publish |
//!
//! ```
//! use kvtile_events_publish::{EventPublisher, EventPublisherSettings};
//! use kvtile_layout::{Shape, identity::Identity};
//! use kvtile_tiers::{TokenHasher, cache::{Cache, CacheSettings}};
//! use kvtile_transfer::PhysicalLayout;
//!
//! let shape = Shape::key_value(8, 2, 16, 2, 64, "bf16")?;
//! let engine = PhysicalLayout::builder()
//!     .with_shape(shape.clone())
//!     .layout("L|BH(kCN,vNC)")
//!     .allocate_system()
//!     .build()?;
//! let identity = Identity::new("a-model", "main", &shape)?;
//! let hasher = TokenHasher::new(&identity)?;
//! let cache = Cache::open(CacheSettings::new(identity).host_bytes(16 << 20), engine)?;
//!
//! let settings = EventPublisherSettings::new("tcp://127.0.0.1:0").topic("kv@pod-1@a-model");
//! let publisher = EventPublisher::start(cache.event_source(), &settings)?;
//! let tokens: Vec<u32> = (0..32).collect();
//! let keys = hasher.keys(&tokens);
//! publisher.give_tokens(&keys, &tokens)?; // routers that hash tokens themselves need them
//! cache.store(&keys, &[3, 7])?.wait();
//! assert!(publisher.catch_up(std::time::Duration::from_secs(10)));
//! assert_eq!(publisher.stats().stored_blocks, 2);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! The crate knows no engine. It neither keeps a cache open nor delays it.

#![forbid(unsafe_code)]

mod chains;
mod error;
mod publisher;
mod settings;
mod sockets;
mod state;
mod tokens;
mod wire;

pub use error::PublishError;
pub use publisher::{EventPublisher, EventPublisherStats};
pub use settings::{EventHashes, EventPublisherSettings, UnknownTokens};
pub use sockets::EventSockets;

pub use kvtile_events_wire::WireError;
