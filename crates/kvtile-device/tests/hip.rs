//! HIP as data: each function of the table has a counterpart there or a stated absence, and nothing loads the library.

use kvtile_device::{
    DeviceError, DeviceOptions, Driver, DriverTable, cuda,
    hip::{self, HipCounterpart},
};
use std::collections::BTreeSet;

#[test]
fn each_function_of_the_table_has_a_counterpart_or_a_stated_absence() {
    let table = DriverTable::REQUIRED.iter().chain(DriverTable::OPTIONAL);
    let named: Vec<&str> = hip::COUNTERPARTS
        .iter()
        .map(|(symbol, _)| *symbol)
        .collect();
    assert_eq!(named, table.copied().collect::<Vec<&str>>());
}

#[test]
fn names_are_those_of_hip_and_differences_are_stated() {
    let symbols = hip::COUNTERPARTS.iter().filter_map(|(_, is)| is.symbol());
    let symbols: Vec<&str> = symbols.collect();
    assert!(symbols.iter().all(|symbol| symbol.starts_with("hip")));
    let different: BTreeSet<&str> = symbols.iter().copied().collect();
    assert_eq!(
        different.len(),
        symbols.len(),
        "one function stands for two"
    );
    for (symbol, counterpart) in hip::COUNTERPARTS {
        let stated = match counterpart {
            HipCounterpart::Differs { difference, .. } => difference,
            HipCounterpart::Absent { instead } => instead,
            _ => continue,
        };
        assert!(!stated.is_empty(), "{symbol}");
    }
    // What the difference of a launch and of a batch is about.
    assert_ne!(hip::LAUNCH_PARAM_END, cuda::LAUNCH_PARAM_END);
    let batch = hip::COUNTERPARTS
        .iter()
        .find(|(symbol, _)| *symbol == "cuMemcpyBatchAsync");
    let most = hip::BATCH_COPIES_MAX.to_string();
    assert!(
        matches!(batch, Some((_, HipCounterpart::Differs { difference, .. })) if difference.contains(&most)),
        "{batch:?}"
    );
}

#[test]
fn no_option_loads_the_library() {
    // A machine with a driver has nothing to list.
    if let Err(DeviceError::NoDriver { tried }) = Driver::open(&DeviceOptions::default()) {
        let names = tried.iter().map(|tried| tried.library.as_str());
        let names: Vec<&str> = names.collect();
        assert!(!names.is_empty());
        assert!(!names.iter().any(|name| name.contains("hip")), "{names:?}");
    }
}
