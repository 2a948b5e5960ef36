//! What a server states about itself when a store opens.

use std::fmt;

/// What a server states about itself. What it does not state is `None`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct RedisFacts {
    /// Its program and version: `redis 7.0.15`.
    pub program: Option<String>,
    /// Its memory limit in bytes; 0 is none.
    pub memory_max_bytes: Option<u64>,
    /// Bytes of memory in use.
    pub memory_used_bytes: Option<u64>,
    /// Its connections, those of other programs too.
    pub clients: Option<u64>,
    /// The name of its eviction policy.
    pub policy: Option<String>,
    /// Whether it writes each change to an append-only file before it answers (`appendonly yes` and `appendfsync always`),
    /// so that values outlive it. With another `appendfsync` it answers while an earlier fsync runs, and a server that is
    /// killed then loses what it has acknowledged.
    pub is_durable: bool,
    /// Whether it is a node of a cluster.
    pub is_cluster: bool,
    /// Whether it is a replica, which accepts no writes.
    pub is_replica: bool,
}

/// A setting of the server with which a store works, but not well.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum RedisWarning {
    /// The server does not state its settings.
    Unknown,
    /// No limit of its memory.
    NoMemoryLimit,
    /// At its limit it refuses writes in place of evicting values.
    NoEviction,
    /// At its limit it evicts only values with a lifetime.
    EvictsExpiringOnly {
        /// The policy.
        policy: String,
    },
    /// Its memory is full, and it refuses writes.
    Full,
}

impl fmt::Display for RedisWarning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RedisWarning::Unknown => f.write_str(
                "the server does not state its memory limit (INFO is not permitted); set maxmemory and \
                 maxmemory-policy allkeys-lru there",
            ),
            RedisWarning::NoMemoryLimit => f.write_str(
                "maxmemory is not set: the server takes memory until the machine has none; set it, and \
                 maxmemory-policy allkeys-lru",
            ),
            RedisWarning::NoEviction => f.write_str(
                "maxmemory-policy is noeviction: a full server refuses new values; set allkeys-lru",
            ),
            RedisWarning::EvictsExpiringOnly { policy } => write!(
                f,
                "maxmemory-policy is {policy}: a full server evicts only values with a lifetime; set \
                 allkeys-lru"
            ),
            RedisWarning::Full => f.write_str(
                "the memory of the server is full and it refuses new values; values that it has are read",
            ),
        }
    }
}

impl RedisFacts {
    /// The facts in the reply to `INFO`, and in the setting `appendfsync`, if the server states it.
    pub(crate) fn of_info(info: &str, appendfsync: Option<&str>) -> RedisFacts {
        let field = |name: &str| {
            let mut lines = info.lines();
            let line = lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
            line.map(|value| value.trim().to_owned())
        };
        let number = |name: &str| field(name).and_then(|number| number.parse().ok());
        let is = |name, value| field(name).is_some_and(|found| found == value);
        let version = |name, field_name| field(field_name).map(|of| format!("{name} {of}"));
        RedisFacts {
            program: version("valkey", "valkey_version")
                .or_else(|| version("redis", "redis_version")),
            memory_max_bytes: number("maxmemory"),
            memory_used_bytes: number("used_memory"),
            clients: number("connected_clients"),
            policy: field("maxmemory_policy"),
            is_durable: is("aof_enabled", "1") && appendfsync == Some("always"),
            is_cluster: is("cluster_enabled", "1"),
            is_replica: is("role", "slave"),
        }
    }

    /// The settings that kvtile advises to change.
    pub(crate) fn warnings(&self) -> Vec<RedisWarning> {
        match (self.memory_max_bytes, self.policy.as_deref()) {
            (None, _) | (Some(_), None) => vec![RedisWarning::Unknown],
            (Some(0), _) => vec![RedisWarning::NoMemoryLimit],
            (Some(_), Some("noeviction")) => vec![RedisWarning::NoEviction],
            (Some(_), Some(policy)) if policy.starts_with("volatile") => {
                let policy = policy.to_owned();
                vec![RedisWarning::EvictsExpiringOnly { policy }]
            }
            _ => Vec::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn facts_and_warnings_are_read_from_the_server() {
        let info = |max: &str, policy: &str| {
            format!(
                "# Server\r\nredis_version:7.2.4\r\nvalkey_version:9.1.2\r\n# Memory\r\nmaxmemory:{max}\r\n\
                 maxmemory_human:1M\r\nmaxmemory_policy:{policy}\r\naof_enabled:1\r\nrole:master\r\n"
            )
        };
        let plain = info("1000", "allkeys-lru");
        for other in [None, Some("everysec"), Some("no")] {
            assert!(!RedisFacts::of_info(&plain, other).is_durable);
        }
        let without = plain.replace("aof_enabled:1", "aof_enabled:0");
        assert!(!RedisFacts::of_info(&without, Some("always")).is_durable);
        let facts = RedisFacts::of_info(&plain, Some("always"));
        assert_eq!(facts.program.as_deref(), Some("valkey 9.1.2"));
        assert_eq!(facts.memory_max_bytes, Some(1000));
        assert!(facts.is_durable && !facts.is_cluster && !facts.is_replica);
        assert_eq!(facts.warnings(), []);
        let warnings = |max, policy| RedisFacts::of_info(&info(max, policy), None).warnings();
        assert_eq!(warnings("0", "noeviction"), [RedisWarning::NoMemoryLimit]);
        assert_eq!(warnings("9", "noeviction"), [RedisWarning::NoEviction]);
        assert!(
            warnings("9", "volatile-ttl")[0]
                .to_string()
                .contains("volatile-ttl")
        );
        assert_eq!(RedisFacts::default().warnings(), [RedisWarning::Unknown]);
    }
}
