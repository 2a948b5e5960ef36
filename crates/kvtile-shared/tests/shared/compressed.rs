//! Blocks that are compressed in the store.

use std::{fs, path::PathBuf, sync::Arc};

use kvtile_random::SplitMix64;
use kvtile_shared::{
    folder::{FolderStore, FolderStoreSettings},
    store::SharedStore,
    survey::{SurveySettings, verify},
    tier::SharedTierSettings,
};
use kvtile_testkit::shared::SharedTierRig;

/// Blocks of a chain: two bundles.
const BLOCKS: u32 = 16;
/// Bytes of them.
const BYTES: u64 = BLOCKS as u64 * 1024;

struct Place {
    folder: tempfile::TempDir,
    store: Arc<FolderStore>,
}

impl Place {
    fn new() -> Place {
        let folder = tempfile::tempdir().unwrap();
        let store = FolderStore::open(folder.path(), FolderStoreSettings::new()).unwrap();
        Place {
            store: Arc::new(store),
            folder,
        }
    }

    fn rig(&self, compress: bool) -> SharedTierRig {
        let settings = SharedTierSettings::new()
            .bundle_blocks(8)
            .compress(compress);
        let store = Arc::clone(&self.store) as Arc<dyn SharedStore>;
        SharedTierRig::open(store, settings, (4, 0))
    }

    fn files(&self) -> Vec<PathBuf> {
        let names = SharedTierRig::names(&*self.store);
        let files = names
            .iter()
            .map(|name| self.folder.path().join(name.as_str()));
        files.collect()
    }
}

#[test]
fn compressed_blocks_come_back_and_every_cache_reads_them() {
    let (packed, raw) = (Place::new(), Place::new());
    let chain = SharedTierRig::chain(1, BLOCKS);
    for (place, compress) in [(&packed, true), (&raw, false)] {
        let writer = place.rig(compress);
        writer.write(&chain);
        let counters = writer.tier().counters();
        assert_eq!(counters.written, 2);
        let content = counters.written_bytes - 2 * 4096;
        match compress {
            true => assert!(content < BYTES * 19 / 20, "{content} of {BYTES}"),
            false => assert_eq!(content, BYTES),
        }
        for reads_packed in [false, true] {
            let reader = place.rig(reads_packed);
            assert_eq!(reader.ask(&chain).leading, chain.len());
            reader.read_all(&chain);
            // Some blocks alone, which ends the call after the last of them.
            let reader = place.rig(reads_packed);
            assert_eq!(reader.ask(&chain).leading, chain.len());
            reader.read_all(&chain[2..3]);
            assert!(reader.tier().counters().read_bytes <= 4096 + 3 * 1024);
            reader.read_all(&[chain[9], chain[15], chain[9]]);
        }
        let check = verify(&*place.store, &SurveySettings::new(), false, |_| {}).unwrap();
        assert_eq!((check.whole, check.unfit.len()), (2, 0), "{check:?}");
    }
    // Names do not depend on it, so what is there stays.
    raw.rig(true).write(&chain);
    assert_eq!(raw.rig(true).tier().counters().written, 0);
}

#[test]
fn no_damage_of_a_compressed_value_is_served_and_all_of_it_is_found() {
    let place = Place::new();
    let chain = SharedTierRig::chain(2, 8);
    place.rig(true).write(&chain);
    let [file] = &place.files()[..] else {
        panic!("one bundle");
    };
    let whole = fs::read(file).unwrap();
    let mut numbers = SplitMix64::new(3);
    for round in 0..200 {
        let mut damaged = whole.clone();
        // The header has a test of its own, so most rounds leave it.
        let first = if round % 8 == 0 { 0 } else { 4096 };
        match round % 10 {
            9 => damaged.truncate(first + numbers.index(damaged.len() - first)),
            8 => damaged.extend([0; 3]),
            _ => {
                let at = first + numbers.index(damaged.len() - first);
                damaged[at] ^= 1 << numbers.below(8);
            }
        }
        fs::write(file, &damaged).unwrap();
        let check = verify(&*place.store, &SurveySettings::new(), false, |_| {}).unwrap();
        assert_eq!((check.whole, check.unfit.len()), (0, 1), "round {round}");
        let reader = place.rig(round % 2 == 0);
        assert_eq!(reader.ask(&chain).leading, chain.len());
        // The rig compares the bytes of what comes.
        let outcomes = reader.read(&chain);
        assert!(
            outcomes.iter().all(Result::is_err),
            "round {round}: {outcomes:?}"
        );
        let counters = reader.tier().counters();
        let counted = counters.damaged + counters.short + counters.other_identity;
        assert_eq!(counted, 1, "round {round}: {counters:?}");
        fs::write(file, &whole).unwrap();
    }
    let reader = place.rig(false);
    assert_eq!(reader.ask(&chain).leading, chain.len());
    reader.read_all(&chain);
}
