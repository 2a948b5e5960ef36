//! The settings of key derivation, serialisable. The header of the module above explains the
//! profiles.

use serde::{Deserialize, Serialize};
use std::fmt;

/// The largest page size, in tokens.
pub const PAGE_SIZE_MAX: usize = 4096;

pub(super) const CONTEXT_BLAKE3: &str = "kvtile 2026-11-23 04:22:00 block keys, BLAKE3";
pub(super) const CONTEXT_XXH3: &str = "kvtile 2026-11-23 04:22:00 block keys, XXH3-128";
pub(super) const CONTEXT_OPAQUE: &str = "kvtile 2026-11-23 04:22:00 block keys of an engine";

/// Which hash makes the keys.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
#[non_exhaustive]
pub enum KeyProfile {
    /// Keyed BLAKE3, 128 bits: safe for untrusted tenants.
    #[default]
    Blake3,
    /// Seeded XXH3-128: faster, for one tenant whose prompts are trusted.
    Xxh3,
    /// XXH3-64 hashes as some routers use them, for one tenant whose prompts are trusted. The keys
    /// cover neither extra keys nor the identity, and no salt but the seed.
    Router {
        /// The seed of the hash of a block's tokens, which routers call the salt.
        seed: u64,
    },
}

impl KeyProfile {
    /// The name in tables and errors.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            KeyProfile::Blake3 => "blake3",
            KeyProfile::Xxh3 => "xxh3",
            KeyProfile::Router { .. } => "router",
        }
    }
}

/// The settings of key derivation.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct KeySettings {
    /// The hash.
    pub profile: KeyProfile,
    /// Tokens per block, `1..=`[`PAGE_SIZE_MAX`].
    pub page_size: usize,
    /// Separates tenants: a lookup finds only blocks of the same salt. Empty for a cache without
    /// tenant separation.
    pub salt: String,
}

impl KeySettings {
    /// The defaults.
    #[must_use]
    pub fn new() -> KeySettings {
        KeySettings::default()
    }

    /// Sets [`profile`](Self::profile).
    #[must_use]
    pub fn profile(mut self, profile: KeyProfile) -> KeySettings {
        self.profile = profile;
        self
    }

    /// Sets [`page_size`](Self::page_size).
    #[must_use]
    pub fn page_size(mut self, page_size: usize) -> KeySettings {
        self.page_size = page_size;
        self
    }

    /// Sets [`salt`](Self::salt).
    #[must_use]
    pub fn salt(mut self, salt: impl Into<String>) -> KeySettings {
        self.salt = salt.into();
        self
    }
}

impl Default for KeySettings {
    fn default() -> KeySettings {
        KeySettings {
            profile: KeyProfile::default(),
            page_size: 16,
            salt: String::new(),
        }
    }
}

/// Hides the salt, which may be a secret.
impl fmt::Debug for KeySettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let salt = if self.salt.is_empty() {
            "none"
        } else {
            "hidden"
        };
        f.debug_struct("KeySettings")
            .field("profile", &self.profile)
            .field("page_size", &self.page_size)
            .field("salt", &format_args!("{salt}"))
            .finish()
    }
}
