//! The caches of well-known models: their sizes, their shards, their refusals.
#![expect(clippy::unwrap_used, reason = "tests")]

use kvtile_layout::{
    LayoutError, RangePair, Unit,
    presets::{ModelCache, PresetError, find_model, models},
};

fn bytes_per_token(name: &str, tp_size: u64) -> u64 {
    let model = find_model(name).unwrap();
    let unit = model.unit().unwrap();
    let shape = model.shape(1, 16, tp_size, 0, &unit).unwrap();
    shape.block_bytes().unwrap() / 16
}

/// 2 x layers x KV heads x head size x 2 bytes, or layers x (latent + rope part) x 2 bytes.
#[test]
fn the_cache_of_one_token_has_the_size_that_arithmetic_says() {
    for (name, bytes) in [
        ("llama-3.1-8b", 131_072),
        ("llama-3.1-70b", 327_680),
        ("llama-3.2-1b", 32_768),
        ("qwen2.5-7b", 57_344),
        ("qwen3-8b", 147_456),
        ("mistral-7b-v0.3", 131_072),
        ("mixtral-8x7b", 131_072),
        ("gemma-2-9b", 344_064),
        ("gpt-oss-20b", 49_152),
        ("smollm2-135m", 23_040),
        ("deepseek-v3", 70_272),
    ] {
        assert_eq!(bytes_per_token(name, 1), bytes, "{name}");
    }
}

#[test]
fn every_model_has_a_dtype_a_source_and_a_shape() {
    for model in models().unwrap() {
        let unit = model.unit().unwrap();
        let shape = model.shape(3, 16, 1, 0, &unit).unwrap();
        assert_eq!(shape.num_layers(), model.layers);
        assert_eq!(find_model(&model.name.to_uppercase()).unwrap(), model);
        assert!(model.source.ends_with("/config.json") && !model.seen.is_empty());
        if let ModelCache::Heads { kv_heads, .. } = model.cache {
            assert_eq!(model.heads % kv_heads, 0, "{}", model.name);
            assert_eq!(shape.shard().total_heads, kv_heads);
        }
    }
}

#[test]
fn ranks_split_heads_and_fit_into_the_whole_model() {
    let model = find_model("llama-3.1-8b").unwrap();
    let unit = model.unit().unwrap();
    let whole = model.shape(4, 16, 1, 0, &unit).unwrap();
    for rank in 0..4 {
        let part = model.shape(4, 16, 4, rank, &unit).unwrap();
        assert_eq!(part.num_heads(), 2);
        let heads = RangePair::shared(part.shard().heads, whole.shard().heads).unwrap();
        assert_eq!(
            (heads.source, heads.destination, heads.count),
            (0, rank * 2, 2)
        );
    }
    let replica = model.shape(4, 16, 16, 5, &unit).unwrap();
    assert_eq!((replica.num_heads(), replica.shard().heads.start), (1, 2));
    assert_eq!(replica.shard().replica, 1);
    assert!(model.shape(4, 16, 4, 4, &unit).is_err());
    assert!(model.shape(4, 16, 3, 0, &unit).is_err());
    assert!(model.shape(4, 16, 0, 0, &unit).is_err());
}

#[test]
fn every_rank_holds_the_whole_latent() {
    assert_eq!(
        bytes_per_token("deepseek-v3", 8),
        bytes_per_token("deepseek-v3", 1)
    );
    let model = find_model("deepseek-v3").unwrap();
    let shape = model.shape(1, 64, 8, 3, &model.unit().unwrap()).unwrap();
    assert_eq!(shape.shard().replica, 3);
}

#[test]
fn quantised_units_divide_a_head_or_are_refused() {
    let model = find_model("smollm2-135m").unwrap();
    let records = Unit::named("q8_0").unwrap();
    let shape = model.shape(1, 16, 1, 0, &records).unwrap();
    assert_eq!(shape.block_bytes().unwrap(), 30 * 2 * 16 * 3 * 2 * 34);
    for unit in [
        Unit::new("by-48", 48, 48).unwrap(),
        Unit::opaque("page", 64).unwrap(),
    ] {
        let error = model.shape(1, 16, 1, 0, &unit).unwrap_err();
        let expected = |e: &LayoutError| {
            matches!(
                e,
                LayoutError::Preset(PresetError::UnitValues { values: 64, .. })
            )
        };
        assert!(expected(&error), "{error}");
    }
}

#[test]
fn sizes_that_overflow_are_refused() {
    let model = find_model("llama-3.1-70b").unwrap();
    let unit = model.unit().unwrap();
    assert!(model.shape(u64::MAX, 16, 1, 0, &unit).is_err());
    assert!(model.shape(1, u64::MAX, 1, 0, &unit).is_err());
    assert!(model.shape(0, 16, 1, 0, &unit).is_err());
}

#[test]
fn an_unknown_model_suggests_those_that_resemble_it() {
    let error = find_model("llama-8b").unwrap_err().to_string();
    assert!(error.contains("llama-3.1-8b"), "{error}");
}
