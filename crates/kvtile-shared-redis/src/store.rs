//! A server as a store of a shared tier.

use std::{
    hash::{BuildHasher, Hasher, RandomState},
    ops::Range,
    time::Duration,
};

use kvtile_shared::store::{
    Deadline, ListPage, ListedValue, SharedStore, SharedStoreAbilities, SharedStoreError,
    SinkState, StoreErrorKind, StoreExpiry, StoreOperation, ValueName, ValueSink, ValueWritten,
};

use crate::{
    connection::RedisConnection,
    facts::{RedisFacts, RedisWarning},
    failure::RedisFailure,
    pool::ConnectionPool,
    reply::{RedisReply, ValueRead},
    url::RedisUrl,
};

/// The most names in one call.
const NAMES_MAX: usize = 1024;

/// The number of keys that one step of a listing looks at, about.
const PAGE: &str = "1000";

/// The longest value of a server, in bytes.
const VALUE_BYTES_MAX: usize = 512 << 20;

/// The shortest lifetime of a value: a server refuses 0.
const LIFETIME_MIN: Duration = Duration::from_millis(1);

/// The longest lifetime of a value; longer ones are as good as none, and servers refuse much longer
/// ones.
const LIFETIME_MAX: Duration = Duration::from_hours(24 * 365 * 10);

/// A server, or a prefix of its names, as a store of a shared tier.
#[derive(Debug)]
pub struct RedisStore {
    name: String,
    prefix: String,
    connections: usize,
    pool: ConnectionPool,
    facts: RedisFacts,
    warnings: Vec<RedisWarning>,
}

impl RedisStore {
    /// Opens a store: connects, logs in, reads the settings of the server, and writes and removes a
    /// small value. Each [warning](RedisStore::warnings) goes to the log too.
    ///
    /// # Errors
    /// No server by the deadline, refused credentials, a replica, or a node of a cluster.
    pub fn open(url: &RedisUrl, by: Deadline) -> Result<RedisStore, SharedStoreError> {
        let name = url.to_string();
        let failed = |failure: RedisFailure| failure.into_error(StoreOperation::Open, &name);
        let pool = ConnectionPool::open(url, by).map_err(failed)?;
        let info = pool.run(by, |connection| connection.call(&[b"INFO"], by));
        let fsync = pool.run(by, |connection| {
            connection.call(&[b"CONFIG", b"GET", b"appendfsync"], by)
        });
        let fsync = setting(fsync).map_err(failed)?;
        let facts = match info {
            Ok(RedisReply::Text(info)) => {
                RedisFacts::of_info(&String::from_utf8_lossy(&info), fsync.as_deref())
            }
            Ok(_) => RedisFacts::default(),
            Err(RedisFailure::Server(text)) if text.starts_with("NOPERM") => RedisFacts::default(),
            Err(failure) => return Err(failed(failure)),
        };
        check_role(&facts, &name)?;
        let mut warnings = facts.warnings();
        let key = format!("{}/.kvtile-probe/{:016x}", url.prefix, random());
        let key = key.trim_start_matches('/');
        match pool.run(by, |connection| try_out(connection, key, by)) {
            Ok(()) => {}
            Err(RedisFailure::Server(text)) if text.starts_with("OOM") => {
                warnings.push(RedisWarning::Full);
            }
            Err(failure) => return Err(failed(failure)),
        }
        for warning in &warnings {
            log::warn!("{name}: {warning}");
        }
        Ok(RedisStore {
            prefix: match url.prefix.is_empty() {
                true => String::new(),
                false => format!("{}/", url.prefix),
            },
            connections: url.connections,
            name,
            pool,
            facts,
            warnings,
        })
    }

    /// What the server stated about itself when the store opened.
    #[must_use]
    pub fn facts(&self) -> &RedisFacts {
        &self.facts
    }

    /// The settings of the server that kvtile advises to change, as they were when the store opened.
    #[must_use]
    pub fn warnings(&self) -> &[RedisWarning] {
        &self.warnings
    }

    fn run<T>(
        &self,
        operation: StoreOperation,
        by: Deadline,
        commands: impl FnMut(&mut RedisConnection) -> Result<T, RedisFailure>,
    ) -> Result<T, SharedStoreError> {
        let ended = self.pool.run(by, commands);
        ended.map_err(|failure| failure.into_error(operation, &self.name))
    }

    fn key(&self, name: &ValueName) -> String {
        format!("{}{name}", self.prefix)
    }

    fn keys(&self, names: &[ValueName]) -> Vec<String> {
        names.iter().map(|name| self.key(name)).collect()
    }

    /// Reads a value, or some bytes of it. Returns whether there were any.
    fn read_bytes(
        &self,
        name: &ValueName,
        range: Option<&Range<u64>>,
        sink: &mut dyn ValueSink,
        by: Deadline,
    ) -> Result<bool, SharedStoreError> {
        let key = self.key(name);
        let read = self.pool.run(by, |connection| {
            match connection.get(&key, range, sink, by)? {
                // Ends the connection: the rest of the value is still to come.
                ValueRead::Cut => Err(RedisFailure::Cut),
                read => Ok(read),
            }
        });
        match read {
            Ok(read) => Ok(read == ValueRead::Whole),
            Err(RedisFailure::Cut) => Ok(true),
            Err(failure) => Err(failure.into_error(StoreOperation::Read, &self.name)),
        }
    }

    /// The keys of a step of `SCAN`, and the next cursor.
    fn scan(
        connection: &mut RedisConnection,
        pattern: &str,
        cursor: u64,
        by: Deadline,
    ) -> Result<(u64, Vec<Vec<u8>>), RedisFailure> {
        let cursor = cursor.to_string();
        let (cursor, pattern) = (cursor.as_bytes(), pattern.as_bytes());
        let count = PAGE.as_bytes();
        let command: [&[u8]; 6] = [b"SCAN", cursor, b"MATCH", pattern, b"COUNT", count];
        let wrong = || RedisFailure::Protocol("a reply to SCAN of another kind");
        let RedisReply::Parts(parts) = connection.call(&command, by)? else {
            return Err(wrong());
        };
        let (Some(RedisReply::Text(next)), Some(RedisReply::Parts(found))) =
            (parts.first(), parts.get(1))
        else {
            return Err(wrong());
        };
        let next = std::str::from_utf8(next)
            .ok()
            .and_then(|next| next.parse().ok());
        let keys = found.iter().filter_map(|key| match key {
            RedisReply::Text(key) => Some(key.clone()),
            _ => None,
        });
        Ok((next.ok_or_else(wrong)?, keys.collect()))
    }
}

/// The value in the reply to `CONFIG GET`; `None` from a server that has no such setting or does not permit the question.
fn setting(reply: Result<RedisReply, RedisFailure>) -> Result<Option<String>, RedisFailure> {
    match reply {
        Ok(RedisReply::Parts(parts)) => Ok(match parts.as_slice() {
            [_, RedisReply::Text(value)] => Some(String::from_utf8_lossy(value).into_owned()),
            _ => None,
        }),
        Ok(_) | Err(RedisFailure::Server(_)) => Ok(None),
        Err(failure) => Err(failure),
    }
}

/// Refuses servers that no store can use.
fn check_role(facts: &RedisFacts, name: &str) -> Result<(), SharedStoreError> {
    let problem = match facts {
        facts if facts.is_cluster => {
            "is a node of a cluster, which is not supported; give a single server"
        }
        facts if facts.is_replica => "is a replica, which accepts no writes; give its primary",
        _ => return Ok(()),
    };
    let what = format!("{name} {problem}");
    Err(SharedStoreError::configuration(StoreOperation::Open, what))
}

/// Tries the commands of a store, for the rights of its user.
fn try_out(connection: &mut RedisConnection, key: &str, by: Deadline) -> Result<(), RedisFailure> {
    connection.set(key, &[b"1"], Some(10_000), by)?;
    let key = key.as_bytes();
    connection.call(&[b"EXISTS", key], by)?;
    connection.call(&[b"GET", key], by)?;
    connection.call(&[b"GETRANGE", key, b"0", b"0"], by)?;
    connection.call(&[b"PEXPIRE", key, b"10000"], by)?;
    connection.call(&[b"UNLINK", key], by).map(drop)
}

/// A number that no other opening has.
fn random() -> u64 {
    RandomState::new().build_hasher().finish()
}

/// A lifetime in milliseconds, within the limits of servers.
fn milliseconds(lifetime: Duration) -> u64 {
    let lifetime = lifetime.clamp(LIFETIME_MIN, LIFETIME_MAX);
    u64::try_from(lifetime.as_millis()).unwrap_or(u64::MAX)
}

impl SharedStore for RedisStore {
    fn name(&self) -> &str {
        &self.name
    }

    fn abilities(&self) -> SharedStoreAbilities {
        SharedStoreAbilities {
            is_durable: self.facts.is_durable,
            capacity_bytes: self.facts.memory_max_bytes.filter(|bytes| *bytes > 0),
            keeps_first: true,
            reads_ranges: true,
            expires: StoreExpiry::PerValue,
            best_bytes: 16 << 10..=1 << 20,
            batch_max: NAMES_MAX,
            in_flight_max: self.connections,
            latency: Duration::from_millis(1),
            bytes_per_second: 500_000_000,
        }
    }

    fn has(&self, names: &[ValueName], by: Deadline) -> Result<Vec<bool>, SharedStoreError> {
        let keys = self.keys(names);
        let commands = keys
            .iter()
            .map(|key| vec![b"EXISTS".as_slice(), key.as_bytes()]);
        let commands: Vec<_> = commands.collect();
        let replies = self.run(StoreOperation::Has, by, |connection| {
            connection.pipeline(&commands, by)
        })?;
        Ok(replies
            .iter()
            .map(|reply| *reply == RedisReply::Number(1))
            .collect())
    }

    fn read(
        &self,
        name: &ValueName,
        sink: &mut dyn ValueSink,
        by: Deadline,
    ) -> Result<bool, SharedStoreError> {
        self.read_bytes(name, None, sink, by)
    }

    fn read_range(
        &self,
        name: &ValueName,
        range: Range<u64>,
        sink: &mut dyn ValueSink,
        by: Deadline,
    ) -> Result<bool, SharedStoreError> {
        if range.is_empty() {
            return Ok(true);
        }
        // The server's answer for an absent value has no bytes.
        let mut counted = CountedSink { sink, bytes: 0 };
        let is_there = self.read_bytes(name, Some(&range), &mut counted, by)?;
        Ok(is_there && counted.bytes > 0)
    }

    fn write(
        &self,
        name: &ValueName,
        parts: &[&[u8]],
        lifetime: Option<Duration>,
        by: Deadline,
    ) -> Result<ValueWritten, SharedStoreError> {
        let bytes: usize = parts.iter().map(|part| part.len()).sum();
        if bytes > VALUE_BYTES_MAX {
            let what = format!("a value of {bytes} bytes; at most {VALUE_BYTES_MAX}");
            return Err(SharedStoreError::refused(StoreOperation::Write, what));
        }
        let key = self.key(name);
        let lifetime = lifetime.map(milliseconds);
        let is_new = self.run(StoreOperation::Write, by, |connection| {
            connection.set(&key, parts, lifetime, by)
        })?;
        Ok(match is_new {
            true => ValueWritten::New,
            false => ValueWritten::Present,
        })
    }

    fn remove(&self, names: &[ValueName], by: Deadline) -> Result<usize, SharedStoreError> {
        if names.is_empty() {
            return Ok(0);
        }
        let keys = self.keys(names);
        let mut command = vec![b"UNLINK".as_slice()];
        command.extend(keys.iter().map(|key| key.as_bytes()));
        let reply = self.run(StoreOperation::Remove, by, |connection| {
            connection.call(&command, by)
        })?;
        match reply {
            RedisReply::Number(removed) => Ok(usize::try_from(removed).unwrap_or(0)),
            _ => Ok(0),
        }
    }

    fn touch(
        &self,
        names: &[ValueName],
        lifetime: Option<Duration>,
        by: Deadline,
    ) -> Result<(), SharedStoreError> {
        let keys = self.keys(names);
        let lifetime = lifetime.map(|lifetime| milliseconds(lifetime).to_string());
        let commands = keys.iter().map(|key| match &lifetime {
            Some(lifetime) => vec![b"PEXPIRE".as_slice(), key.as_bytes(), lifetime.as_bytes()],
            None => vec![b"PERSIST".as_slice(), key.as_bytes()],
        });
        let commands: Vec<_> = commands.collect();
        let touched = self.run(StoreOperation::Touch, by, |connection| {
            connection.pipeline(&commands, by)
        });
        touched.map(drop)
    }

    fn list(
        &self,
        under: &str,
        after: Option<&str>,
        by: Deadline,
    ) -> Result<ListPage, SharedStoreError> {
        let cursor = match after.map(str::parse) {
            None => 0,
            Some(Ok(cursor)) => cursor,
            Some(Err(_)) => {
                let what = format!("{after:?} is not the beginning of a page");
                let kind = StoreErrorKind::Refused;
                return Err(SharedStoreError::new(kind, StoreOperation::List, what));
            }
        };
        // Names have none of the characters that a pattern gives a meaning.
        let pattern = format!("{}{under}*", self.prefix);
        let (next, found) = self.run(StoreOperation::List, by, |connection| {
            RedisStore::scan(connection, &pattern, cursor, by)
        })?;
        let names = found.iter().filter_map(|key| {
            let name = std::str::from_utf8(key).ok()?.strip_prefix(&self.prefix)?;
            ValueName::new(name)
                .ok()
                .filter(|_| name.starts_with(under))
        });
        let names: Vec<ValueName> = names.collect();
        let keys = self.keys(&names);
        let commands = keys
            .iter()
            .map(|key| vec![b"STRLEN".as_slice(), key.as_bytes()]);
        let commands: Vec<_> = commands.collect();
        let sizes = self.run(StoreOperation::List, by, |connection| {
            connection.pipeline_each(&commands, by)
        })?;
        let sizes = sizes.into_iter().map(|reply| match reply {
            Ok(RedisReply::Number(bytes)) => u64::try_from(bytes).ok(),
            // A key of another kind is no value.
            _ => None,
        });
        let listed = names.into_iter().zip(sizes).filter_map(|(name, bytes)| {
            // A value that has expired since has length 0.
            let bytes = bytes.filter(|bytes| *bytes > 0)?;
            Some(ListedValue {
                name,
                bytes,
                age: None,
            })
        });
        Ok(ListPage {
            values: listed.collect(),
            next: Some(next)
                .filter(|next| *next != 0)
                .map(|next| next.to_string()),
        })
    }
}

/// Counts the bytes that come.
struct CountedSink<'a> {
    sink: &'a mut dyn ValueSink,
    bytes: u64,
}

impl ValueSink for CountedSink<'_> {
    fn space(&mut self) -> &mut [u8] {
        self.sink.space()
    }

    fn filled(&mut self, bytes: usize) -> SinkState {
        self.bytes += bytes as u64;
        self.sink.filled(bytes)
    }

    fn put(&mut self, bytes: &[u8]) -> SinkState {
        self.bytes += bytes.len() as u64;
        self.sink.put(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lifetime_stays_within_the_limits_of_servers() {
        assert_eq!(milliseconds(Duration::ZERO), 1);
        assert_eq!(milliseconds(Duration::from_secs(2)), 2000);
        assert_eq!(milliseconds(Duration::MAX), 315_360_000_000);
    }
}
