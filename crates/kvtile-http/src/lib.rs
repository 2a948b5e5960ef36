//! What open caches do, over HTTP: numbers for Prometheus, JSON, and a page that refreshes itself.
//!
//! | path | contents |
//! | --- | --- |
//! | `/` | the page, without resources of other servers |
//! | `/metrics` | all numbers in the text format of Prometheus |
//! | `/stats.json` | all numbers as an [`Observation`] |
//! | `/healthz` | `ok` while the server runs |
//!
//! [`serve`] starts a server over any function that returns [`CacheReport`]s; `docs/observing.md` has an
//! example.
//!
//! The server has threads of its own, answers `GET` and `HEAD`, and changes nothing in a cache. It has
//! no passwords and no encryption: an address that other machines reach shows them the names of models
//! and all numbers. It does not know how the caches are opened or used.
//!
//! | module | contents |
//! | --- | --- |
//! | `address` | the address of the server from text |
//! | `observe`, `report` | what is read from a cache, and its form in JSON |
//! | `metrics` | the text format of Prometheus |
//! | `request`, `respond` | the bytes of a request, checked, and its response |
//! | `server`, `connections` | the socket, and a bounded number of connections |
//! | `fetch` | a client for the JSON of a server |

#![forbid(unsafe_code)]

mod address;
mod connections;
mod error;
mod fetch;
mod metrics;
mod observe;
mod report;
mod request;
mod respond;
mod server;

pub use error::HttpError;
pub use fetch::{FetchError, fetch};
pub use metrics::{PAGE_METRICS, PageMetric, prometheus_text, shared_metrics};
pub use observe::ObservedCache;
pub use report::{CacheReport, IdentityReport, Observation, SharedStoreReport, TierReport};
pub use server::{HttpServer, serve};

/// The page: one document without resources of other servers, in the style of kvtile's other pages.
pub const PAGE: &str = concat!(
    include_str!("page/head.html"),
    include_str!("../../kvtile-cli/src/output/page.css"),
    include_str!("page/style.css"),
    include_str!("page/body.html"),
    include_str!("page/page.js"),
    include_str!("page/tail.html"),
);

/// The example of the page on observing caches, as a test.
#[cfg(doctest)]
#[doc = include_str!("../../../docs/observing.md")]
struct ObservingPage;
