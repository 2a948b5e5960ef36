//! Runs the `main` of every example.

use std::{collections::BTreeSet, error::Error, ffi::OsString, path::Path};

use custom_tier::{PoolTier, SharedPool};
use kvtile::{TierId, blocks::events::TierKind};
use kvtile_testkit::tier::conformance::{OpenTierAt, check_tier};

#[path = "../examples/copy_layouts.rs"]
mod copy_layouts;
#[path = "../examples/custom_tier.rs"]
mod custom_tier;
#[path = "../examples/layer_by_layer.rs"]
mod layer_by_layer;
#[path = "../examples/record_and_replay.rs"]
mod record_and_replay;
#[path = "../examples/restart.rs"]
mod restart;

#[test]
fn copy_layouts_runs() -> Result<(), Box<dyn Error>> {
    copy_layouts::main()
}

#[test]
fn custom_tier_runs() -> Result<(), Box<dyn Error>> {
    custom_tier::main()
}

#[test]
fn the_custom_tier_keeps_the_contract() -> Result<(), Box<dyn Error>> {
    let id = TierId::new(TierKind::Remote, "pool")?;
    let place = move || -> OpenTierAt {
        Box::new(move |context| PoolTier::open(id, SharedPool::default(), context))
    };
    check_tier(0, &place);
    check_tier(2, &place);
    Ok(())
}

#[test]
fn layer_by_layer_runs() -> Result<(), Box<dyn Error>> {
    layer_by_layer::main()
}

#[test]
fn record_and_replay_runs() -> Result<(), Box<dyn Error>> {
    record_and_replay::main()
}

#[test]
fn restart_runs() -> Result<(), Box<dyn Error>> {
    restart::main()
}

#[test]
fn every_file_of_the_folder_is_run_here() -> Result<(), Box<dyn Error>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples");
    let mut files = BTreeSet::new();
    for entry in std::fs::read_dir(folder)? {
        files.insert(entry?.file_name());
    }
    let run = [
        "copy_layouts",
        "custom_tier",
        "layer_by_layer",
        "record_and_replay",
        "restart",
    ];
    let run: BTreeSet<OsString> = run.map(|name| format!("{name}.rs").into()).into();
    assert_eq!(files, run);
    Ok(())
}
