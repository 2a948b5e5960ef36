//! The names of tiers.

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use std::fmt;
use std::str::FromStr;

use crate::BlocksError;

/// The maximum length of a tier's name, in bytes.
pub const TIER_NAME_BYTES_MAX: usize = 15;

/// The kind of a tier. It is for ordering and display; no decision depends on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum TierKind {
    /// Memory that the engine computes in.
    Device,
    /// Host memory.
    Host,
    /// A folder on a disk of the machine.
    Disk,
    /// A store that many caches share: a folder, a bucket, a server.
    Shared,
    /// Another process or machine.
    Remote,
}

impl TierKind {
    /// All kinds, usually fastest first.
    pub const ALL: [TierKind; 5] = [
        TierKind::Device,
        TierKind::Host,
        TierKind::Disk,
        TierKind::Shared,
        TierKind::Remote,
    ];

    /// The kind's name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            TierKind::Device => "device",
            TierKind::Host => "host",
            TierKind::Disk => "disk",
            TierKind::Shared => "shared",
            TierKind::Remote => "remote",
        }
    }
}

/// A tier has a capacity of its own and keeps blocks by key. Its id is a kind and a name, which
/// distinguishes two disks of one cache.
///
/// As text, the id is the kind alone if the name equals it (`disk`), else both (`disk:scratch`).
/// Ids are ordered by kind, then by name.
///
/// ```
/// use kvtile_blocks::events::{TierId, TierKind};
///
/// let scratch = TierId::new(TierKind::Disk, "scratch")?;
/// assert_eq!(scratch.to_string(), "disk:scratch");
/// assert_eq!("disk".parse::<TierId>()?, TierId::DISK);
/// # Ok::<(), kvtile_blocks::BlocksError>(())
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TierId {
    kind: TierKind,
    /// The name, padded with zeroes.
    name: [u8; TIER_NAME_BYTES_MAX],
}

impl TierId {
    /// The engine's own memory.
    pub const DEVICE: TierId = TierId {
        kind: TierKind::Device,
        name: *b"device\0\0\0\0\0\0\0\0\0",
    };

    /// Host memory.
    pub const HOST: TierId = TierId {
        kind: TierKind::Host,
        name: *b"host\0\0\0\0\0\0\0\0\0\0\0",
    };

    /// The disk tier of a cache.
    pub const DISK: TierId = TierId {
        kind: TierKind::Disk,
        name: *b"disk\0\0\0\0\0\0\0\0\0\0\0",
    };

    /// The shared tier of a cache.
    pub const SHARED: TierId = TierId {
        kind: TierKind::Shared,
        name: *b"shared\0\0\0\0\0\0\0\0\0",
    };

    /// A tier of some kind, with a name of 1 to [`TIER_NAME_BYTES_MAX`] letters `a` to `z`, digits,
    /// `-`, `_` or `.`.
    ///
    /// # Errors
    /// Any other name.
    pub fn new(kind: TierKind, name: &str) -> Result<TierId, BlocksError> {
        let allowed =
            |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-_.".contains(&byte);
        let mut bytes = [0; TIER_NAME_BYTES_MAX];
        match bytes.get_mut(..name.len()) {
            Some(room) if !name.is_empty() && name.bytes().all(allowed) => {
                room.copy_from_slice(name.as_bytes());
                Ok(TierId { kind, name: bytes })
            }
            _ => Err(BlocksError::TierName {
                name: name.chars().take(64).collect(),
            }),
        }
    }

    /// The kind of tier.
    #[must_use]
    pub const fn kind(&self) -> TierKind {
        self.kind
    }

    /// The name, without the kind.
    #[must_use]
    #[expect(
        clippy::missing_panics_doc,
        reason = "every constructor admits ASCII names only"
    )]
    pub fn name(&self) -> &str {
        let length = self.name.iter().position(|byte| *byte == 0);
        let (name, _) = self.name.split_at(length.unwrap_or(TIER_NAME_BYTES_MAX));
        let text = std::str::from_utf8(name);
        assert!(text.is_ok(), "the name of a tier is not ASCII: {name:?}");
        text.unwrap_or_default()
    }
}

impl fmt::Display for TierId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (kind, name) = (self.kind.name(), self.name());
        match kind == name {
            true => f.pad(kind),
            false => f.pad(&format!("{kind}:{name}")),
        }
    }
}

impl fmt::Debug for TierId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for TierId {
    type Err = BlocksError;

    fn from_str(text: &str) -> Result<TierId, BlocksError> {
        let (kind, name) = text.split_once(':').unwrap_or((text, text));
        let kind = TierKind::ALL.into_iter().find(|one| one.name() == kind);
        let kind = kind.ok_or_else(|| BlocksError::TierKind {
            text: text.chars().take(64).collect(),
        })?;
        TierId::new(kind, name)
    }
}

impl Serialize for TierId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for TierId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<TierId, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tier_is_read_back_from_its_text_and_its_json() {
        let scratch = TierId::new(TierKind::Disk, "scratch").unwrap();
        let longest = TierId::new(TierKind::Remote, "a-b_c.d12345678").unwrap();
        for (tier, text) in [
            (TierId::DEVICE, "device"),
            (TierId::HOST, "host"),
            (TierId::DISK, "disk"),
            (scratch, "disk:scratch"),
            (longest, "remote:a-b_c.d12345678"),
            (
                TierId::new(TierKind::Shared, "host").unwrap(),
                "shared:host",
            ),
        ] {
            assert_eq!(tier.to_string(), text);
            assert_eq!(text.parse::<TierId>().unwrap(), tier);
            let json = serde_json::to_string(&tier).unwrap();
            assert_eq!(json, format!("{text:?}"));
            assert_eq!(serde_json::from_str::<TierId>(&json).unwrap(), tier);
        }
        assert_eq!(scratch.name(), "scratch");
        assert_eq!(scratch.kind(), TierKind::Disk);
    }

    #[test]
    fn ids_are_ordered_by_kind_and_name_and_differ_in_either() {
        let of = |text: &str| text.parse::<TierId>().unwrap();
        let order = [
            "device", "host", "disk:a", "disk:b", "disk", "shared", "remote",
        ]
        .map(of);
        // "disk" has the name "disk", which sorts after "a" and "b".
        assert!(order.is_sorted());
        assert_ne!(of("disk:x"), of("shared:x"));
    }

    #[test]
    fn invalid_names_are_refused_with_the_given_text() {
        for name in ["", "Disk", "a b", "0123456789abcdef", "ä", "a\0", "a:b"] {
            let error = TierId::new(TierKind::Disk, name).unwrap_err();
            assert!(matches!(&error, BlocksError::TierName { name: given } if given == name));
        }
        for text in ["", "disc", "tape:x", "disk:", ":x"] {
            assert!(text.parse::<TierId>().is_err(), "{text}");
        }
    }
}
