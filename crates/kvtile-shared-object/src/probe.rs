//! What a server can do, tried when a store opens.

use std::{
    hash::{BuildHasher, Hasher, RandomState},
    time::{Instant, SystemTime},
};

use kvtile_shared::store::{SharedStoreError, StoreErrorKind, StoreOperation};
use object_store::{Error, ObjectStoreExt, PutMode, PutPayload, path::Path};

use crate::{
    client::BucketClient,
    failure::{failed, is_refusal, one_line},
    url::ObjectStoreUrl,
};

/// The folder of the objects that opening writes. It begins with a dot, as no value does, so no
/// listing of values has them.
const FOLDER: &str = ".kvtile-probe";

/// The clock of a server, which may be ahead of this machine's or behind it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ServerClock {
    /// The time of the server
    time: SystemTime,
    /// at this moment.
    at: Instant,
}

impl ServerClock {
    /// Its time now, to a second.
    pub(crate) fn now(&self) -> SystemTime {
        let now = self.time.checked_add(self.at.elapsed());
        now.unwrap_or(self.time)
    }
}

/// What a server can do.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ProbedServer {
    /// Whether it keeps the first value of a name.
    pub(crate) keeps_first: bool,
    pub(crate) clock: ServerClock,
}

/// What a probe has tried, for its errors.
type ProbedUrl<'a> = (&'a ObjectStoreUrl, &'static str);

/// Writes a small object twice, each time only if it is absent, reads it, and removes it. `credentials` is where they
/// come from.
pub(crate) async fn probe(
    client: &BucketClient,
    (url, credentials): ProbedUrl<'_>,
) -> Result<ProbedServer, SharedStoreError> {
    let refused = |verb: &str, error: Error| refused((url, credentials), verb, error);
    let at = Instant::now();
    let number = RandomState::new().build_hasher().finish();
    let name = format!("{}/{FOLDER}/{number:016x}", url.prefix);
    let path = Path::parse(name.trim_start_matches('/'));
    let path = path.map_err(|error| refused("name", error.into()))?;
    let create = |payload: &'static str| {
        let payload = PutPayload::from(payload);
        client
            .objects
            .put_opts(&path, payload, PutMode::Create.into())
    };
    let first = match create("first").await {
        Err(error) if is_unknown(&error) => {
            // The server refuses the condition itself.
            let put = client.objects.put(&path, "first".into()).await;
            put.map_err(|error| refused("write to", error))?;
            false
        }
        Err(error) => return Err(refused("write to", error)),
        Ok(_) => true,
    };
    let second = match first {
        true => create("second").await.map(drop),
        false => Ok(()),
    };
    let kept = match second {
        Err(Error::AlreadyExists { .. } | Error::Precondition { .. }) => true,
        Err(error) if !is_unknown(&error) => {
            return Err(refused("write to", error));
        }
        _ => false,
    };
    let got = client.objects.get(&path).await;
    let got = got.map_err(|error| refused("read from", error))?;
    let written = SystemTime::from(got.meta.last_modified);
    // The client's value for an answer without the time.
    let time = match written == SystemTime::UNIX_EPOCH {
        true => SystemTime::now(),
        false => written,
    };
    let clock = ServerClock { time, at };
    let bytes = got.bytes().await;
    let bytes = bytes.map_err(|error| refused("read from", error))?;
    let removed = client.objects.delete(&path).await;
    removed.map_err(|error| refused("remove from", error))?;
    match (kept, bytes.as_ref()) {
        (true, b"first") | (false, b"first" | b"second") => Ok(ProbedServer {
            keeps_first: kept,
            clock,
        }),
        _ => Err(SharedStoreError::configuration(
            StoreOperation::Open,
            format!("{url} returns other bytes than were written to it; it is no usable store"),
        )),
    }
}

/// Whether a server does not support the condition of a write. Servers answer that with "not
/// implemented" or "bad request".
fn is_unknown(error: &Error) -> bool {
    let is_unimplemented = error.to_string().contains("status code: 501");
    matches!(
        error,
        Error::NotSupported { .. } | Error::NotImplemented { .. }
    ) || is_unimplemented
        || matches!(error, Error::Generic { .. }) && is_refusal(error)
}

/// An error of opening: what was tried, and what to change.
fn refused((url, credentials): ProbedUrl<'_>, verb: &str, error: Error) -> SharedStoreError {
    let bucket = &url.bucket;
    let (kind, remedy) = match &error {
        Error::NotFound { .. } => (
            StoreErrorKind::Configuration,
            format!("the bucket {bucket:?} does not exist; create it"),
        ),
        Error::PermissionDenied { .. } | Error::Unauthenticated { .. } => (
            StoreErrorKind::Configuration,
            format!(
                "the server refuses the credentials (from {credentials}) or their rights: a store needs to \
                 read, write, delete and list"
            ),
        ),
        error if is_refusal(error) => (
            StoreErrorKind::Configuration,
            "the server refuses the request; check bucket, region and endpoint".to_owned(),
        ),
        _ => (
            failed(StoreOperation::Open, unknown(&error)).kind(),
            format!("credentials are from {credentials}"),
        ),
    };
    let what = format!("cannot {verb} {url}: {remedy} ({})", one_line(&error));
    SharedStoreError::new(kind, StoreOperation::Open, what).caused_by(error)
}

/// The error without its cause, for its kind.
fn unknown(error: &Error) -> Error {
    Error::Generic {
        store: "bucket",
        source: error.to_string().into(),
    }
}
