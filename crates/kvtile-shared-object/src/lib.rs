//! Object stores as stores of a shared tier: S3 and servers with its interface, Google Cloud Storage,
//! and Azure.
//!
//! [`ObjectStoreUrl`] names a bucket, a prefix and the options of the connection. [`ObjectBucket`] is
//! the open store. Its calls run their requests on the threads of their callers, and block until their
//! deadlines at most: a request that is still in progress then is cancelled.
//!
//! A value is one object, written by one request, so no reader sees a part of it, and a writer that
//! dies leaves nothing behind. Opening writes a small object, twice, to learn whether the server keeps
//! the first one, and removes it.
//!
//! Credentials come from the environment variables that the cloud's own tools read
//! (`AWS_ACCESS_KEY_ID`, `GOOGLE_APPLICATION_CREDENTIALS`, `AZURE_STORAGE_ACCOUNT_KEY`, …) or from the
//! machine's role. They are never part of the URL.
//!
//! ```no_run
//! use std::{sync::Arc, time::Duration};
//!
//! use kvtile_shared::store::{Deadline, SharedStore};
//! use kvtile_shared_object::ObjectBucket;
//!
//! let url = "s3://models/kv?region=eu-central-1".parse()?;
//! let store = ObjectBucket::open(&url, Deadline::within(Duration::from_secs(15)))?;
//! let store: Arc<dyn SharedStore> = Arc::new(store); // for SharedTier::opener
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

#![forbid(unsafe_code)]

mod bucket;
mod client;
mod failure;
mod probe;
mod runtime;
mod throttle;
mod url;

pub use bucket::ObjectBucket;
pub use url::{ObjectScheme, ObjectStoreUrl, ObjectUrlError};
