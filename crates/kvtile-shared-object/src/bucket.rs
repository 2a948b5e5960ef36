//! A bucket as a store of a shared tier.

use std::{
    fmt,
    ops::Range,
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, SystemTime},
};

use bytes::{Bytes, BytesMut};
use futures_util::{StreamExt, TryStreamExt, stream};
use kvtile_shared::store::{
    Deadline, ListPage, ListedValue, SharedStore, SharedStoreAbilities, SharedStoreError,
    SinkState, StoreOperation, ValueName, ValueSink, ValueWritten,
};
use object_store::{
    Error, GetOptions, GetRange, ObjectMeta, ObjectStoreExt, PutMode, PutPayload,
    list::PaginatedListOptions, path::Path,
};

use crate::{
    client::{BucketBuilder, BucketClient},
    failure::{failed, is_past_end, is_refused_copy},
    probe::{self, ServerClock},
    runtime::{CallRuntimes, RequestNotEnded},
    url::ObjectStoreUrl,
};

/// Requests of one call that are in progress at a time.
const REQUESTS: usize = 32;

/// Calls that are in progress at a time.
const CALLS: usize = 32;

/// The most names in one call; a bulk delete of S3 takes 1,000.
const NAMES_MAX: usize = 256;

/// Names in one page of a listing.
const PAGE: usize = 1000;

/// The largest value, in bytes: one request writes at most 5 GiB on S3, GCS and Azure.
const VALUE_BYTES_MAX: u64 = 5 << 30;

/// A bucket, or a prefix of one, as a store of a shared tier.
///
/// Values do not expire by themselves: a lifecycle rule of the bucket removes old ones, or a sweep.
pub struct ObjectBucket {
    name: String,
    url: ObjectStoreUrl,
    calls: CallRuntimes,
    keeps_first: bool,
    clock: ServerClock,
    /// The server refuses to copy an object onto itself, which would renew its age.
    refuses_copies: AtomicBool,
}

impl fmt::Debug for ObjectBucket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ObjectBucket")
            .field("name", &self.name)
            .field("keeps_first", &self.keeps_first)
            .finish_non_exhaustive()
    }
}

impl ObjectBucket {
    /// Opens a bucket, and writes, reads and removes a small object in it.
    ///
    /// # Errors
    /// A missing bucket, credentials that the server refuses, a server that does not answer by the
    /// deadline, or one that returns other bytes than were written.
    pub fn open(url: &ObjectStoreUrl, by: Deadline) -> Result<ObjectBucket, SharedStoreError> {
        let builder = BucketBuilder::new(url)?;
        let credentials = builder.credentials;
        let calls = CallRuntimes::new(builder);
        let probed = calls.run(by.left(), async |client| {
            probe::probe(&client, (url, credentials)).await
        });
        let probed = probed.map_err(|failure| match failure {
            RequestNotEnded::NotBegun(error) => error,
            RequestNotEnded::OutOfTime => {
                let server = url.endpoint.as_deref().unwrap_or("the cloud's server");
                let what = format!(
                    "{url}: no answer from {server} by the deadline; credentials are from {credentials}"
                );
                SharedStoreError::transient(StoreOperation::Open, what)
            }
        })??;
        let keeps_first = probed.keeps_first;
        if !keeps_first {
            log::info!(
                "{url}: the server replaces present values, so equal ones are written again"
            );
        }
        Ok(ObjectBucket {
            name: url.to_string(),
            url: url.clone(),
            calls,
            keeps_first,
            clock: probed.clock,
            refuses_copies: AtomicBool::new(false),
        })
    }

    /// Runs a request until the deadline.
    fn run<T: Send, F: Future<Output = Result<T, Error>> + Send>(
        &self,
        operation: StoreOperation,
        by: Deadline,
        request: impl FnOnce(BucketClient) -> F,
    ) -> Result<T, SharedStoreError> {
        if by.is_over() {
            return Err(SharedStoreError::late(operation));
        }
        let ended = self.calls.run(by.left(), request);
        let ended = ended.map_err(|failure| failure.of(operation))?;
        ended.map_err(|error| failed(operation, error))
    }

    fn path(&self, name: &ValueName) -> Result<Path, Error> {
        let path = match self.url.prefix.is_empty() {
            true => Path::parse(name.as_str()),
            false => Path::parse(format!("{}/{name}", self.url.prefix)),
        };
        Ok(path?)
    }

    fn paths(&self, names: &[ValueName]) -> Result<Vec<Path>, Error> {
        names.iter().map(|name| self.path(name)).collect()
    }

    async fn put(
        &self,
        client: &BucketClient,
        path: Path,
        value: Bytes,
    ) -> Result<ValueWritten, Error> {
        let mode = match self.keeps_first {
            true => PutMode::Create,
            false => PutMode::Overwrite,
        };
        let payload = PutPayload::from_bytes(value);
        match client.objects.put_opts(&path, payload, mode.into()).await {
            Ok(_) => Ok(ValueWritten::New),
            Err(Error::AlreadyExists { .. } | Error::Precondition { .. }) => {
                Ok(ValueWritten::Present)
            }
            Err(error) => Err(error),
        }
    }

    /// Sets the age of a value to 0: a copy onto itself where the server accepts that, otherwise
    /// its bytes once more.
    async fn renew(&self, client: &BucketClient, path: Path) -> Result<(), Error> {
        if !self.refuses_copies.load(Ordering::Relaxed) {
            match client.objects.copy(&path, &path).await {
                Ok(()) | Err(Error::NotFound { .. }) => return Ok(()),
                Err(error) if is_refused_copy(&error) => {
                    self.refuses_copies.store(true, Ordering::Relaxed);
                }
                Err(error) => return Err(error),
            }
        }
        let got = match client.objects.get(&path).await {
            Err(Error::NotFound { .. }) => return Ok(()),
            got => got?,
        };
        let value = PutPayload::from_bytes(got.bytes().await?);
        client.objects.put(&path, value).await.map(drop)
    }

    /// The object as a value; `None` for an object that is no value.
    fn listed(&self, object: &ObjectMeta, now: SystemTime) -> Option<ListedValue> {
        let name = object.location.as_ref().strip_prefix(&self.url.prefix)?;
        let name = match self.url.prefix.is_empty() {
            true => name,
            false => name.strip_prefix('/')?,
        };
        let written = SystemTime::from(object.last_modified);
        Some(ListedValue {
            name: ValueName::new(name).ok()?,
            bytes: object.size,
            // Its clock is known to a second.
            age: Some(now.duration_since(written).unwrap_or_default()),
        })
    }
}

async fn is_present(client: &BucketClient, path: Path) -> Result<bool, Error> {
    match client.objects.head(&path).await {
        Ok(_) => Ok(true),
        Err(Error::NotFound { .. }) => Ok(false),
        Err(error) => Err(error),
    }
}

async fn read_into(
    client: &BucketClient,
    path: Path,
    range: Option<Range<u64>>,
    sink: &mut dyn ValueSink,
) -> Result<bool, Error> {
    let is_part = range.is_some();
    let request = GetOptions {
        range: range.map(GetRange::Bounded),
        ..GetOptions::default()
    };
    let mut pieces = match client.objects.get_opts(&path, request).await {
        Ok(object) => object.into_stream(),
        Err(Error::NotFound { .. }) => return Ok(false),
        // The object ends before the range.
        Err(error) if is_part && is_past_end(&error) => return Ok(true),
        Err(error) => return Err(error),
    };
    while let Some(piece) = pieces.next().await {
        if sink.put(&piece?) == SinkState::Full {
            break;
        }
    }
    Ok(true)
}

impl SharedStore for ObjectBucket {
    fn name(&self) -> &str {
        &self.name
    }

    fn abilities(&self) -> SharedStoreAbilities {
        SharedStoreAbilities {
            is_durable: true,
            keeps_first: self.keeps_first,
            reads_ranges: true,
            best_bytes: 1 << 20..=16 << 20,
            batch_max: NAMES_MAX,
            in_flight_max: CALLS,
            latency: Duration::from_millis(30),
            bytes_per_second: 90_000_000,
            ..SharedStoreAbilities::default()
        }
    }

    fn has(&self, names: &[ValueName], by: Deadline) -> Result<Vec<bool>, SharedStoreError> {
        self.run(StoreOperation::Has, by, async |client| {
            let paths = self.paths(names)?;
            let heads = stream::iter(paths.into_iter().map(|path| is_present(&client, path)));
            heads.buffered(REQUESTS).try_collect().await
        })
    }

    fn read(
        &self,
        name: &ValueName,
        sink: &mut dyn ValueSink,
        by: Deadline,
    ) -> Result<bool, SharedStoreError> {
        self.run(StoreOperation::Read, by, async |client| {
            read_into(&client, self.path(name)?, None, sink).await
        })
    }

    fn read_range(
        &self,
        name: &ValueName,
        range: Range<u64>,
        sink: &mut dyn ValueSink,
        by: Deadline,
    ) -> Result<bool, SharedStoreError> {
        self.run(StoreOperation::Read, by, async |client| {
            read_into(&client, self.path(name)?, Some(range), sink).await
        })
    }

    fn write(
        &self,
        name: &ValueName,
        parts: &[&[u8]],
        _lifetime: Option<Duration>,
        by: Deadline,
    ) -> Result<ValueWritten, SharedStoreError> {
        let bytes: usize = parts.iter().map(|part| part.len()).sum();
        if bytes as u64 > VALUE_BYTES_MAX {
            let what = format!("a value of {bytes} bytes; at most {VALUE_BYTES_MAX}");
            return Err(SharedStoreError::refused(StoreOperation::Write, what));
        }
        // The client keeps the bytes for retries, also after a call that is late.
        let mut value = BytesMut::with_capacity(bytes);
        parts.iter().for_each(|part| value.extend_from_slice(part));
        self.run(StoreOperation::Write, by, async |client| {
            self.put(&client, self.path(name)?, value.freeze()).await
        })
    }

    fn remove(&self, names: &[ValueName], by: Deadline) -> Result<usize, SharedStoreError> {
        self.run(StoreOperation::Remove, by, async |client| {
            let paths = self.paths(names)?;
            let paths = stream::iter(paths.into_iter().map(Ok)).boxed();
            let mut removed = client.objects.delete_stream(paths);
            let mut count = 0;
            while let Some(one) = removed.next().await {
                match one {
                    Ok(_) => count += 1,
                    Err(Error::NotFound { .. }) => {}
                    Err(error) => return Err(error),
                }
            }
            Ok(count)
        })
    }

    fn touch(
        &self,
        names: &[ValueName],
        _lifetime: Option<Duration>,
        by: Deadline,
    ) -> Result<(), SharedStoreError> {
        self.run(StoreOperation::Touch, by, async |client| {
            let paths = self.paths(names)?;
            let renewals = stream::iter(paths.into_iter().map(|path| self.renew(&client, path)));
            renewals.buffer_unordered(REQUESTS).try_collect().await
        })
    }

    fn list(
        &self,
        under: &str,
        after: Option<&str>,
        by: Deadline,
    ) -> Result<ListPage, SharedStoreError> {
        let begin = match self.url.prefix.is_empty() {
            true => under.to_owned(),
            false => format!("{}/{under}", self.url.prefix),
        };
        let options = PaginatedListOptions {
            // The most objects of a page: 5,000 in Azure, 1,000 in S3 and Google Cloud Storage.
            max_keys: Some(PAGE),
            page_token: after.map(str::to_owned),
            ..PaginatedListOptions::default()
        };
        let begin = Some(begin).filter(|begin| !begin.is_empty());
        let page = self.run(StoreOperation::List, by, async |client| {
            let page = client.pages.list_paginated(begin.as_deref(), options);
            page.await
        })?;
        let now = self.clock.now();
        let objects = page.result.objects.iter();
        Ok(ListPage {
            values: objects
                .filter_map(|object| self.listed(object, now))
                .collect(),
            next: page.page_token,
        })
    }
}
