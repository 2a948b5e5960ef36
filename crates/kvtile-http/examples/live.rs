//! Serves two caches that share a store while requests come: `cargo run -p kvtile-http --example live -- 9090`.

use std::{
    error::Error,
    sync::Arc,
    time::{Duration, Instant},
};

use kvtile::{
    BlockKey, Cache, CacheSettings, Identity, PhysicalLayout, Shape, StoreOptions, TierId,
    TokenHasher,
    shared::{
        memory::MemoryStore,
        tier::{SharedTier, SharedTierSettings},
    },
    tiers::tier::{TierSettings, TierWrites},
};
use kvtile_http::CacheReport;

/// Blocks of the engine.
const ENGINE_BLOCKS: usize = 64;

/// Blocks of one request: a document, and a question about it.
const REQUEST_BLOCKS: u32 = 24;

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let address = arguments.next().unwrap_or_else(|| "0".to_owned());
    let seconds: u64 = arguments.next().map_or(Ok(u64::MAX), |text| text.parse())?;

    let shape = Shape::key_value(ENGINE_BLOCKS as u64, 8, 16, 4, 64, "bf16")?;
    let identity = Identity::new("example/model-1b", "main", &shape)?;
    let hasher = TokenHasher::new(&identity)?;
    let keys = |document: u32, question: u32| {
        let tokens = (0..REQUEST_BLOCKS * 16).map(|at| match at / 16 < REQUEST_BLOCKS - 4 {
            true => document * 10_000 + at,
            false => question * 10_000 + at,
        });
        hasher.keys(&tokens.collect::<Vec<u32>>())
    };

    let folder = std::env::temp_dir().join(format!("kvtile-live-{}", std::process::id()));
    let store = MemoryStore::new();
    let open = |name: &str| -> Result<Arc<Cache>, Box<dyn Error>> {
        let engine = PhysicalLayout::builder()
            .with_shape(shape.clone())
            .layout("BLKNHC");
        let settings = CacheSettings::new(identity.clone())
            .host_bytes(16 << 20)
            .disk(folder.join(name), 64 << 20);
        let shared = SharedTierSettings::new().bundle_blocks(4);
        let writes = TierSettings::default().writes(TierWrites::AtOnce);
        let opener = SharedTier::opener(TierId::SHARED, Arc::clone(&store) as _, shared);
        let cache = Cache::builder(settings).tier(writes, opener);
        Ok(Arc::new(cache.open(engine.allocate_system().build()?)?))
    };
    let caches = [("engine 0", open("0")?), ("engine 1", open("1")?)];

    let observed = caches
        .clone()
        .map(|(name, cache)| (name, Arc::downgrade(&cache)));
    let server = kvtile_http::serve(&address, move || {
        let open = observed
            .iter()
            .filter_map(|(name, cache)| Some((name, cache.upgrade()?)));
        open.map(|(name, cache)| CacheReport::of(name, &*cache))
            .collect()
    })?;
    println!("{}", server.url());

    let start = Instant::now();
    for request in 0_u32.. {
        if start.elapsed().as_secs() >= seconds {
            break;
        }
        let (_, cache) = &caches[request as usize % 2];
        // Some documents are requested much more often.
        let document = (request * request + 7) % 97 % (3 + request % 40);
        serve_request(cache, &keys(document, request))?;
        std::thread::sleep(Duration::from_millis(20 + u64::from(request % 13) * 10));
    }
    drop((server, caches));
    std::fs::remove_dir_all(&folder)?;
    Ok(())
}

/// What an engine does with a request: load what is stored, compute the rest, store it.
fn serve_request(cache: &Cache, keys: &[BlockKey]) -> Result<(), Box<dyn Error>> {
    let blocks: Vec<usize> = (0..keys.len()).collect();
    let found = cache.seek(keys, Duration::from_secs(1)).wait();
    let hits = found.blocks();
    let loaded = cache
        .load(found, blocks.get(..hits).unwrap_or_default())?
        .wait();
    let rest = blocks.get(loaded.blocks..).unwrap_or_default();
    let options = StoreOptions::new().first(loaded.blocks);
    cache.store_with(keys, rest, &options)?.wait();
    Ok(())
}
