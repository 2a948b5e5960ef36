//! The URL of a server: `redis://host:6379/0?prefix=kv`, or `unix:///path/of/socket?db=0`.

use std::{fmt, path::PathBuf, str::FromStr};

use kvtile_shared::store::ValueName;
use url::{Host, Url};

/// The port of a server, if the URL has none.
const PORT: u16 = 6379;

/// Connections of a store, if the URL has no other number.
const CONNECTIONS: usize = 8;

/// The most connections of a store.
const CONNECTIONS_MAX: usize = 256;

/// The options of an URL.
const OPTIONS: &[&str] = &["connections", "db", "prefix"];

/// Where a server listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RedisAddress {
    /// A port of a host.
    Tcp {
        /// Name or address of the host.
        host: String,
        /// The port.
        port: u16,
    },
    /// A Unix socket.
    Unix(PathBuf),
}

/// A text that is not the URL of a server.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RedisUrlError {
    /// No URL.
    #[error("this is no URL ({problem}); write for example redis://host:6379/0")]
    NoUrl {
        /// The parser's message.
        problem: String,
    },
    /// A scheme of no server.
    #[error(
        "the scheme {scheme:?} is neither redis nor unix; TLS (rediss) is not supported: use a tunnel or a \
         network that nothing else reaches"
    )]
    UnknownScheme {
        /// The scheme.
        scheme: String,
    },
    /// No host, or no path of a socket.
    #[error("the URL names no server; write redis://host:6379/0 or unix:///path/of/socket")]
    NoServer,
    /// A database that is not a number, or stated twice.
    #[error("{text:?} is not one number of a database; write redis://host:6379/0")]
    InvalidDatabase {
        /// The text.
        text: String,
    },
    /// An option that URLs do not have.
    #[error("the URL has no option {option:?}; it has: {}", OPTIONS.join(", "))]
    UnknownOption {
        /// The option.
        option: String,
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

/// The URL of a server, a database and a prefix.
#[derive(Clone, PartialEq, Eq)]
pub struct RedisUrl {
    /// Where the server listens.
    pub address: RedisAddress,
    /// The number of the database.
    pub database: u32,
    /// The user; `None` for the default user.
    pub user: Option<String>,
    /// The password.
    pub password: Option<String>,
    /// What all names begin with; empty, or without slashes at its ends.
    pub prefix: String,
    /// The most connections at a time.
    pub connections: usize,
}

impl FromStr for RedisUrl {
    type Err = RedisUrlError;

    fn from_str(text: &str) -> Result<RedisUrl, RedisUrlError> {
        let url = Url::parse(text).map_err(|problem| RedisUrlError::NoUrl {
            problem: problem.to_string(),
        })?;
        let address = address(&url)?;
        let user = Some(decoded(url.username())).filter(|user| !user.is_empty());
        let mut parsed = RedisUrl {
            database: 0,
            user,
            password: url.password().map(decoded),
            prefix: String::new(),
            connections: CONNECTIONS,
            address,
        };
        let mut has_database = false;
        if let RedisAddress::Tcp { .. } = parsed.address {
            let path = url.path().trim_start_matches('/');
            if !path.is_empty() {
                parsed.database = database(path)?;
                has_database = true;
            }
        }
        let mut seen = Vec::new();
        for (option, value) in url.query_pairs() {
            if seen.contains(&option) {
                let option = option.into_owned();
                return Err(RedisUrlError::OptionTwice { option });
            }
            if option == "db" && has_database {
                let text = format!("{} and db={value}", url.path());
                return Err(RedisUrlError::InvalidDatabase { text });
            }
            parsed.set(&option, &value)?;
            seen.push(option);
        }
        Ok(parsed)
    }
}

impl RedisUrl {
    fn set(&mut self, option: &str, value: &str) -> Result<(), RedisUrlError> {
        match option {
            "db" => self.database = database(value)?,
            "prefix" => self.prefix = prefix(value)?,
            "connections" => self.connections = connections(value)?,
            unknown => {
                let option = unknown.to_owned();
                return Err(RedisUrlError::UnknownOption { option });
            }
        }
        Ok(())
    }
}

/// Without user, password and options: `redis://host:6379/0`.
impl fmt::Display for RedisUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.address {
            RedisAddress::Tcp { host, port } => {
                write!(f, "redis://{host}:{port}/{}", self.database)?;
            }
            RedisAddress::Unix(path) => {
                write!(f, "unix://{}?db={}", path.display(), self.database)?;
            }
        }
        match self.prefix.is_empty() {
            true => Ok(()),
            false => write!(f, " under {}", self.prefix),
        }
    }
}

/// Like the display: without the password.
impl fmt::Debug for RedisUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("RedisUrl").field(&self.to_string()).finish()
    }
}

fn address(url: &Url) -> Result<RedisAddress, RedisUrlError> {
    match url.scheme() {
        "redis" => {
            let host = match url.host() {
                Some(Host::Ipv6(address)) => format!("[{address}]"),
                Some(host) => host.to_string(),
                None => String::new(),
            };
            match host.is_empty() {
                true => Err(RedisUrlError::NoServer),
                false => Ok(RedisAddress::Tcp {
                    host,
                    port: url.port().unwrap_or(PORT),
                }),
            }
        }
        "unix" => {
            let has_host = url.host_str().is_some_and(|host| !host.is_empty());
            match url.path() {
                path if path.len() > 1 && !has_host => {
                    Ok(RedisAddress::Unix(PathBuf::from(decoded(path))))
                }
                _ => Err(RedisUrlError::NoServer),
            }
        }
        other => Err(RedisUrlError::UnknownScheme {
            scheme: other.to_owned(),
        }),
    }
}

/// A part of an URL without its percent signs.
fn decoded(part: &str) -> String {
    let mut bytes = part.bytes();
    let mut decoded = Vec::with_capacity(part.len());
    while let Some(byte) = bytes.next() {
        let mut after = bytes.clone();
        let digits = [after.next(), after.next()].map(|digit| {
            let digit = char::from(digit?).to_digit(16)?;
            u8::try_from(digit).ok()
        });
        match (byte, digits) {
            (b'%', [Some(high), Some(low)]) => {
                decoded.push(high * 16 + low);
                bytes = after;
            }
            _ => decoded.push(byte),
        }
    }
    String::from_utf8_lossy(&decoded).into_owned()
}

fn database(text: &str) -> Result<u32, RedisUrlError> {
    text.parse().map_err(|_| RedisUrlError::InvalidDatabase {
        text: text.to_owned(),
    })
}

fn prefix(value: &str) -> Result<String, RedisUrlError> {
    match ValueName::new(value) {
        Ok(_) => Ok(value.to_owned()),
        Err(_) => Err(RedisUrlError::InvalidOption {
            option: "prefix",
            value: value.to_owned(),
            expected: "lower-case letters, digits and any of `.-_/`, without parts that are empty or begin \
                       with a dot",
        }),
    }
}

fn connections(value: &str) -> Result<usize, RedisUrlError> {
    match value.parse() {
        Ok(number) if (1..=CONNECTIONS_MAX).contains(&number) => Ok(number),
        _ => Err(RedisUrlError::InvalidOption {
            option: "connections",
            value: value.to_owned(),
            expected: "a number from 1 to 256",
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<RedisUrl, RedisUrlError> {
        text.parse()
    }

    #[test]
    fn an_url_names_server_database_and_options() {
        let url = parse("redis://me:p%40ss@cache:7000/3?prefix=kv/one&connections=2").unwrap();
        assert_eq!(
            (url.user.as_deref(), url.password.as_deref()),
            (Some("me"), Some("p@ss"))
        );
        assert_eq!((url.database, url.connections), (3, 2));
        assert_eq!(url.to_string(), "redis://cache:7000/3 under kv/one");
        assert!(!format!("{url:?}").contains("ss@"));
        let url = parse("redis://:secret@127.0.0.1").unwrap();
        assert_eq!(
            (url.user.clone(), url.to_string()),
            (None, "redis://127.0.0.1:6379/0".into())
        );
        assert_eq!(
            parse("redis://[::1]/?db=2").unwrap().to_string(),
            "redis://[::1]:6379/2"
        );
        let unix = parse("unix:///run/a%20b.sock?db=1").unwrap();
        assert_eq!(unix.address, RedisAddress::Unix("/run/a b.sock".into()));
        assert_eq!(unix.database, 1);
    }

    #[test]
    fn what_an_url_cannot_have_is_refused_by_name() {
        for (text, part) in [
            ("cache:6379", "neither redis nor unix"),
            ("cache", "no URL"),
            ("rediss://cache", "TLS (rediss) is not supported"),
            ("redis://", "names no server"),
            ("unix://", "names no server"),
            ("unix://cache/x", "names no server"),
            ("redis://cache/one", "\"one\" is not one number"),
            ("redis://cache/-1", "\"-1\" is not one number"),
            ("redis://cache/1?db=2", "/1 and db=2"),
            (
                "redis://cache?conections=2",
                "no option \"conections\"; it has: connections, db, prefix",
            ),
            ("redis://cache?db=1&db=1", "\"db\" occurs twice"),
            ("redis://cache?connections=0", "from 1 to 256"),
            ("redis://cache?prefix=A*", "prefix is \"A*\""),
        ] {
            let message = parse(text).unwrap_err().to_string();
            assert!(message.contains(part), "{text}: {message}");
        }
    }
}
