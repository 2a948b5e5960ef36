//! Replays of request traces: the hits of a cache for each policy and capacity.
//!
//! | module | what it is |
//! | --- | --- |
//! | `trace` | traces of requests: JSON lines, checked |
//! | `generate` | generated requests: conversations, shared prompts, documents, scans |
//! | `service` | generated requests with the lengths, returns and pauses of a published trace |
//! | `dry` | a target without bytes: the block pool alone |
//! | `real` | the cache itself, with bytes that are compared after each load |
//! | `grouped` | the cache over groups, for models with windows, chunks and states |
//! | `cluster` | nodes with private caches and a tier that they share, without bytes |
//! | `bound` | the hits of a cache that evicts nothing, and of Belady's rule |
//! | `record` | the requests of a running engine, recorded as a trace |
//! | `run` | the replay of a trace on a target, and its totals |
//!
//! A hit is a leading block of a request that is cached before the request. Then the request uses or stores
//! all its blocks, in order, and unpins them. The module does not know how policies decide.

mod bound;
mod cluster;
mod dry;
mod generate;
mod grouped;
mod real;
mod record;
mod run;
mod service;
mod trace;

pub use bound::{belady, infinite};
pub use cluster::{
    CLUSTER_NODES_MAX, ClusterError, ClusterEvicts, ClusterRoute, ClusterSettings, ClusterShared,
    ClusterTotals, ClusterWrites, replay_cluster,
};
pub use dry::DryCache;
pub use generate::{Workload, generate};
pub use grouped::{
    GROUPED_PAGES_MAX, GroupedError, GroupedMoves, GroupedSettings, GroupedTotals, ReplayStops,
    replay_grouped,
};
pub use real::RealCache;
pub use record::{RecordError, RecordOptions, RecordReport, RecordedRequest, TraceRecorder};
pub use run::{ReplayTarget, ReplayTotals, replay};
pub use trace::{Trace, TraceError, TraceLimits, TraceRequest};
