//! The URL of a bucket: `s3://bucket/prefix?endpoint=http://127.0.0.1:8333&region=us-east-1`.

use std::{fmt, str::FromStr};

use kvtile_shared::store::ValueName;
use url::Url;

/// The interface of an object store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ObjectScheme {
    /// Amazon S3 and the servers with its interface.
    S3,
    /// Google Cloud Storage.
    Gcs,
    /// Azure Blob Storage.
    Azure,
}

impl ObjectScheme {
    const ALL: [ObjectScheme; 3] = [ObjectScheme::S3, ObjectScheme::Gcs, ObjectScheme::Azure];

    /// The scheme of its URLs.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            ObjectScheme::S3 => "s3",
            ObjectScheme::Gcs => "gs",
            ObjectScheme::Azure => "az",
        }
    }

    /// The options that its URLs may have.
    #[must_use]
    pub fn options(self) -> &'static [&'static str] {
        match self {
            ObjectScheme::S3 => &["anonymous", "endpoint", "region", "virtual_hosted"],
            ObjectScheme::Gcs => &["anonymous", "endpoint"],
            ObjectScheme::Azure => &["account", "anonymous", "endpoint"],
        }
    }
}

/// A text that is not the URL of a bucket.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ObjectUrlError {
    /// No URL.
    #[error("this is no URL ({problem}); write for example s3://bucket/prefix")]
    NoUrl {
        /// The parser's message.
        problem: String,
    },
    /// A scheme of no object store.
    #[error("the scheme {scheme:?} is none of s3, gs and az")]
    UnknownScheme {
        /// The scheme.
        scheme: String,
    },
    /// No bucket.
    #[error("the URL names no bucket; write {scheme}://bucket/prefix")]
    NoBucket {
        /// The scheme.
        scheme: &'static str,
    },
    /// A user, a password, a port or a fragment, which an URL of a bucket does not have.
    #[error(
        "the URL has {part}; write {scheme}://bucket/prefix, and put credentials into the environment"
    )]
    Superfluous {
        /// The part of the URL.
        part: &'static str,
        /// The scheme.
        scheme: &'static str,
    },
    /// A prefix that names of values cannot begin with.
    #[error(
        "{prefix:?} cannot be the prefix of values: use lower-case letters, digits and any of `.-_/`, \
         without parts that are empty or begin with a dot"
    )]
    InvalidPrefix {
        /// The prefix.
        prefix: String,
    },
    /// An option that this scheme does not have.
    #[error("{scheme} URLs have no option {option:?}; they have: {}", known.join(", "))]
    UnknownOption {
        /// The scheme.
        scheme: &'static str,
        /// The option.
        option: String,
        /// The options of the scheme.
        known: &'static [&'static str],
    },
    /// An option that occurs twice.
    #[error("the option {option:?} occurs twice")]
    OptionTwice {
        /// The option.
        option: String,
    },
    /// A value that an option cannot have.
    #[error("the option {option} is {value:?}; it is {expected}")]
    InvalidOption {
        /// The option.
        option: &'static str,
        /// Its value.
        value: String,
        /// What its values are.
        expected: &'static str,
    },
}

/// The URL of a bucket and of a prefix in it. It has no credentials.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObjectStoreUrl {
    /// The interface.
    pub scheme: ObjectScheme,
    /// The bucket; in Azure the container.
    pub bucket: String,
    /// What all names begin with; empty, or without slashes at its ends.
    pub prefix: String,
    /// Another server than the cloud's: `http://host:port` or `https://host`.
    pub endpoint: Option<String>,
    /// The region of the bucket (S3).
    pub region: Option<String>,
    /// The account (Azure).
    pub account: Option<String>,
    /// Whether the bucket is part of the host's name (S3; default: part of the path).
    pub virtual_hosted: bool,
    /// Whether requests are not signed.
    pub anonymous: bool,
}

impl FromStr for ObjectStoreUrl {
    type Err = ObjectUrlError;

    fn from_str(text: &str) -> Result<ObjectStoreUrl, ObjectUrlError> {
        let url = Url::parse(text).map_err(|problem| ObjectUrlError::NoUrl {
            problem: problem.to_string(),
        })?;
        let scheme = scheme_of(&url)?;
        refuse_superfluous(&url, scheme)?;
        let bucket = url.host_str().filter(|host| !host.is_empty());
        let bucket = bucket.ok_or(ObjectUrlError::NoBucket {
            scheme: scheme.as_str(),
        })?;
        let mut parsed = ObjectStoreUrl {
            scheme,
            bucket: bucket.to_owned(),
            prefix: prefix_of(&url)?,
            endpoint: None,
            region: None,
            account: None,
            virtual_hosted: false,
            anonymous: false,
        };
        let mut seen = Vec::new();
        for (option, value) in url.query_pairs() {
            if seen.contains(&option) {
                let option = option.into_owned();
                return Err(ObjectUrlError::OptionTwice { option });
            }
            parsed.set(&option, &value)?;
            seen.push(option);
        }
        Ok(parsed)
    }
}

impl ObjectStoreUrl {
    fn set(&mut self, option: &str, value: &str) -> Result<(), ObjectUrlError> {
        if !self.scheme.options().contains(&option) {
            return Err(ObjectUrlError::UnknownOption {
                scheme: self.scheme.as_str(),
                option: option.to_owned(),
                known: self.scheme.options(),
            });
        }
        match option {
            "endpoint" => self.endpoint = Some(endpoint(value)?),
            "region" => self.region = Some(word("region", value)?),
            "account" => self.account = Some(word("account", value)?),
            "virtual_hosted" => self.virtual_hosted = switch("virtual_hosted", value)?,
            _ => self.anonymous = switch("anonymous", value)?,
        }
        Ok(())
    }

    /// Whether requests go over plain HTTP.
    pub(crate) fn is_plain_http(&self) -> bool {
        let endpoint = self.endpoint.as_deref().unwrap_or_default();
        endpoint.starts_with("http://")
    }
}

/// Without options: `s3://bucket/prefix`.
impl fmt::Display for ObjectStoreUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}", self.scheme.as_str(), self.bucket)?;
        match self.prefix.is_empty() {
            true => Ok(()),
            false => write!(f, "/{}", self.prefix),
        }
    }
}

fn scheme_of(url: &Url) -> Result<ObjectScheme, ObjectUrlError> {
    let mut all = ObjectScheme::ALL.into_iter();
    let known = all.find(|scheme| scheme.as_str() == url.scheme());
    known.ok_or_else(|| ObjectUrlError::UnknownScheme {
        scheme: url.scheme().to_owned(),
    })
}

fn refuse_superfluous(url: &Url, scheme: ObjectScheme) -> Result<(), ObjectUrlError> {
    let part = match url {
        url if !url.username().is_empty() || url.password().is_some() => "a user or a password",
        url if url.port().is_some() => "a port (the server is the option `endpoint`)",
        url if url.fragment().is_some() => "a fragment",
        _ => return Ok(()),
    };
    let scheme = scheme.as_str();
    Err(ObjectUrlError::Superfluous { part, scheme })
}

fn prefix_of(url: &Url) -> Result<String, ObjectUrlError> {
    let path = url.path();
    let path = path.strip_prefix('/').unwrap_or(path);
    let prefix = path.strip_suffix('/').unwrap_or(path);
    if prefix.is_empty() && path.is_empty() || ValueName::new(prefix).is_ok() {
        return Ok(prefix.to_owned());
    }
    Err(ObjectUrlError::InvalidPrefix {
        prefix: path.to_owned(),
    })
}

fn endpoint(value: &str) -> Result<String, ObjectUrlError> {
    let is_endpoint = |url: &Url| {
        let is_http = matches!(url.scheme(), "http" | "https");
        let is_bare = url.username().is_empty() && url.password().is_none();
        is_http && is_bare && url.has_host() && url.query().is_none() && url.fragment().is_none()
    };
    match Url::parse(value) {
        Ok(url) if is_endpoint(&url) => Ok(value.trim_end_matches('/').to_owned()),
        _ => Err(ObjectUrlError::InvalidOption {
            option: "endpoint",
            value: value.to_owned(),
            expected: "http://HOST:PORT or https://HOST, without user and query",
        }),
    }
}

fn word(option: &'static str, value: &str) -> Result<String, ObjectUrlError> {
    let is_word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
    if !value.is_empty() && value.bytes().all(is_word) {
        return Ok(value.to_owned());
    }
    Err(ObjectUrlError::InvalidOption {
        option,
        value: value.to_owned(),
        expected: "a name of letters, digits, `-` and `_`",
    })
}

fn switch(option: &'static str, value: &str) -> Result<bool, ObjectUrlError> {
    match value {
        "true" => Ok(true),
        "false" => Ok(false),
        other => Err(ObjectUrlError::InvalidOption {
            option,
            value: other.to_owned(),
            expected: "true or false",
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<ObjectStoreUrl, ObjectUrlError> {
        text.parse()
    }

    #[test]
    fn an_url_names_bucket_prefix_and_options() {
        let url = parse(
            "s3://models/kv/one?endpoint=http://127.0.0.1:8333/&region=eu-west-1&virtual_hosted=true\
             &anonymous=false",
        );
        let url = url.unwrap();
        assert_eq!(url.to_string(), "s3://models/kv/one");
        assert_eq!(url.bucket, "models");
        assert_eq!(url.prefix, "kv/one");
        assert_eq!(url.endpoint.as_deref(), Some("http://127.0.0.1:8333"));
        assert_eq!(url.region.as_deref(), Some("eu-west-1"));
        assert!(url.virtual_hosted && !url.anonymous && url.is_plain_http());
        for bare in ["gs://models", "gs://models/"] {
            let url = parse(bare).unwrap();
            assert_eq!(
                (url.to_string().as_str(), url.prefix.as_str()),
                ("gs://models", "")
            );
            assert!(!url.is_plain_http());
        }
        let azure = parse("az://models/kv?account=mine").unwrap();
        assert_eq!(azure.account.as_deref(), Some("mine"));
        assert_eq!(azure.scheme, ObjectScheme::Azure);
    }

    #[test]
    fn what_an_url_cannot_have_is_refused_by_name() {
        for (text, part) in [
            ("models/kv", "no URL"),
            ("http://models/kv", "\"http\" is none of s3, gs and az"),
            ("s3:///kv", "names no bucket"),
            ("s3://key:secret@models/kv", "a user or a password"),
            ("s3://models:80/kv", "a port"),
            ("s3://models/kv#x", "a fragment"),
            ("s3://models/Kv", "cannot be the prefix"),
            ("s3://models//", "cannot be the prefix"),
            ("s3://models/a%20b", "cannot be the prefix"),
            ("s3://models/a%2fb", "cannot be the prefix"),
            ("s3://models/café", "cannot be the prefix"),
            ("s3://models/a+b", "cannot be the prefix"),
            ("s3://models/a/.b", "cannot be the prefix"),
            (
                "s3://models/kv?regoin=x",
                "no option \"regoin\"; they have: anonymous, endpoint",
            ),
            (
                "gs://models/kv?region=x",
                "gs URLs have no option \"region\"",
            ),
            (
                "s3://models/kv?region=a&region=b",
                "\"region\" occurs twice",
            ),
            ("s3://models/kv?region=", "region is \"\""),
            (
                "s3://models/kv?endpoint=127.0.0.1",
                "endpoint is \"127.0.0.1\"",
            ),
            ("s3://models/kv?endpoint=http://u:p@h", "endpoint is"),
            ("s3://models/kv?virtual_hosted=yes", "it is true or false"),
        ] {
            let message = parse(text).unwrap_err().to_string();
            assert!(message.contains(part), "{text}: {message}");
            assert!(!message.contains("secret"), "{message}");
        }
    }
}
