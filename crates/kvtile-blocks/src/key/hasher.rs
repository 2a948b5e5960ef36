//! Derives keys from tokens, in the formats of the header of the module above and without
//! allocation.

use super::settings::{CONTEXT_BLAKE3, CONTEXT_XXH3};
use super::{BlockKey, KeyProfile, KeySettings, PAGE_SIZE_MAX};
use crate::BlocksError;
use std::fmt;
use twox_hash::{XxHash3_64, XxHash3_128};

/// Inputs of a block besides its tokens: hashes of images, names of adapters, in an order that the
/// caller keeps. Each is an arbitrary byte string; lists that split the same bytes differently have
/// different digests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ExtraKeys<'a>(&'a [&'a [u8]]);

impl<'a> ExtraKeys<'a> {
    /// The block depends on tokens alone.
    pub const NONE: ExtraKeys<'static> = ExtraKeys(&[]);

    /// These keys, in this order.
    #[must_use]
    pub const fn new(keys: &'a [&'a [u8]]) -> ExtraKeys<'a> {
        ExtraKeys(keys)
    }

    pub(crate) fn iter(self) -> impl ExactSizeIterator<Item = &'a [u8]> {
        self.0.iter().copied()
    }
}

/// The hash of a block's extra keys.
pub(crate) type ExtraDigest = [u8; 16];

/// The predecessor of a block: the block before it, or the root. The bytes are the first field and
/// contiguous, because the next hash waits for them.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ParentKey {
    bytes: [u8; 16],
    is_root: bool,
}

impl From<BlockKey> for ParentKey {
    fn from(key: BlockKey) -> ParentKey {
        ParentKey {
            bytes: key.0,
            is_root: false,
        }
    }
}

/// Derives the keys of full blocks. Construction allocates a little; use allocates nothing. Threads
/// may share it.
#[derive(Clone)]
pub struct BlockHasher {
    page_size: usize,
    profile: KeyProfile,
    plain: [u8; 32],
    with_extra: [u8; 32],
    list: [u8; 32],
    root: [u8; 16],
}

/// Bytes of a message after its tokens, at most: parent, extra, number of tokens.
const TRAILER_MAX: usize = 40;
/// The seed that chains the hashes of routers.
const ROUTER_SEQUENCE_SEED: u64 = 1337;

impl BlockHasher {
    /// A hasher for blocks of the model that `identity` identifies.
    ///
    /// # Errors
    /// A page size out of range, or a salt with a profile that has none.
    pub fn new(settings: &KeySettings, identity: &[u8]) -> Result<BlockHasher, BlocksError> {
        let page_size = settings.page_size;
        if page_size == 0 || page_size > PAGE_SIZE_MAX {
            return Err(BlocksError::PageSizeOutOfRange { page_size });
        }
        let context = match settings.profile {
            KeyProfile::Blake3 => CONTEXT_BLAKE3,
            KeyProfile::Xxh3 => CONTEXT_XXH3,
            KeyProfile::Router { .. } if settings.salt.is_empty() => CONTEXT_XXH3,
            KeyProfile::Router { .. } => return Err(BlocksError::RouterTakesNoSalt),
        };
        let mut derived = blake3::Hasher::new_derive_key(context)
            .update(&(identity.len() as u64).to_le_bytes())
            .update(identity)
            .update(&(settings.salt.len() as u64).to_le_bytes())
            .update(settings.salt.as_bytes())
            .finalize_xof();
        let mut hasher = BlockHasher {
            page_size,
            profile: settings.profile,
            plain: [0; 32],
            with_extra: [0; 32],
            list: [0; 32],
            root: [0; 16],
        };
        derived.fill(&mut hasher.plain);
        derived.fill(&mut hasher.with_extra);
        derived.fill(&mut hasher.list);
        derived.fill(&mut hasher.root);
        Ok(hasher)
    }

    /// Tokens per block.
    #[must_use]
    pub fn page_size(&self) -> usize {
        self.page_size
    }

    /// Which hash makes the keys.
    #[must_use]
    pub fn profile(&self) -> KeyProfile {
        self.profile
    }

    /// The key of one full block after `parent`, or of the first block of a sequence.
    ///
    /// # Errors
    /// Tokens that are not one page, or extra keys with a profile that does not support them.
    pub fn key(
        &self,
        parent: Option<BlockKey>,
        tokens: &[u32],
        extra: ExtraKeys<'_>,
    ) -> Result<BlockKey, BlocksError> {
        if tokens.len() != self.page_size {
            return Err(BlocksError::NotOnePage {
                tokens: tokens.len(),
                page_size: self.page_size,
            });
        }
        let extra = self.digest(extra.iter())?;
        Ok(self.key_of_page(self.after(parent), tokens, extra))
    }

    /// Appends to `keys` the keys of all full blocks of `tokens`. The first follows `parent`; none
    /// has extra keys. Tokens after the last full block are ignored.
    pub fn keys(&self, parent: Option<BlockKey>, tokens: &[u32], keys: &mut Vec<BlockKey>) {
        let mut parent = self.after(parent);
        let pages = tokens.chunks_exact(self.page_size);
        keys.reserve(pages.len());
        keys.extend(pages.map(|page| {
            let key = self.key_of_page(parent, page, None);
            parent = ParentKey::from(key);
            key
        }));
    }

    /// The digest of extra keys, `None` if there are none.
    pub(crate) fn digest<'a>(
        &self,
        extra: impl ExactSizeIterator<Item = &'a [u8]>,
    ) -> Result<Option<ExtraDigest>, BlocksError> {
        if extra.len() == 0 {
            return Ok(None);
        }
        if let KeyProfile::Router { .. } = self.profile {
            return Err(BlocksError::RouterTakesNoExtraKeys { count: extra.len() });
        }
        let mut hash = blake3::Hasher::new_keyed(&self.list);
        hash.update(&(extra.len() as u64).to_le_bytes());
        for bytes in extra {
            hash.update(&(bytes.len() as u64).to_le_bytes());
            hash.update(bytes);
        }
        Ok(Some(first_16(hash.finalize().as_bytes())))
    }

    /// The predecessor as a [`ParentKey`].
    pub(crate) fn after(&self, parent: Option<BlockKey>) -> ParentKey {
        let root = ParentKey {
            bytes: self.root,
            is_root: true,
        };
        parent.map_or(root, ParentKey::from)
    }

    /// The key of a page whose size is checked already.
    #[inline]
    pub(crate) fn key_of_page(
        &self,
        parent: ParentKey,
        tokens: &[u32],
        extra: Option<ExtraDigest>,
    ) -> BlockKey {
        // Common page sizes are compile-time constants and are copied in a few registers.
        if let Some((page, [])) = tokens.split_first_chunk::<16>() {
            return self.with_room::<{ 4 * 16 + TRAILER_MAX }>(parent, page, extra);
        }
        if let Some((page, [])) = tokens.split_first_chunk::<32>() {
            return self.with_room::<{ 4 * 32 + TRAILER_MAX }>(parent, page, extra);
        }
        self.key_of_unusual_page(parent, tokens, extra)
    }

    /// Not inlined, so that common page sizes do not pay for its stack.
    #[inline(never)]
    fn key_of_unusual_page(
        &self,
        parent: ParentKey,
        tokens: &[u32],
        extra: Option<ExtraDigest>,
    ) -> BlockKey {
        match tokens.len() {
            0..=64 => self.with_room::<{ 4 * 64 + TRAILER_MAX }>(parent, tokens, extra),
            65..=256 => self.with_room::<{ 4 * 256 + TRAILER_MAX }>(parent, tokens, extra),
            _ => self.with_room::<{ 4 * PAGE_SIZE_MAX + TRAILER_MAX }>(parent, tokens, extra),
        }
    }

    #[inline(always)]
    fn with_room<const ROOM: usize>(
        &self,
        parent: ParentKey,
        tokens: &[u32],
        extra: Option<ExtraDigest>,
    ) -> BlockKey {
        let mut message = HashMessage::<ROOM>::of(tokens);
        match self.profile {
            KeyProfile::Blake3 => {
                let mut key = self.plain;
                if let Some(extra) = extra {
                    key = self.with_extra;
                    message.push(&extra);
                }
                for (byte, of_parent) in key.iter_mut().skip(16).zip(parent.bytes) {
                    *byte ^= of_parent;
                }
                let hash = blake3::keyed_hash(&key, message.bytes());
                BlockKey(first_16(hash.as_bytes()))
            }
            KeyProfile::Xxh3 => {
                message.push(&parent.bytes);
                message.push(&extra.unwrap_or_default());
                message.push(&(tokens.len() as u64).to_le_bytes());
                let (&seed, _) = self.plain.split_first_chunk().unwrap_or((&[0; 8], &[]));
                let seed = u64::from_le_bytes(seed);
                let hash = XxHash3_128::oneshot_with_seed(seed, message.bytes());
                BlockKey(hash.to_le_bytes())
            }
            KeyProfile::Router { seed } => {
                let block = XxHash3_64::oneshot_with_seed(seed, message.bytes());
                let sequence = if parent.is_root {
                    block
                } else {
                    let parent = BlockKey(parent.bytes).router_hashes().0;
                    let both = u128::from(parent) | u128::from(block) << 64;
                    XxHash3_64::oneshot_with_seed(ROUTER_SEQUENCE_SEED, &both.to_le_bytes())
                };
                BlockKey((u128::from(sequence) | u128::from(block) << 64).to_le_bytes())
            }
        }
    }
}

/// Hides the secrets.
impl fmt::Debug for BlockHasher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BlockHasher")
            .field("profile", &self.profile)
            .field("page_size", &self.page_size)
            .finish_non_exhaustive()
    }
}

/// The message to hash, on the stack.
struct HashMessage<const ROOM: usize> {
    room: [u8; ROOM],
    length: usize,
}

impl<const ROOM: usize> HashMessage<ROOM> {
    /// A message that starts with `tokens`; they must leave room for the trailer.
    #[inline(always)]
    fn of(tokens: &[u32]) -> HashMessage<ROOM> {
        let length = 4 * tokens.len();
        assert!(
            length + TRAILER_MAX <= ROOM,
            "the page size is checked before"
        );
        let mut room = [0; ROOM];
        for (bytes, token) in room.as_chunks_mut::<4>().0.iter_mut().zip(tokens) {
            *bytes = token.to_le_bytes();
        }
        HashMessage { room, length }
    }

    #[inline(always)]
    fn push<const LENGTH: usize>(&mut self, bytes: &[u8; LENGTH]) {
        let (_, rest) = self.room.split_at_mut(self.length);
        let (place, _) = rest.split_at_mut(LENGTH);
        place.copy_from_slice(bytes);
        self.length += LENGTH;
    }

    #[inline(always)]
    fn bytes(&self) -> &[u8] {
        self.room.split_at(self.length).0
    }
}

/// The first half of a 32-byte hash.
pub(super) fn first_16(hash: &[u8; 32]) -> [u8; 16] {
    let (&first, _) = hash.split_first_chunk().unwrap_or((&[0; 16], &[]));
    first
}
