//! Servers that request a pause: answers with status 429 or 503 and a header `Retry-After`.
//!
//! Until the pause is over, no client of the store sends anything: requests fail at once, and the tier
//! above does without the store. The client alone would repeat its request after some milliseconds.

use std::{
    fmt,
    pin::Pin,
    sync::Arc,
    time::{Duration, Instant},
};

use object_store::{
    ClientOptions,
    client::{
        HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpResponse,
        HttpService, ReqwestConnector,
    },
};
use parking_lot::Mutex;

/// The longest pause. A server that requests more gets a request after this time, and may repeat its own.
const PAUSE_MAX: Duration = Duration::from_secs(60);

/// Until when all clients of a store pause.
#[derive(Clone, Default)]
pub(crate) struct ServerThrottle(Arc<Mutex<Option<Instant>>>);

impl fmt::Debug for ServerThrottle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("ServerThrottle").field(&self.left()).finish()
    }
}

/// A request that was not sent.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("the server requested a pause, of which {left:.1?} are left; nothing was sent")]
struct PauseRequested {
    left: Duration,
}

impl ServerThrottle {
    /// What is left of the pause.
    fn left(&self) -> Option<Duration> {
        let until = (*self.0.lock())?;
        Some(until.saturating_duration_since(Instant::now())).filter(|left| !left.is_zero())
    }

    fn pause(&self, time: Duration) {
        let until = Instant::now().checked_add(time.min(PAUSE_MAX));
        let mut current = self.0.lock();
        *current = (*current).max(until);
    }
}

/// The pause that an answer requests, in seconds.
fn requested(response: &HttpResponse) -> Option<Duration> {
    if !matches!(response.status().as_u16(), 429 | 503) {
        return None;
    }
    let seconds = response.headers().get("retry-after")?.to_str().ok()?;
    Some(Duration::from_secs(seconds.trim().parse().ok()?))
}

impl HttpConnector for ServerThrottle {
    fn connect(&self, options: &ClientOptions) -> object_store::Result<HttpClient> {
        let client = ReqwestConnector::default().connect(options)?;
        Ok(HttpClient::new(ThrottledService {
            client,
            throttle: self.clone(),
        }))
    }
}

/// A client that sends nothing during a pause.
#[derive(Debug)]
struct ThrottledService {
    client: HttpClient,
    throttle: ServerThrottle,
}

type ResponseFuture<'a> =
    Pin<Box<dyn Future<Output = Result<HttpResponse, HttpError>> + Send + 'a>>;

impl HttpService for ThrottledService {
    fn call<'life0, 'async_trait>(
        &'life0 self,
        request: HttpRequest,
    ) -> ResponseFuture<'async_trait>
    where
        'life0: 'async_trait,
        Self: 'async_trait,
    {
        Box::pin(async move {
            if let Some(left) = self.throttle.left() {
                // Of a kind that is not tried again.
                return Err(HttpError::new(
                    HttpErrorKind::Unknown,
                    PauseRequested { left },
                ));
            }
            let response = self.client.execute(request).await?;
            if let Some(pause) = requested(&response) {
                self.throttle.pause(pause);
            }
            Ok(response)
        })
    }
}
