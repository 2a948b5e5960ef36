//! A small model whose values follow from their keys and their places in the whole model, and caches of its ranks.

use kvtile_blocks::BlockKey;
use kvtile_layout::{
    Axis, Plane, Shape, Shard, StridedLayout, Unit, UnitIndex, identity::Identity,
};
use kvtile_tiers::{
    HasherOptions, TokenHasher,
    cache::{Cache, CacheSettings, Match},
};
use kvtile_transfer::{LeaseMode, PhysicalLayout};

/// Layers of the model.
pub(crate) const LAYERS: u64 = 4;

/// Heads of the model.
pub(crate) const HEADS: u64 = 8;

/// Tokens of a block.
pub(crate) const PAGE: u64 = 4;

/// The order of the engine, which differs from that of stored blocks.
const ENGINE_WORD: &str = "B(kNHLC,cNLC,vNHLC)";

/// The order of stored blocks: a layer has the heads of K, the plane without heads, and the heads of V.
pub(crate) const STORAGE_WORD: &str = "BL(kHNC,cNC,vHNC)";

/// Blocks of an engine.
const ENGINE_BLOCKS: u64 = 16;

/// The shape of the whole model: K and V with heads, and a plane without.
pub(crate) fn model(blocks: u64) -> Shape {
    let unit = Unit::new("f32", 4, 1).unwrap();
    let plane = |name| Plane::new(name, unit.clone()).unwrap();
    let planes = vec![
        plane("k").extent(Axis::H, HEADS).extent(Axis::C, 6),
        plane("c").extent(Axis::C, 5),
        plane("v").extent(Axis::H, HEADS).extent(Axis::C, 3),
    ];
    Shape::new(blocks, LAYERS, PAGE, planes).unwrap()
}

pub(crate) fn shard(layers: std::ops::Range<u64>, heads: std::ops::Range<u64>) -> Shard {
    let mut shard = Shard::whole(LAYERS, HEADS);
    shard.layers = kvtile_layout::AxisRange::new(layers.start, layers.end - layers.start);
    shard.heads = kvtile_layout::AxisRange::new(heads.start, heads.end - heads.start);
    shard
}

/// The shards of a grid of ranks: `stages` parts of the layers, `ranks` parts of the heads.
pub(crate) fn grid(stages: u64, ranks: u64) -> Vec<Shard> {
    let (layers, heads) = (LAYERS / stages, HEADS / ranks);
    let each = (0..stages).flat_map(|stage| (0..ranks).map(move |rank| (stage, rank)));
    each.map(|(stage, rank)| {
        shard(
            stage * layers..(stage + 1) * layers,
            rank * heads..(rank + 1) * heads,
        )
    })
    .collect()
}

pub(crate) fn identity(shard: Shard) -> Identity {
    let shape = model(1).of_shard(shard).unwrap();
    Identity::new("a-model", "main", &shape).unwrap()
}

/// The keys of the prompt `number`.
pub(crate) fn chain(shard: Shard, number: u32, blocks: u32) -> Vec<BlockKey> {
    let hasher = TokenHasher::with_options(&identity(shard), &HasherOptions::new()).unwrap();
    let tokens: Vec<u32> = (0..blocks * PAGE as u32)
        .map(|at| number * 1000 + at)
        .collect();
    hasher.keys(&tokens)
}

/// The four bytes at one place of the block of `key`.
fn value(key: &BlockKey, plane: usize, place: [u64; 4]) -> [u8; 4] {
    let seed = key.as_bytes().iter().map(|&byte| u64::from(byte));
    let numbers = seed.chain([plane as u64]).chain(place);
    let hash = numbers.fold(0xcbf2_9ce4_8422_2325_u64, |hash, number| {
        (hash ^ number).wrapping_mul(0x0100_0000_01b3)
    });
    ((hash >> 16) as u32).to_le_bytes()
}

/// Where each value of a block lies, and which it is.
fn values(layout: &StridedLayout, key: &BlockKey) -> Vec<(usize, [u8; 4])> {
    let shape = layout.shape();
    let shard = shape.shard();
    let mut values = Vec::new();
    for (number, plane) in shape.planes().iter().enumerate() {
        let heads = if plane.has(Axis::H) {
            shard.heads.count
        } else {
            1
        };
        let (layers, contents) = (shard.layers.count, plane.extent_of(Axis::C));
        for place in 0..layers * PAGE * heads * contents {
            let content = place % contents;
            let head = place / contents % heads;
            let token = place / contents / heads % PAGE;
            let layer = place / contents / heads / PAGE;
            let mut index = UnitIndex::new()
                .at(Axis::L, layer)
                .at(Axis::N, token)
                .at(Axis::C, content);
            let mut in_model = [layer + shard.layers.start, token, content, 0];
            if plane.has(Axis::H) {
                index = index.at(Axis::H, head);
                in_model[3] = 1 + head + shard.heads.start;
            }
            let location = layout.locate(plane.name().as_str(), &index).unwrap();
            values.push((location.offset as usize, value(key, number, in_model)));
        }
    }
    values
}

/// The cache of one rank, over an engine's memory.
pub(crate) struct Rank {
    pub(crate) cache: Cache,
    pub(crate) shard: Shard,
    layout: StridedLayout,
}

impl Rank {
    /// The rank whose cache `open` opens, over the memory of an engine.
    pub(crate) fn of(
        shard: Shard,
        open: impl FnOnce(CacheSettings, PhysicalLayout) -> Cache,
    ) -> Rank {
        let shape = model(ENGINE_BLOCKS).of_shard(shard).unwrap();
        let engine = PhysicalLayout::builder()
            .with_shape(shape.clone())
            .layout(ENGINE_WORD.parse::<kvtile_layout::Word>().unwrap())
            .allocate_system()
            .build()
            .unwrap();
        let one = StridedLayout::resolve(
            &ENGINE_WORD.parse().unwrap(),
            &shape.with_num_blocks(1).unwrap(),
            1,
        );
        let settings = CacheSettings::new(identity(shard))
            .host_bytes(1 << 20)
            .storage_word(STORAGE_WORD.parse().unwrap())
            .workers(2);
        Rank {
            cache: open(settings, engine),
            shard,
            layout: one.unwrap(),
        }
    }

    /// Stores the first `blocks` blocks of a prompt in host memory.
    pub(crate) fn put(&self, number: u32, blocks: u32) {
        let keys = chain(self.shard, number, blocks);
        let ids: Vec<usize> = (0..keys.len()).collect();
        for (block, key) in ids.iter().zip(&keys) {
            let manager = self.cache.manager();
            let engine = self.cache.engine();
            let mut lease = manager.lease(engine, &[*block], LeaseMode::Write).unwrap();
            let bytes = lease.block_mut(*block as u64).unwrap();
            for (at, value) in values(&self.layout, key) {
                bytes[at..at + 4].copy_from_slice(&value);
            }
        }
        let stored = self.cache.store(&keys, &ids).unwrap();
        assert_eq!(stored.wait().stored + stored.wait().present, keys.len());
    }

    /// Loads what a lookup of a prompt found, and compares every byte. Returns the number of leading blocks that came.
    pub(crate) fn load_found(&self, found: Match, keys: &[BlockKey]) -> usize {
        let ids: Vec<usize> = (0..found.blocks()).collect();
        if ids.is_empty() {
            return 0;
        }
        let loaded = self.cache.load(found, &ids).unwrap();
        let came = loaded.wait().blocks;
        for (block, key) in (0..came).zip(keys) {
            let manager = self.cache.manager();
            let engine = self.cache.engine();
            let lease = manager.lease(engine, &[block], LeaseMode::Read).unwrap();
            let bytes = lease.block(block as u64).unwrap();
            for (at, value) in values(&self.layout, key) {
                assert_eq!(bytes[at..at + 4], value, "byte {at} of block {block}");
            }
        }
        came
    }
}
