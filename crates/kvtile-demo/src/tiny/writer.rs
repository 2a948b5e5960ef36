//! Writes small GGUF files: version 3, f32 tensors, alignment 32.

/// A file under construction.
#[derive(Default)]
pub(super) struct GgufWriter {
    pairs: Vec<u8>,
    pair_count: u64,
    entries: Vec<u8>,
    entry_count: u64,
    data: Vec<u8>,
}

impl GgufWriter {
    pub(super) fn text(&mut self, key: &str, value: &str) {
        self.pair(key, 8);
        put_text(&mut self.pairs, value);
    }

    pub(super) fn unsigned(&mut self, key: &str, value: u32) {
        self.pair(key, 4);
        self.pairs.extend(value.to_le_bytes());
    }

    pub(super) fn float(&mut self, key: &str, value: f32) {
        self.pair(key, 6);
        self.pairs.extend(value.to_le_bytes());
    }

    pub(super) fn texts(&mut self, key: &str, values: &[String]) {
        self.array(key, 8, values.len());
        for value in values {
            put_text(&mut self.pairs, value);
        }
    }

    pub(super) fn integers(&mut self, key: &str, values: &[i32]) {
        self.array(key, 5, values.len());
        self.pairs
            .extend(values.iter().flat_map(|value| value.to_le_bytes()));
    }

    /// A tensor of f32; extents fastest first.
    pub(super) fn tensor(
        &mut self,
        name: &str,
        extents: &[usize],
        values: impl Iterator<Item = f32>,
    ) {
        self.entry_count += 1;
        put_text(&mut self.entries, name);
        self.entries.extend(
            u32::try_from(extents.len())
                .unwrap_or(u32::MAX)
                .to_le_bytes(),
        );
        for extent in extents {
            self.entries.extend((*extent as u64).to_le_bytes());
        }
        self.entries.extend(0u32.to_le_bytes());
        self.entries.extend((self.data.len() as u64).to_le_bytes());
        self.data.extend(values.flat_map(f32::to_le_bytes));
        pad(&mut self.data);
    }

    /// The whole file.
    pub(super) fn finish(self) -> Vec<u8> {
        let mut file = b"GGUF".to_vec();
        file.extend(3u32.to_le_bytes());
        file.extend(self.entry_count.to_le_bytes());
        file.extend(self.pair_count.to_le_bytes());
        file.extend(self.pairs);
        file.extend(self.entries);
        pad(&mut file);
        file.extend(self.data);
        file
    }

    fn pair(&mut self, key: &str, type_id: u32) {
        self.pair_count += 1;
        put_text(&mut self.pairs, key);
        self.pairs.extend(type_id.to_le_bytes());
    }

    fn array(&mut self, key: &str, type_id: u32, len: usize) {
        self.pair(key, 9);
        self.pairs.extend(type_id.to_le_bytes());
        self.pairs.extend((len as u64).to_le_bytes());
    }
}

fn put_text(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

fn pad(out: &mut Vec<u8>) {
    out.resize(out.len().next_multiple_of(32), 0);
}
