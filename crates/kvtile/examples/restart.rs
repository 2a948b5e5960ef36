//! A cache with a disk tier: a second cache on the same folder finds the blocks of the first one,
//! and loads them into an engine with another layout.
//!
//! ```sh
//! cargo run -p kvtile --example restart
//! ```

use std::{error::Error, path::Path};

use kvtile::{
    Cache, CacheSettings, FillPattern, Fingerprint, Identity, PhysicalLayout, Shape, TokenHasher,
};

pub(crate) fn main() -> Result<(), Box<dyn Error>> {
    let folder = tempfile::tempdir()?;
    let prompt: Vec<u32> = (0..70).collect(); // four full blocks of 16 tokens, and 6 tokens

    let stored = first_process(folder.path(), &prompt)?;
    let loaded = second_process(folder.path(), &prompt)?;
    assert_eq!(stored, loaded);
    println!(
        "the second process found {} blocks, with equal bytes",
        loaded.len()
    );

    refused_for_another_model(folder.path())
}

/// Stores the blocks of a prompt; returns their digests.
fn first_process(folder: &Path, prompt: &[u32]) -> Result<Vec<Fingerprint>, Box<dyn Error>> {
    let cache = open(folder, "a-model", "L|BH(kCN,vNC)")?;
    let keys = TokenHasher::new(&identity("a-model")?)?.keys(prompt);

    // The place of the model: it computes the KV of the prompt into its blocks 3, 7, 8 and 1.
    let blocks = [3, 7, 8, 1];
    let manager = cache.manager();
    manager.fill(cache.engine(), &blocks, FillPattern::Distinct { seed: 1 })?;
    let digests = blocks.map(|block| manager.block_digest(cache.engine(), block));

    assert_eq!(cache.store(&keys, &blocks)?.wait().stored, keys.len());
    // A flush makes everything durable. Closing the cache does the same, a crash does not.
    let flushed = cache.flush();
    assert!(flushed.durable, "{flushed:?}");
    Ok(digests.into_iter().collect::<Result<_, _>>()?)
}

/// Loads the blocks of the prompt; returns their digests.
fn second_process(folder: &Path, prompt: &[u32]) -> Result<Vec<Fingerprint>, Box<dyn Error>> {
    let cache = open(folder, "a-model", "BLKNHC")?;
    let keys = TokenHasher::new(&identity("a-model")?)?.keys(prompt);

    let found = cache.lookup(&keys); // does no I/O, and pins the blocks that it finds
    let destinations: Vec<usize> = (20..20 + found.blocks()).collect();
    let report = cache.load(found, &destinations)?.wait();
    println!("{} blocks from {:?}", report.blocks, report.from_below);

    let digest = |&block: &usize| cache.manager().block_digest(cache.engine(), block);
    Ok(destinations.iter().map(digest).collect::<Result<_, _>>()?)
}

/// The folder serves its own model only.
fn refused_for_another_model(folder: &Path) -> Result<(), Box<dyn Error>> {
    match open(folder, "another-model", "BLKNHC") {
        Err(error) => println!("refused: {error}"),
        Ok(_) => return Err("a folder of another model was opened".into()),
    }
    Ok(())
}

/// Opens a cache with 16 MiB of host memory and a disk tier of 64 MiB.
fn open(folder: &Path, model: &str, layout: &str) -> Result<Cache, Box<dyn Error>> {
    let engine = PhysicalLayout::builder()
        .with_shape(shape()?)
        .layout(layout)
        .allocate_system()
        .build()?;
    let settings = CacheSettings::new(identity(model)?)
        .host_bytes(16 << 20)
        .disk(folder.join("kv"), 64 << 20);
    Ok(Cache::open(settings, engine)?)
}

/// 32 blocks of 16 tokens, 4 layers, 2 KV heads of 64 bf16 values.
fn shape() -> Result<Shape, Box<dyn Error>> {
    Ok(Shape::key_value(32, 4, 16, 2, 64, "bf16")?)
}

fn identity(model: &str) -> Result<Identity, Box<dyn Error>> {
    Ok(Identity::new(model, "main", &shape()?)?)
}
