//! Groups on a real folder: equal keys, restarts, capacities, damage.

use super::{check_folder, group, groups, open, sync, write_chains};

#[test]
fn groups_keep_other_bytes_under_the_same_keys_and_are_recovered_together() {
    for count in 1..=3 {
        let folder = tempfile::tempdir().unwrap();
        let groups = groups(count);
        let (store, recovered) = open(folder.path(), 20, &groups).unwrap();
        assert!(recovered.iter().all(|recovered| recovered.created));
        assert_eq!(store.stores().len(), count);
        assert!(store.stores().iter().all(|store| store.slots() == 19));
        write_chains(&store, &groups, 0, 19);
        sync(&store);
        drop(store);
        let numbers: Vec<u64> = (0..19).collect();
        let store = check_folder(folder.path(), 20, &groups, &numbers);
        assert_eq!(group(&store, 0).block_bytes(), 12_288);
    }
}
