//! One file of a simulated disk: its content in the page cache, its durable content, and the
//! versions of each sector that may remain after a power loss.

use std::collections::BTreeMap;

use super::SplitMix64;

/// The unit that a disk writes atomically, unless the write is torn.
pub(super) const SECTOR_BYTES: usize = 512;

type Sector = [u8; SECTOR_BYTES];

#[derive(Debug, Default)]
pub(super) struct SimulatedFile {
    /// The content that readers see: the page cache.
    seen: Vec<u8>,
    /// The durable content.
    durable: Vec<u8>,
    /// The contents written to each sector since the last sync, oldest first.
    versions: BTreeMap<usize, Vec<Sector>>,
}

impl SimulatedFile {
    pub(super) fn len(&self) -> usize {
        self.seen.len()
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.seen
    }

    /// Extends the file with zeroes. A crash before the next sync may undo that.
    pub(super) fn lengthen(&mut self, len: usize) {
        if len > self.seen.len() {
            self.seen.resize(len, 0);
        }
    }

    /// Truncates the file, durably.
    pub(super) fn cut(&mut self, len: usize) {
        self.seen.truncate(len);
        self.durable.truncate(len);
        self.versions
            .retain(|sector, _| sector * SECTOR_BYTES < len);
    }

    /// Reads from `offset`; returns false if the file has too few bytes.
    pub(super) fn read(&self, offset: usize, buffer: &mut [u8]) -> bool {
        let end = offset.saturating_add(buffer.len());
        match self.seen.get(offset..end) {
            Some(bytes) => {
                buffer.copy_from_slice(bytes);
                true
            }
            None => false,
        }
    }

    pub(super) fn write(&mut self, offset: usize, bytes: &[u8]) {
        let end = offset + bytes.len();
        self.lengthen(end);
        if let Some(place) = self.seen.get_mut(offset..end) {
            place.copy_from_slice(bytes);
        }
        if bytes.is_empty() {
            return;
        }
        for sector in offset / SECTOR_BYTES..=(end - 1) / SECTOR_BYTES {
            let version = sector_of(&self.seen, sector);
            self.versions.entry(sector).or_default().push(version);
        }
    }

    /// Makes the content of the page cache durable.
    pub(super) fn sync(&mut self) {
        self.durable.resize(self.seen.len(), 0);
        for &sector in self.versions.keys() {
            put_sector(&mut self.durable, sector, &sector_of(&self.seen, sector));
        }
        self.versions.clear();
    }

    /// A sync that fails. For each sector the disk keeps some version; the system counts the others
    /// as written and never retries them. Readers see the page cache or the disk.
    pub(super) fn fail_sync(&mut self, numbers: &mut SplitMix64) {
        self.durable.resize(self.seen.len(), 0);
        for (sector, versions) in std::mem::take(&mut self.versions) {
            let kept = choose(&sector_of(&self.durable, sector), &versions, numbers);
            put_sector(&mut self.durable, sector, &kept);
            if numbers.once_in(2) {
                put_sector(&mut self.seen, sector, &kept);
            }
        }
    }

    /// A power loss. Every sector written since the last sync holds its durable content, a version
    /// written since, or a mixture of two (torn).
    pub(super) fn crash(&mut self, numbers: &mut SplitMix64) {
        if self.seen.len() > self.durable.len() {
            let lengths = [
                self.durable.len(),
                self.seen.len(),
                self.durable.len() + numbers.index(self.seen.len() - self.durable.len()),
            ];
            let len = lengths.get(numbers.index(3)).copied().unwrap_or(0);
            self.durable.resize(len, 0);
        }
        for (sector, versions) in std::mem::take(&mut self.versions) {
            let kept = choose(&sector_of(&self.durable, sector), &versions, numbers);
            put_sector(&mut self.durable, sector, &kept);
        }
        self.seen.clone_from(&self.durable);
    }

    /// Flips a bit on the disk and in the page cache; returns whether the file has one.
    pub(super) fn flip(&mut self, numbers: &mut SplitMix64) -> bool {
        let at = numbers.index(self.seen.len());
        let mask = 1 << numbers.index(8);
        let versions = self.versions.get_mut(&(at / SECTOR_BYTES));
        let written = versions.into_iter().flatten();
        let written = written.filter_map(|version| version.get_mut(at % SECTOR_BYTES));
        let places = self.seen.get_mut(at).into_iter();
        let places = places.chain(self.durable.get_mut(at)).chain(written);
        places.map(|byte| *byte ^= mask).count() > 0
    }
}

/// The content of a sector after a failure: the durable one, a version written since, or the head
/// of one and the tail of another.
fn choose(durable: &Sector, versions: &[Sector], numbers: &mut SplitMix64) -> Sector {
    let pick = |numbers: &mut SplitMix64| {
        let which = numbers.index(versions.len() + 1);
        which
            .checked_sub(1)
            .and_then(|which| versions.get(which))
            .unwrap_or(durable)
    };
    let mut kept = *pick(numbers);
    if numbers.once_in(4) {
        let from = numbers.index(SECTOR_BYTES);
        let other = pick(numbers);
        for (to, byte) in kept.iter_mut().zip(other).skip(from) {
            *to = *byte;
        }
    }
    kept
}

fn sector_of(bytes: &[u8], sector: usize) -> Sector {
    let mut copy = [0; SECTOR_BYTES];
    let bytes = bytes.iter().skip(sector * SECTOR_BYTES);
    for (to, byte) in copy.iter_mut().zip(bytes) {
        *to = *byte;
    }
    copy
}

fn put_sector(bytes: &mut [u8], sector: usize, content: &Sector) {
    let places = bytes.iter_mut().skip(sector * SECTOR_BYTES);
    for (to, byte) in places.zip(content) {
        *to = *byte;
    }
}
