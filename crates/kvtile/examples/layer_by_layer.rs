//! Waits for a load layer by layer: attention of layer 0 begins while later layers are being
//! copied.
//!
//! ```sh
//! cargo run -p kvtile --example layer_by_layer
//! ```

use std::error::Error;

use kvtile::{Cache, CacheSettings, FillPattern, Identity, PhysicalLayout, Shape, TokenHasher};

const LAYERS: usize = 8;

pub(crate) fn main() -> Result<(), Box<dyn Error>> {
    let shape = Shape::key_value(64, LAYERS as u64, 16, 2, 64, "bf16")?;
    let engine = PhysicalLayout::builder()
        .with_shape(shape.clone())
        .layout("L|BKNHC")
        .allocate_system()
        .build()?;
    let identity = Identity::new("a-model", "main", &shape)?;
    let keys = TokenHasher::new(&identity)?.keys(&(0..16 * 16).collect::<Vec<u32>>());
    let cache = Cache::open(CacheSettings::new(identity).host_bytes(64 << 20), engine)?;

    let computed: Vec<usize> = (0..16).collect();
    let manager = cache.manager();
    manager.fill(cache.engine(), &computed, FillPattern::Distinct { seed: 1 })?;
    cache.store(&keys, &computed)?.wait();

    let destinations: Vec<usize> = (32..48).collect();
    let load = cache.load(cache.lookup(&keys), &destinations)?;
    for layer in 0..LAYERS {
        // `Err` holds the report of a load that ended without this layer: the engine computes it.
        match load.wait_layer(layer) {
            Ok(()) => println!("layer {layer} is complete: attention can read it"),
            Err(report) => return Err(format!("layer {layer} is missing: {report:?}").into()),
        }
    }
    let report = load.wait();
    assert_eq!(report.blocks, 16);
    assert!(report.stopped.is_none());
    for (from, to) in computed.iter().zip(&destinations) {
        let digests = (
            manager.block_digest(cache.engine(), *from)?,
            manager.block_digest(cache.engine(), *to)?,
        );
        assert_eq!(digests.0, digests.1);
    }
    Ok(())
}
