//! Replays over groups against a model without pools, and the division of memory against that of a real cache.

use std::collections::HashSet;

use kvtile_blocks::events::TierId;
use kvtile_layout::{GroupRule, identity::GroupRole};

use super::*;
use crate::replay::{TraceLimits, Workload, generate};

fn tokens(count: u64) -> NonZeroU64 {
    NonZeroU64::new(count).unwrap()
}

fn state() -> Shape {
    let plane = Plane::new("s", Unit::new("f32", 4, 1).unwrap()).unwrap();
    let plane = plane.extent(Axis::C, 5000).per_page();
    Shape::new(1, 2, 64, vec![plane]).unwrap()
}

/// A model with a spine, a window, and a state with longer pages.
fn model() -> ModelIdentity {
    let key_value = |layers| Shape::key_value(1, layers, 16, 2, 64, "bf16").unwrap();
    let window = GroupRule::Window {
        tokens: tokens(100),
    };
    let groups = vec![
        ModelGroup::new("full", GroupRule::Full, &key_value(2)).unwrap(),
        ModelGroup::new("window", window, &key_value(3)).unwrap(),
        ModelGroup::new("state", GroupRule::Stop, &state()).unwrap(),
        ModelGroup::new("draft", GroupRule::Full, &key_value(1))
            .unwrap()
            .with_role(GroupRole::Draft),
    ];
    ModelIdentity::new("a model", "1", groups).unwrap()
}

fn settings(model: &ModelIdentity, host_bytes: Option<u64>) -> GroupedSettings<'_> {
    GroupedSettings {
        model,
        host_bytes,
        policy: PolicyKind::default(),
        stops: ReplayStops::default(),
    }
}

fn trace(requests: usize) -> Trace {
    generate(Workload::Chat, requests, 3).unwrap()
}

/// The tokens that hit in a cache that loses nothing: a stop is found where some request stored one.
fn hits_without_pools(trace: &Trace, stops: ReplayStops) -> u64 {
    const UNIT: u64 = 64;
    let mut stored: HashSet<(u32, u64)> = HashSet::new();
    let mut spine: HashSet<(u32, u64)> = HashSet::new();
    let mut hits = 0;
    for request in trace.requests() {
        let block = u64::from(trace.page_size());
        let name = |end: u64| {
            (
                request.blocks[usize::try_from((end - 1) / block).unwrap()],
                end,
            )
        };
        let all = u64::from(request.input_tokens);
        let last = |tokens: u64| tokens - tokens % UNIT;
        let mut candidates = (1..=last(all - 1) / UNIT).map(|unit| unit * UNIT).rev();
        let hit = candidates
            .find(|end| stored.contains(&name(*end)))
            .unwrap_or(0);
        let mut reach = 0;
        // The spine has pages of 16 tokens; what counts is where a stop can be.
        while reach + 16 < all && spine.contains(&name(reach + 16)) {
            reach += 16;
        }
        hits += hit;
        let mut new = Vec::new();
        if stops.prompt {
            // Blocks of the trace have 512 tokens, a multiple of the unit.
            new.extend([all - 1 - (all - 1) % block, all - all % block]);
        }
        if stops.branch {
            new.push(last(reach));
        }
        if let Some(every) = stops.every {
            let first = (1..=all).filter(|end| end.is_multiple_of(every.get()));
            new.extend(first.map(|end| end.next_multiple_of(UNIT)));
        }
        new.retain(|end| *end > hit && *end <= all);
        stored.extend(new.into_iter().map(name));
        spine.extend((1..=all / 16).map(|page| name(page * 16)));
    }
    hits
}

#[test]
fn without_a_bound_each_stored_stop_is_found() {
    let (model, trace) = (model(), trace(150));
    for stops in [
        ReplayStops::default(),
        ReplayStops {
            branch: false,
            ..ReplayStops::default()
        },
        ReplayStops {
            prompt: false,
            branch: false,
            every: Some(tokens(1000)),
        },
    ] {
        let settings = GroupedSettings {
            stops,
            ..settings(&model, None)
        };
        let mut seen = 0;
        let totals = replay_grouped(&trace, &settings, &mut |done| seen = done).unwrap();
        assert_eq!(seen, 150);
        assert!(totals.hits > 0, "{totals:?}");
        assert_eq!(
            totals.hit_tokens,
            hits_without_pools(&trace, stops),
            "{stops:?}"
        );
        assert!(totals.spine_tokens >= totals.hit_tokens, "{totals:?}");
        // By name: full, state, window.
        let loaded: Vec<u64> = totals
            .groups
            .iter()
            .map(|group| group.loaded_pages)
            .collect();
        // One state a hit, at most 7 pages of the window, and all pages of the spine.
        assert_eq!(
            (loaded[1], loaded[0] * 16),
            (totals.hits, totals.hit_tokens)
        );
        assert!(loaded[2] <= totals.hits * 7, "{totals:?}");
    }
}

#[test]
fn less_memory_finds_no_more_and_groups_divide_it_as_in_the_cache() {
    let (model, trace) = (model(), trace(150));
    let all = replay_grouped(&trace, &settings(&model, None), &mut |_| {}).unwrap();
    let bytes = 40 << 20;
    let few = replay_grouped(&trace, &settings(&model, Some(bytes)), &mut |_| {}).unwrap();
    assert!(few.hit_tokens < all.hit_tokens, "{few:?}");
    assert!(few.hit_tokens > 0, "{few:?}");
    let groups = model.targets().map(|group| {
        let identity = model.group_identity(group.name().as_str()).unwrap();
        CacheGroup::new(group.name().as_str(), group.rule(), identity)
    });
    let layouts = model.targets().map(|group| {
        let word = if group.rule() == GroupRule::Stop {
            "BLC"
        } else {
            "BLKNHC"
        };
        let shape = group.shape().with_num_blocks(4).unwrap();
        let builder = PhysicalLayout::builder().with_shape(shape);
        builder
            .layout(word.parse::<Word>().unwrap())
            .allocate_system()
            .build()
            .unwrap()
    });
    let opened = GroupCacheSettings::new(groups.collect()).host_bytes(bytes);
    let cache = GroupCache::open(opened, layouts.collect()).unwrap();
    for group in &few.groups {
        let stats = cache.tier_stats(&group.name, TierId::HOST).unwrap();
        assert_eq!(group.host_pages, stats.capacity, "{group:?}");
    }
}

#[test]
fn what_cannot_be_replayed_is_refused_with_its_numbers() {
    let model = model();
    let line = r#"{"timestamp": 0, "input_length": 90, "output_length": 1, "hash_ids": [1, 2, 3]}"#;
    let limits = TraceLimits {
        page_size: Some(40),
        ..TraceLimits::default()
    };
    let odd = Trace::read(line.as_bytes(), &limits).unwrap();
    let error = replay_grouped(&odd, &settings(&model, None), &mut |_| {}).unwrap_err();
    assert!(
        matches!(
            error,
            GroupedError::Unit {
                block: 40,
                unit: 16
            }
        ),
        "{error}"
    );
    let trace = trace(20);
    let error = replay_grouped(&trace, &settings(&model, Some(4096)), &mut |_| {}).unwrap_err();
    assert!(error.to_string().contains("4096"), "{error}");
}
