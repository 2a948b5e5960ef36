//! Keys of blocks for one identity: the page size and the fingerprint of the identity go into the hasher, so
//! that a caller cannot make keys that no lookup of a cache with this identity finds. The fingerprint is that of
//! the whole model, so all ranks have the same keys.

use std::fmt;

use kvtile_blocks::{
    BlockKey,
    key::{BlockHasher, ExtraKeys, KeyProfile, KeySettings},
    sequence::TokenSequence,
};
use kvtile_layout::identity::Identity;
use serde::{Deserialize, Serialize};

use crate::error::{SettingsError, TierError};

/// Makes the keys of full blocks: chained hashes of their tokens, keyed by an identity and a salt.
///
/// Two blocks have one key only if they and all blocks before them have the same tokens, extra keys, identity and
/// salt. The shard of the identity does not count: all ranks of a model make the same keys, whatever their number.
/// Keys are the same in every process and on every machine. With [`KeyProfile::Router`] the identity does not
/// enter the key, and extra keys and a salt are refused: the caller must separate models by other means.
/// [`kvtile_blocks::key`] describes how hard collisions are to find.
///
/// ```
/// use kvtile_layout::{Shape, identity::Identity};
/// use kvtile_tiers::TokenHasher;
///
/// let shape = Shape::key_value(8, 2, 16, 2, 64, "bf16")?;
/// let hasher = TokenHasher::new(&Identity::new("a-model", "main", &shape)?)?;
/// let tokens: Vec<u32> = (0..40).collect();
/// assert_eq!(hasher.keys(&tokens).len(), 2); // two full blocks of 16 tokens
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub struct TokenHasher {
    hasher: BlockHasher,
}

impl TokenHasher {
    /// A hasher with BLAKE3 and no salt.
    ///
    /// # Errors
    /// A page size of the identity above [`PAGE_SIZE_MAX`](kvtile_blocks::key::PAGE_SIZE_MAX).
    pub fn new(identity: &Identity) -> Result<TokenHasher, TierError> {
        TokenHasher::with_options(identity, &HasherOptions::default())
    }

    /// A hasher with another profile, a salt, or the page size of a router.
    ///
    /// # Errors
    /// As for [`new`](Self::new); a page size that is not the identity's, unless the profile is
    /// [`KeyProfile::Router`]; a salt with that profile.
    pub fn with_options(
        identity: &Identity,
        options: &HasherOptions,
    ) -> Result<TokenHasher, TierError> {
        // What does not fit is above the limit of the hasher, which reports it.
        let of_identity = usize::try_from(identity.page_size()).unwrap_or(usize::MAX);
        let settings = options.settings(of_identity)?;
        let hasher = BlockHasher::new(&settings, identity.model_fingerprint().as_bytes())?;
        Ok(TokenHasher { hasher })
    }

    /// A hasher for the chain that `identity` identifies, with blocks of `page_size` tokens:
    /// [`GroupCache::chain_identity`](crate::groups::GroupCache::chain_identity) and
    /// [`unit`](crate::groups::GroupCache::unit).
    ///
    /// # Errors
    /// As for [`with_options`](Self::with_options).
    pub fn of_chain(
        identity: &[u8],
        page_size: u64,
        options: &HasherOptions,
    ) -> Result<TokenHasher, TierError> {
        // What does not fit is above the limit of the hasher, which reports it.
        let of_identity = usize::try_from(page_size).unwrap_or(usize::MAX);
        let settings = options.settings(of_identity)?;
        let hasher = BlockHasher::new(&settings, identity)?;
        Ok(TokenHasher { hasher })
    }

    /// The keys of all full blocks of a prompt. Tokens after the last full block have none.
    #[must_use]
    pub fn keys(&self, tokens: &[u32]) -> Vec<BlockKey> {
        let mut keys = Vec::new();
        self.hasher.keys(None, tokens, &mut keys);
        keys
    }

    /// The keys of all full blocks of `tokens` after the block `parent`, each with the extra keys `extra`, such as
    /// the name of an adapter.
    ///
    /// # Errors
    /// Extra keys with [`KeyProfile::Router`].
    pub fn keys_after(
        &self,
        parent: Option<BlockKey>,
        tokens: &[u32],
        extra: ExtraKeys<'_>,
    ) -> Result<Vec<BlockKey>, TierError> {
        let mut keys = Vec::new();
        if extra == ExtraKeys::NONE {
            self.hasher.keys(parent, tokens, &mut keys);
            return Ok(keys);
        }
        let mut parent = parent;
        for page in tokens.chunks_exact(self.page_size()) {
            let key = self.hasher.key(parent, page, extra)?;
            parent = Some(key);
            keys.push(key);
        }
        Ok(keys)
    }

    /// An empty sequence of tokens that grows and keeps the keys of its full blocks.
    ///
    /// # Errors
    /// Extra keys with [`KeyProfile::Router`].
    pub fn sequence(&self, extra: ExtraKeys<'_>) -> Result<TokenSequence, TierError> {
        Ok(TokenSequence::new(self.hasher.clone(), extra)?)
    }

    /// Tokens of a block.
    #[must_use]
    pub fn page_size(&self) -> usize {
        self.hasher.page_size()
    }

    /// The hash.
    #[must_use]
    pub fn profile(&self) -> KeyProfile {
        self.hasher.profile()
    }
}

/// Options of a [`TokenHasher`].
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct HasherOptions {
    /// The hash (default [`KeyProfile::Blake3`]).
    pub profile: KeyProfile,
    /// Separates tenants: a lookup with another salt finds none of the blocks (default: empty).
    pub salt: String,
    /// Tokens of a block, with [`KeyProfile::Router`] the router's (default: those of the identity).
    pub page_size: Option<usize>,
}

impl HasherOptions {
    /// The defaults.
    #[must_use]
    pub fn new() -> HasherOptions {
        HasherOptions::default()
    }

    /// The settings of a hasher for blocks of `of_identity` tokens.
    fn settings(&self, of_identity: usize) -> Result<KeySettings, TierError> {
        let page_size = self.page_size.unwrap_or(of_identity);
        let is_router = matches!(self.profile, KeyProfile::Router { .. });
        if page_size != of_identity && !is_router {
            return Err(TierError::Settings(SettingsError::KeyPageSize {
                given: page_size,
                of_identity,
            }));
        }
        Ok(KeySettings::new()
            .profile(self.profile)
            .page_size(page_size)
            .salt(&self.salt))
    }

    /// Sets [`profile`](Self::profile).
    #[must_use]
    pub fn profile(mut self, profile: KeyProfile) -> HasherOptions {
        self.profile = profile;
        self
    }

    /// Sets [`salt`](Self::salt).
    #[must_use]
    pub fn salt(mut self, salt: impl Into<String>) -> HasherOptions {
        self.salt = salt.into();
        self
    }

    /// Sets [`page_size`](Self::page_size).
    #[must_use]
    pub fn page_size(mut self, tokens: impl Into<Option<usize>>) -> HasherOptions {
        self.page_size = tokens.into();
        self
    }
}

/// Hides the salt, which may be a secret.
impl fmt::Debug for HasherOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HasherOptions")
            .field("profile", &self.profile)
            .field("page_size", &self.page_size)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use kvtile_layout::Shape;

    use super::*;

    fn identity(page_size: u64) -> Identity {
        let shape = Shape::key_value(4, 2, page_size, 2, 8, "bf16").unwrap();
        Identity::new("model", "main", &shape).unwrap()
    }

    #[test]
    fn the_page_size_is_that_of_the_identity() {
        let hasher = TokenHasher::new(&identity(4)).unwrap();
        assert_eq!(hasher.page_size(), 4);
        let tokens: Vec<u32> = (0..11).collect();
        let mut expected = Vec::new();
        let settings = KeySettings::new().page_size(4);
        let plain = BlockHasher::new(&settings, identity(4).fingerprint().as_bytes()).unwrap();
        plain.keys(None, &tokens, &mut expected);
        assert_eq!(hasher.keys(&tokens), expected);
        assert_eq!(expected.len(), 2);

        let mut sequence = hasher.sequence(ExtraKeys::NONE).unwrap();
        sequence.extend(&tokens);
        assert_eq!(sequence.keys(), expected);
    }

    #[test]
    fn all_ranks_make_the_keys_of_the_whole_model() {
        let tokens: Vec<u32> = (0..12).collect();
        let whole = identity(4);
        let expected = TokenHasher::new(&whole).unwrap().keys(&tokens);
        for (rank, ranks) in [(0, 2), (1, 2)] {
            let shard = kvtile_layout::Shard::tensor_parallel(2, 2, rank, ranks).unwrap();
            let part = whole.of_shard(shard).unwrap();
            assert_ne!(part.fingerprint(), whole.fingerprint());
            assert_eq!(TokenHasher::new(&part).unwrap().keys(&tokens), expected);
        }
    }

    #[test]
    fn another_page_size_is_refused_unless_it_is_a_routers() {
        let options = HasherOptions::new().page_size(32);
        let refused = TokenHasher::with_options(&identity(16), &options).unwrap_err();
        let text = refused.to_string();
        assert!(text.contains("32") && text.contains("16"), "{text}");
        let router = options.profile(KeyProfile::Router { seed: 1 });
        let router = TokenHasher::with_options(&identity(16), &router).unwrap();
        assert_eq!(router.page_size(), 32);
    }

    #[test]
    fn keys_continue_after_a_parent_with_and_without_extra_keys() {
        let hasher = TokenHasher::new(&identity(4)).unwrap();
        let tokens: Vec<u32> = (0..12).collect();
        for extra in [ExtraKeys::NONE, ExtraKeys::new(&[b"adapter"])] {
            let all = hasher.keys_after(None, &tokens, extra).unwrap();
            let parent = all.first().copied();
            let rest = hasher.keys_after(parent, &tokens[4..], extra).unwrap();
            assert_eq!(rest, all[1..]);
        }
    }

    #[test]
    fn a_salt_is_not_shown() {
        let shown = format!("{:?}", HasherOptions::new().salt("secret"));
        assert!(!shown.contains("secret"), "{shown}");
    }
}
