//! The client of a bucket: credentials, time limits and retries.

use std::{sync::Arc, time::Duration};

use kvtile_shared::store::{SharedStoreError, StoreOperation};
use object_store::{
    BackoffConfig, ClientOptions, ObjectStore, RetryConfig,
    aws::{AmazonS3Builder, AmazonS3ConfigKey},
    azure::MicrosoftAzureBuilder,
    gcp::GoogleCloudStorageBuilder,
    list::PaginatedListStore,
};

use crate::{
    throttle::ServerThrottle,
    url::{ObjectScheme, ObjectStoreUrl},
};

/// How often a request is sent again after a failure of the connection or of the server.
const RETRIES_MAX: usize = 2;

/// No retry begins later than this after the first attempt.
const RETRY_WITHIN: Duration = Duration::from_secs(2);

/// The time for a connection.
const CONNECT_WITHIN: Duration = Duration::from_secs(3);

/// Connections without a request are closed after this time. Servers close theirs after a minute or
/// more.
const IDLE: Duration = Duration::from_secs(20);

/// One client, by its two traits.
#[derive(Clone)]
pub(crate) struct BucketClient {
    pub(crate) objects: Arc<dyn ObjectStore>,
    pub(crate) pages: Arc<dyn PaginatedListStore>,
}

impl BucketClient {
    fn of<S: ObjectStore + PaginatedListStore>(store: S) -> BucketClient {
        let store = Arc::new(store);
        BucketClient {
            objects: Arc::<S>::clone(&store),
            pages: store,
        }
    }
}

/// The settings of one cloud's client, with the credentials of the environment.
enum CloudBuilder {
    S3(AmazonS3Builder),
    Gcs(GoogleCloudStorageBuilder),
    Azure(MicrosoftAzureBuilder),
}

/// Makes clients of a bucket, which are equal and share no connections.
pub(crate) struct BucketBuilder {
    cloud: CloudBuilder,
    url: String,
    /// Where the credentials come from, for error messages.
    pub(crate) credentials: &'static str,
}

impl BucketBuilder {
    /// A builder with the credentials of the environment.
    ///
    /// # Errors
    /// Settings that no client can have.
    pub(crate) fn new(url: &ObjectStoreUrl) -> Result<BucketBuilder, SharedStoreError> {
        // The TLS of the process may already have another provider; any of them serves.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let (cloud, credentials) = match url.scheme {
            ObjectScheme::S3 => s3(url),
            ObjectScheme::Gcs => gcs(url),
            ObjectScheme::Azure => azure(url),
        };
        let builder = BucketBuilder {
            cloud,
            url: url.to_string(),
            credentials,
        };
        builder.build().map(|_| builder)
    }

    /// A client. It sends nothing.
    pub(crate) fn build(&self) -> Result<BucketClient, SharedStoreError> {
        let client = match &self.cloud {
            CloudBuilder::S3(builder) => builder.clone().build().map(BucketClient::of),
            CloudBuilder::Gcs(builder) => builder.clone().build().map(BucketClient::of),
            CloudBuilder::Azure(builder) => builder.clone().build().map(BucketClient::of),
        };
        client.map_err(|error| {
            let what = format!("{}: {error}", self.url);
            SharedStoreError::configuration(StoreOperation::Open, what).caused_by(error)
        })
    }
}

fn options(url: &ObjectStoreUrl) -> ClientOptions {
    // The deadline of the call is the time limit of its requests.
    ClientOptions::new()
        .with_timeout_disabled()
        .with_connect_timeout(CONNECT_WITHIN)
        .with_pool_idle_timeout(IDLE)
        .with_allow_http(url.is_plain_http())
}

fn retries() -> RetryConfig {
    RetryConfig {
        backoff: BackoffConfig {
            init_backoff: Duration::from_millis(50),
            max_backoff: Duration::from_millis(500),
            base: 2.0,
        },
        max_retries: RETRIES_MAX,
        retry_timeout: RETRY_WITHIN,
    }
}

fn s3(url: &ObjectStoreUrl) -> (CloudBuilder, &'static str) {
    let mut builder = AmazonS3Builder::from_env()
        .with_bucket_name(&url.bucket)
        .with_client_options(options(url))
        .with_retry(retries())
        .with_http_connector(ServerThrottle::default())
        .with_virtual_hosted_style_request(url.virtual_hosted)
        .with_skip_signature(url.anonymous);
    if let Some(endpoint) = &url.endpoint {
        builder = builder.with_endpoint(endpoint);
    }
    if let Some(region) = &url.region {
        builder = builder.with_region(region);
    }
    let key = builder.get_config_value(&AmazonS3ConfigKey::AccessKeyId);
    let credentials = match (url.anonymous, key) {
        (true, _) => "none: the URL has anonymous=true",
        (false, Some(_)) => "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
        (false, None) => "the role of this machine, since AWS_ACCESS_KEY_ID is not set",
    };
    (CloudBuilder::S3(builder), credentials)
}

fn gcs(url: &ObjectStoreUrl) -> (CloudBuilder, &'static str) {
    let mut builder = GoogleCloudStorageBuilder::from_env()
        .with_bucket_name(&url.bucket)
        .with_client_options(options(url))
        .with_retry(retries())
        .with_http_connector(ServerThrottle::default())
        .with_skip_signature(url.anonymous);
    if let Some(endpoint) = &url.endpoint {
        builder = builder.with_base_url(endpoint);
    }
    if url.anonymous {
        // Writes of this client take a token even if it is not sent; without one it would look for the
        // role of this machine.
        builder = builder.with_bearer_token("anonymous");
    }
    let credentials = match url.anonymous {
        true => "none: the URL has anonymous=true",
        false => "GOOGLE_APPLICATION_CREDENTIALS, or else the role of this machine",
    };
    (CloudBuilder::Gcs(builder), credentials)
}

fn azure(url: &ObjectStoreUrl) -> (CloudBuilder, &'static str) {
    let mut builder = MicrosoftAzureBuilder::from_env()
        .with_container_name(&url.bucket)
        .with_client_options(options(url))
        .with_retry(retries())
        .with_http_connector(ServerThrottle::default())
        .with_skip_signature(url.anonymous);
    if let Some(account) = &url.account {
        builder = builder.with_account(account);
    }
    if let Some(endpoint) = &url.endpoint {
        builder = builder.with_endpoint(endpoint.clone());
    }
    let credentials = match url.anonymous {
        true => "none: the URL has anonymous=true",
        false => "AZURE_STORAGE_ACCOUNT_KEY and the like, or else the role of this machine",
    };
    (CloudBuilder::Azure(builder), credentials)
}
