//! Files with valid digests and false contents: only the checks after the digest can refuse them.

use std::{fs, path::Path};

use kvtile_layout::{Shape, Unit, Word, identity::Identity, tradition::LayoutSpec};
use kvtile_testkit::generate::config;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::{
    SaveOptions, SavedCache,
    format::{PREAMBLE_BYTES, SavedPreamble, digest},
    save,
};
use crate::{FillPattern, PhysicalLayout, SavedError, TransferError, TransferManager};

fn shape(blocks: u64) -> Shape {
    Shape::key_value(blocks, 2, 4, 2, 8, Unit::raw(2).unwrap()).unwrap()
}

fn layout(blocks: u64) -> PhysicalLayout {
    PhysicalLayout::builder()
        .with_shape(shape(blocks))
        .layout(LayoutSpec::Word(Word::parse("L|KBNHC").unwrap()))
        .allocate_system()
        .build()
        .unwrap()
}

/// A cache of three blocks in parts: header, checksums, and the data with its offset.
struct CacheFileParts {
    header: Value,
    checksums: Vec<u8>,
    data: Vec<u8>,
    data_at: usize,
}

fn parts(folder: &Path) -> CacheFileParts {
    let path = folder.join("good");
    let manager = TransferManager::new();
    let handle = manager.register(layout(3)).unwrap();
    let pattern = FillPattern::Distinct { seed: 4 };
    manager.fill(handle, &[0, 1, 2], pattern).unwrap();
    let identity = Identity::new("m", "r", &shape(1)).unwrap();
    let mut options = SaveOptions::new(identity, 10).unwrap();
    options.alignment = 64;
    save(&manager, handle, &[0, 1, 2], &path, &options).unwrap();
    let bytes = fs::read(&path).unwrap();
    let file_bytes = bytes.len() as u64;
    let preamble = SavedPreamble::from_bytes(&bytes[..PREAMBLE_BYTES], file_bytes).unwrap();
    let header_end = PREAMBLE_BYTES + usize::try_from(preamble.header_bytes).unwrap();
    CacheFileParts {
        header: serde_json::from_slice(&bytes[PREAMBLE_BYTES..header_end]).unwrap(),
        checksums: bytes[header_end..header_end + 24].to_vec(),
        data_at: 4096,
        data: bytes[4096..].to_vec(),
    }
}

impl CacheFileParts {
    /// The file, with correct digests.
    fn file(&self) -> Vec<u8> {
        let header = self.header.to_string().into_bytes();
        let tables = PREAMBLE_BYTES + header.len() + self.checksums.len();
        let data_at = self.data_at.max(tables);
        let preamble = SavedPreamble {
            header_bytes: header.len() as u64,
            blocks: (self.checksums.len() / 8) as u64,
            file_bytes: (data_at + self.data.len()) as u64,
            digest: digest(&header, &self.checksums),
        };
        let mut bytes = preamble.to_bytes();
        bytes.extend(header);
        bytes.extend(&self.checksums);
        bytes.resize(data_at, 0);
        bytes.extend(&self.data);
        bytes
    }
}

/// Opens the file and loads its blocks. Every block that it returns must match its checksum.
fn open_and_load(path: &Path) -> Result<usize, TransferError> {
    let cache = SavedCache::inspect(path)?;
    let checks = cache.check_blocks(|_| ())?;
    let manager = TransferManager::new();
    let handle = manager.register(layout(3))?;
    let pairs: Vec<(usize, usize)> = (0..cache.num_blocks().min(3)).map(|b| (b, b)).collect();
    let loaded = cache.load(&manager, handle, &pairs)?;
    for (check, loaded) in checks.iter().zip(&loaded) {
        assert_eq!(check.result.is_ok(), loaded.result.is_ok());
    }
    Ok(loaded.iter().filter(|check| check.result.is_ok()).count())
}

#[test]
fn a_file_assembled_from_its_parts_is_a_cache() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("file");
    fs::write(&path, parts(folder.path()).file()).unwrap();
    assert_eq!(open_and_load(&path).unwrap(), 3);
}

/// A header that contradicts itself is refused, although its digest is valid.
#[test]
fn headers_that_contradict_themselves_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("file");
    let cases = [
        ("/tokens", json!(13)),
        ("/word", json!("BLKNHC")),
        ("/alignment", json!(1024)),
        ("/alignment", json!(3)),
        ("/shape/num_blocks", json!(2)),
        ("/shape/num_blocks", json!(1u64 << 60)),
        ("/shape/num_layers", json!(1)),
        ("/identity/page_size", json!(8)),
        ("/identity/planes/0/unit/codec", json!("bf16")),
        ("/identity/shard/total_layers", json!(4)),
        ("/regions/0/offset", json!(u64::MAX)),
        ("/regions/0/offset", json!(1u64 << 20)),
        ("/regions/0/bytes", json!(0)),
        ("/regions/0/bytes", json!(1)),
        ("/regions", json!([])),
        ("/block_layout/planes/0/offset", json!(2)),
        ("/identity/more", json!(1)),
    ];
    let good = parts(folder.path());
    for (pointer, value) in cases {
        let mut header = good.header.clone();
        match header.pointer_mut(pointer) {
            Some(old) => *old = value.clone(),
            None => header["identity"]["more"] = value.clone(),
        }
        let lying = CacheFileParts {
            header,
            checksums: good.checksums.clone(),
            data: good.data.clone(),
            data_at: good.data_at,
        };
        fs::write(&path, lying.file()).unwrap();
        let Err(error) = SavedCache::inspect(&path) else {
            panic!("{pointer} {value} was accepted");
        };
        let named = matches!(
            error,
            TransferError::Saved(SavedError::Damaged { .. }) | TransferError::Layout(_)
        );
        assert!(named, "{pointer} {value}: {error}");
    }
}

/// More checksums than blocks that the file can contain are not read.
#[test]
fn absurd_counts_in_the_preamble_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("file");
    for (header_bytes, blocks, file_bytes) in [
        (u64::MAX, 1, 4096),
        (10, u64::MAX, 4096),
        (10, 1 << 61, 4096),
        (u64::MAX - 64, 0, 4096),
        (10, 1 << 25, 1 << 40),
        (1 << 30, 1, 1 << 40),
    ] {
        let preamble = SavedPreamble {
            header_bytes,
            blocks,
            file_bytes,
            digest: [0; 16],
        };
        fs::write(&path, preamble.to_bytes()).unwrap();
        let file = fs::File::options().write(true).open(&path).unwrap();
        file.set_len(file_bytes).unwrap();
        let error = SavedCache::inspect(&path).map(|_| ()).unwrap_err();
        assert!(
            matches!(error, TransferError::Saved(SavedError::Damaged { .. })),
            "{error}"
        );
    }
}

fn paths(value: &Value, path: &str, found: &mut Vec<String>) {
    found.push(path.to_owned());
    let children: Vec<(String, &Value)> = match value {
        Value::Object(map) => map
            .iter()
            .map(|(key, value)| (key.clone(), value))
            .collect(),
        Value::Array(list) => {
            let entries = list.iter().enumerate();
            entries.map(|(i, value)| (i.to_string(), value)).collect()
        }
        _ => Vec::new(),
    };
    for (key, value) in children {
        paths(value, &format!("{path}/{key}"), found);
    }
}

fn replacements() -> impl Strategy<Value = Value> {
    let fixed = [
        json!(null),
        json!(0),
        json!(1),
        json!(3),
        json!(4096),
        json!(1u64 << 33),
        json!(u64::MAX),
        json!(-1),
        json!(""),
        json!("BLKNHC"),
        json!("B@1073741824LKNHC"),
        json!("k"),
        json!("C"),
        json!([]),
        json!({}),
    ];
    prop_oneof![
        prop::sample::select(fixed.to_vec()),
        (0u32..40).prop_map(|shift| json!(1u64 << shift)),
        (0u64..9000).prop_map(|n| json!(n)),
    ]
}

#[test]
fn mutated_files_never_panic_and_never_serve_wrong_blocks() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("file");
    let good = parts(folder.path());
    let mutations = prop::collection::vec((any::<prop::sample::Index>(), replacements()), 0..3);
    let flips = prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..3);
    let mut runner = proptest::test_runner::TestRunner::new(config(1500));
    let cases = (mutations, flips, any::<bool>());
    runner
        .run(&cases, |(mutations, flips, sealed)| {
            let mut header = good.header.clone();
            for (index, value) in mutations {
                let mut found = Vec::new();
                paths(&header, "", &mut found);
                if let Some(old) = header.pointer_mut(&found[index.index(found.len())]) {
                    *old = value;
                }
            }
            let mut mutant = CacheFileParts {
                header,
                checksums: good.checksums.clone(),
                data: good.data.clone(),
                data_at: good.data_at,
            };
            let mut bytes = mutant.file();
            for (index, flip) in flips {
                if sealed {
                    let at = index.index(mutant.checksums.len());
                    mutant.checksums[at] ^= flip;
                    bytes = mutant.file();
                } else {
                    let at = index.index(bytes.len());
                    bytes[at] ^= flip;
                }
            }
            fs::write(&path, bytes).unwrap();
            // An error, or blocks with valid checksums; `open_and_load` compares them.
            let _ = open_and_load(&path);
            Ok(())
        })
        .unwrap();
}
