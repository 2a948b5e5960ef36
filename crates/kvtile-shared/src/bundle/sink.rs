//! Reads a bundle as its bytes arrive: checks the header, then verifies the required blocks and
//! passes them on.
//!
//! The store writes into memory of this reader, a chunk that fits in a core's cache. Each chunk goes
//! into the checksum and to its destination at once. So a store whose call does not return holds no
//! memory of a tier's caller.

use std::ops::Range;

use kvtile_blocks::BlockKey;
use kvtile_tiers::tier::ContentDigest;

use super::{BundleForm, BundleHeader, BundlePacking, HeaderFault, HeldBlock, packing::unpack};
use crate::store::{SinkState, ValueSink};

/// Bytes that the reader takes at a time.
const CHUNK_BYTES: usize = 256 << 10;

/// Whether a destination requires a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WantedBytes {
    /// It does not require this block.
    Skipped,
    /// It requires this block.
    Wanted,
    /// It requires a block with another key at this place.
    OtherKey,
}

/// The destination of a bundle's blocks. Indices are those in the bundle.
pub(crate) trait BundleTarget: Sync {
    /// The first required block.
    fn first_wanted(&self) -> Option<u32>;

    /// The first required block from the block `from` on, after which it requires none before that one; if there is none,
    /// it requires no further blocks.
    fn next_wanted(&self, from: u32) -> Option<u32>;

    /// The last required block; `None` once no block is required any more.
    fn last_wanted(&self) -> Option<u32>;

    /// Whether it requires a block.
    fn wants(&self, index: u32, key: &BlockKey) -> WantedBytes;

    /// Takes bytes of a required block. They are not verified yet.
    fn take(&self, index: u32, offset: u64, bytes: &[u8]);

    /// All bytes of a required block arrived. `checksum` is `None` if they differ from those written.
    fn verified(&self, index: u32, checksum: Option<u64>);
}

/// Why a value is not the bundle that its name promises.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BundleFault {
    /// Its header is wrong.
    #[error(transparent)]
    Header(#[from] HeaderFault),
    /// It is a bundle with another last block.
    #[error("it holds other blocks than its name says")]
    OtherBundle,
    /// It has a block with another key than the chain.
    #[error("it holds another block at one place")]
    OtherBlock,
    /// A block fails its checksum.
    #[error("a block fails its checksum")]
    Checksum,
    /// A compressed block is damaged.
    #[error("a compressed block does not unpack")]
    Packing,
    /// It ends before its last block.
    #[error("it is shorter than its blocks")]
    Short,
    /// It continues after its last block.
    #[error("it is longer than its blocks")]
    Long,
}

/// Bytes of a bundle that a reader needs next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct NextBytes {
    pub(crate) range: Range<u64>,
    /// They are all bytes of the value, as many as it has.
    pub(crate) is_all: bool,
}

/// A sink that reads one bundle.
pub(crate) struct BundleReader<'a> {
    form: BundleForm,
    /// The most bytes of a block if the header decides how many; `None` if the form does.
    block_bytes_max: Option<u64>,
    last: BlockKey,
    target: &'a dyn BundleTarget,
    /// The bytes of the header, until all of them came.
    header_bytes: Vec<u8>,
    header_filled: usize,
    header: Option<BundleHeader>,
    /// Empty until a store asks for space; stores that have the bytes in memory do not.
    chunk: Vec<u8>,
    /// The block whose bytes are next.
    index: u32,
    /// Bytes of it that came.
    offset: u64,
    /// The checksum of a required block so far.
    digest: Option<ContentDigest>,
    /// The bytes so far of a required block that is compressed.
    packed: Vec<u8>,
    fault: Option<BundleFault>,
    bytes: u64,
    /// The reader has refused further bytes of the store's last call.
    has_ended: bool,
}

impl<'a> BundleReader<'a> {
    /// A reader of the bundle whose last block has the key `last`.
    pub(crate) fn new(
        form: &BundleForm,
        last: BlockKey,
        target: &'a dyn BundleTarget,
    ) -> BundleReader<'a> {
        BundleReader {
            form: form.clone(),
            block_bytes_max: None,
            last,
            target,
            header_bytes: vec![0; form.header_bytes()],
            header_filled: 0,
            header: None,
            chunk: Vec::new(),
            index: 0,
            offset: 0,
            digest: None,
            packed: Vec::new(),
            fault: None,
            bytes: 0,
            has_ended: false,
        }
    }

    /// Takes blocks of any number of bytes, at most `most`, in place of those of the form.
    pub(crate) fn of_any_size(mut self, most: u64) -> BundleReader<'a> {
        self.block_bytes_max = Some(most);
        self
    }

    /// Bytes that the store passed.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Whether the last call of the store was ended by the reader, and not by the end of the value.
    pub(crate) fn has_ended(&self) -> bool {
        self.has_ended
    }

    /// The bytes to read next; `None` if it needs no more. Reading up to `call_bytes` bytes of no use is faster than a call
    /// of its own; without it the store has no ranges.
    pub(crate) fn next_bytes(&mut self, call_bytes: Option<u64>) -> Option<NextBytes> {
        if self.fault.is_some() {
            return None;
        }
        self.has_ended = false;
        let header = self.header_bytes.len() as u64;
        if self.header.is_none() {
            if self.header_filled > 0 {
                return None;
            }
            let first = u64::from(self.target.first_wanted()?);
            let last = self.target.last_wanted()?;
            let before = self.form.block_bytes.saturating_mul(first);
            let is_all = call_bytes.is_none() || last.saturating_add(1) == self.blocks();
            return Some(match call_bytes.is_some_and(|bytes| before > bytes) {
                true => NextBytes {
                    range: 0..header,
                    is_all: false,
                },
                false => NextBytes {
                    range: 0..self.end_of(last),
                    is_all,
                },
            });
        }
        // The bytes so far may end within a required block, if the blocks are compressed.
        let is_within = self.offset > 0 && self.digest.is_some();
        if !is_within {
            let from = self.index.saturating_add(u32::from(self.offset > 0));
            let next = self.target.next_wanted(from)?;
            if next != self.index {
                self.index = next;
                self.begin_block();
            }
        }
        let last = self.target.last_wanted()?;
        let start = self.end_of_those_before(self.index);
        let start = start.saturating_add(self.offset);
        self.fault.is_none().then(|| NextBytes {
            range: start..self.end_of(last),
            is_all: false,
        })
    }

    /// Bytes of the value before the block at an index, at most.
    fn end_of_those_before(&self, index: u32) -> u64 {
        let blocks = match &self.header {
            None => self.form.block_bytes.saturating_mul(u64::from(index)),
            Some(header) => {
                let before = usize::try_from(index).unwrap_or(usize::MAX);
                let sizes = header.blocks.iter().take(before).map(|block| block.bytes);
                sizes.fold(0, u64::saturating_add)
            }
        };
        blocks.saturating_add(self.header_bytes.len() as u64)
    }

    /// Bytes of the value up to the block at an index, and one more after the last block, to see whether the value ends.
    fn end_of(&self, index: u32) -> u64 {
        let after = index.saturating_add(1);
        let end = self.end_of_those_before(after);
        end.saturating_add(u64::from(after >= self.blocks()))
    }

    /// The result, once the store has passed all bytes that it has.
    pub(crate) fn end(&self) -> Result<(), BundleFault> {
        if let Some(fault) = self.fault {
            return Err(fault);
        }
        if self.header.is_none() {
            return Err(BundleFault::Header(HeaderFault::Short));
        }
        match self.target.last_wanted() {
            Some(last) if self.index <= last => Err(BundleFault::Short),
            _ => Ok(()),
        }
    }

    /// Whether no further bytes are needed. After the last block it still needs to see that the
    /// value ends.
    fn is_done(&self) -> bool {
        let is_needed = |last: u32| self.index <= last || last.saturating_add(1) == self.blocks();
        self.fault.is_some()
            || self.index > self.blocks()
            || !self.target.last_wanted().is_some_and(is_needed)
    }

    fn blocks(&self) -> u32 {
        self.form.blocks
    }

    fn state(&mut self) -> SinkState {
        self.has_ended |= self.is_done();
        match self.has_ended {
            true => SinkState::Full,
            false => SinkState::Open,
        }
    }

    fn header_came(&mut self) {
        if let Some(most) = self.block_bytes_max {
            let stated = BundleHeader::stated_block_bytes(&self.header_bytes);
            self.form.block_bytes = stated.unwrap_or(0).clamp(1, most);
        }
        match BundleHeader::decode(&self.form, &self.header_bytes) {
            Ok(header) => {
                if header
                    .blocks
                    .last()
                    .is_none_or(|block| block.key != self.last)
                {
                    self.fault = Some(BundleFault::OtherBundle);
                }
                self.header = Some(header);
                self.begin_block();
            }
            Err(fault) => self.fault = Some(fault.into()),
        }
    }

    /// The current block, and its position.
    fn block(&self) -> Option<(HeldBlock, u32)> {
        let header = self.header.as_ref()?;
        let block = header.blocks.get(usize::try_from(self.index).ok()?)?;
        let position = header.first_position.saturating_add(self.index);
        Some((*block, position))
    }

    /// Bytes of the current block in the value; 0 after the last block.
    fn stored_bytes(&self) -> u64 {
        self.block().map_or(0, |(block, _)| block.bytes)
    }

    fn begin_block(&mut self) {
        self.offset = 0;
        self.digest = None;
        let Some((block, position)) = self.block() else {
            return;
        };
        match self.target.wants(self.index, &block.key) {
            WantedBytes::Skipped => {}
            WantedBytes::Wanted => self.digest = Some(ContentDigest::new(&block.key, position)),
            WantedBytes::OtherKey => self.fault = Some(BundleFault::OtherBlock),
        }
    }

    fn end_block(&mut self) {
        if let Some((mut digest, (block, _))) = self.digest.take().zip(self.block()) {
            if self.is_packed() && !self.unpack(&mut digest) {
                self.fault = Some(BundleFault::Packing);
                return;
            }
            let (found, checksum) = (digest.finish(), block.checksum);
            let is_right = found == checksum;
            self.target
                .verified(self.index, is_right.then_some(checksum));
            if !is_right {
                self.fault = Some(BundleFault::Checksum);
            }
        }
        self.index += 1;
        self.begin_block();
    }

    /// Takes bytes that all belong to the current block, or come after the last one.
    fn blocks_came(&mut self, bytes: &[u8]) {
        if self.index >= self.blocks() {
            if !bytes.is_empty() {
                self.fault = Some(BundleFault::Long);
            }
            return;
        }
        let is_packed = self.is_packed();
        match &mut self.digest {
            Some(_) if is_packed => self.packed.extend(bytes),
            Some(digest) => {
                digest.update(bytes);
                self.target.take(self.index, self.offset, bytes);
            }
            None => {}
        }
        self.offset += bytes.len() as u64;
        if self.offset >= self.stored_bytes() {
            self.end_block();
        }
    }

    /// Whether the current block is compressed.
    fn is_packed(&self) -> bool {
        self.stored_bytes() < self.form.block_bytes
    }

    /// Passes on the current block, whose compressed bytes have come. Returns false if they are damaged.
    fn unpack(&mut self, digest: &mut ContentDigest) -> bool {
        let packed = std::mem::take(&mut self.packed);
        let units = match self.header.as_ref().map(|header| header.packing) {
            Some(BundlePacking::Packed(units)) => units,
            Some(BundlePacking::Raw) | None => return false,
        };
        let bytes = usize::try_from(self.form.block_bytes).unwrap_or(usize::MAX);
        let Some(block) = unpack(units, &packed, bytes) else {
            return false;
        };
        digest.update(&block);
        self.target.take(self.index, 0, &block);
        true
    }

    /// Bytes until the end of the current block; 1 after the last block, to see whether the value
    /// ends.
    fn left(&self) -> usize {
        if self.index >= self.blocks() {
            return 1;
        }
        let left = self.stored_bytes().saturating_sub(self.offset);
        usize::try_from(left).unwrap_or(usize::MAX)
    }
}

impl ValueSink for BundleReader<'_> {
    fn space(&mut self) -> &mut [u8] {
        if self.state() == SinkState::Full {
            return &mut [];
        }
        if self.header.is_none() {
            let (_, space) = self.header_bytes.split_at_mut(self.header_filled);
            return space;
        }
        if self.chunk.is_empty() {
            self.chunk = vec![0; CHUNK_BYTES];
        }
        let left = self.left().min(self.chunk.len());
        let (space, _) = self.chunk.split_at_mut(left);
        space
    }

    fn filled(&mut self, bytes: usize) -> SinkState {
        // Not `space`: a late read takes no more bytes; it may have ended after the store got the space.
        let most = match &self.header {
            None => self.header_bytes.len() - self.header_filled,
            Some(_) => self.left().min(self.chunk.len()),
        };
        assert!(bytes <= most, "{bytes} bytes of a value");
        self.bytes += bytes as u64;
        if self.state() == SinkState::Full {
            return SinkState::Full;
        }
        if self.header.is_none() {
            self.header_filled += bytes;
            if self.header_filled == self.header_bytes.len() {
                self.header_came();
            }
            return self.state();
        }
        let chunk = std::mem::take(&mut self.chunk);
        let (came, _) = chunk.split_at(bytes);
        self.blocks_came(came);
        self.chunk = chunk;
        self.state()
    }

    /// Without a copy into the chunk.
    fn put(&mut self, mut bytes: &[u8]) -> SinkState {
        while !bytes.is_empty() {
            if self.state() == SinkState::Full {
                return SinkState::Full;
            }
            if self.header.is_none() {
                let space = self.space();
                let some = space.len().min(bytes.len());
                let (now, rest) = bytes.split_at(some);
                let (space, _) = space.split_at_mut(some);
                space.copy_from_slice(now);
                bytes = rest;
                self.filled(some);
                continue;
            }
            let (now, rest) = bytes.split_at(self.left().min(bytes.len()).min(CHUNK_BYTES));
            bytes = rest;
            self.bytes += now.len() as u64;
            self.blocks_came(now);
        }
        self.state()
    }
}
