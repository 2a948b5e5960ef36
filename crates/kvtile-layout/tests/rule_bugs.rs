//! Faults of other caches for hybrid models, as properties of the rules. Each test names the reports.

#![expect(clippy::unwrap_used, reason = "tests")]

use std::{cell::Cell, collections::BTreeSet, num::NonZeroU64};

use kvtile_layout::{
    GroupPresence, GroupRule, Shape,
    identity::{GroupRole, ModelGroup, ModelIdentity},
    usable_stops,
};

fn tokens(count: u64) -> NonZeroU64 {
    NonZeroU64::new(count).unwrap()
}

fn window(count: u64) -> GroupRule {
    GroupRule::Window {
        tokens: tokens(count),
    }
}

fn chunk(count: u64) -> GroupRule {
    GroupRule::Chunk {
        tokens: tokens(count),
    }
}

/// A group of pages of one size, and the pages that are there.
#[derive(Clone, Debug)]
struct StoredPages {
    rule: GroupRule,
    page: u64,
    pages: BTreeSet<u64>,
}

fn pages(rule: GroupRule, page: u64, pages: impl IntoIterator<Item = u64>) -> StoredPages {
    StoredPages {
        rule,
        page,
        pages: pages.into_iter().collect(),
    }
}

fn stops(groups: &[StoredPages], most: u64, unit: u64) -> Vec<u64> {
    let has: Vec<_> = groups
        .iter()
        .map(|group| |page| group.pages.contains(&page))
        .collect();
    let presences: Vec<GroupPresence<'_>> = groups
        .iter()
        .zip(&has)
        .map(|(group, has)| GroupPresence {
            rule: group.rule,
            page: tokens(group.page),
            has,
        })
        .collect();
    usable_stops(&presences, most, tokens(unit)).collect()
}

/// The rules with numbers around the size of a page of 16 tokens.
fn rules() -> Vec<GroupRule> {
    let windows = [1, 2, 15, 16, 17, 18, 32, 33, 100].map(window);
    let chunks = [1, 15, 16, 17, 32, 48, 100].map(chunk);
    [
        vec![GroupRule::Full, GroupRule::Stop],
        windows.into(),
        chunks.into(),
    ]
    .concat()
}

/// vllm#46453, local-inference-lab/vllm#402, LMCache#4247: each group had a hit of its own length and the longest one was
/// taken. A stop has what each group needs.
#[test]
fn hits_of_unequal_length_end_where_all_groups_can_be_resumed() {
    let full = pages(GroupRule::Full, 16, 0..100);
    let near = pages(window(64), 16, 50..75);
    let states = pages(GroupRule::Stop, 16, [9, 60, 90]);
    // Alone: 1,600, 1,200 and 1,456 tokens.
    assert_eq!(
        stops(std::slice::from_ref(&full), 1600, 16).first(),
        Some(&1600)
    );
    assert_eq!(
        stops(std::slice::from_ref(&near), 1600, 16).first(),
        Some(&1200)
    );
    assert_eq!(
        stops(std::slice::from_ref(&states), 1600, 16).first(),
        Some(&1456)
    );
    assert_eq!(
        stops(&[full.clone(), near, states.clone()], 1600, 16),
        [976]
    );
    // No length that all groups reach is usable here, so there is no hit.
    let far = pages(window(64), 16, 80..85);
    assert_eq!(stops(&[full, far, states], 1600, 16), [0; 0]);
}

/// The stops of several ranks are those that each of them has: presence on all ranks, page by page. The shortest of the
/// ranks' longest stops need not be one.
#[test]
fn the_stops_of_ranks_are_the_intersection_of_their_sets_for_all_presences() {
    let rules = [
        GroupRule::Full,
        GroupRule::Stop,
        window(1),
        window(2),
        window(3),
        chunk(2),
        chunk(3),
    ];
    let mut cut_would_fail = 0;
    for rule in rules {
        for bits in 0..1_u64 << 8 {
            let of = |bits: u64| pages(rule, 1, (0..4).filter(|page| bits >> page & 1 == 1));
            let (first, second) = (of(bits), of(bits >> 4));
            let both = pages(rule, 1, first.pages.intersection(&second.pages).copied());
            let all = stops(&[both], 4, 1);
            let (ours, theirs) = (stops(&[first], 4, 1), stops(&[second], 4, 1));
            let shared: Vec<u64> = ours
                .iter()
                .copied()
                .filter(|stop| theirs.contains(stop))
                .collect();
            assert_eq!(all, shared, "{rule}, presence {bits:08b}");
            let shortest = ours.first().min(theirs.first());
            cut_would_fail += u64::from(shortest.is_some_and(|stop| !all.contains(stop)));
        }
    }
    assert!(cut_would_fail > 0, "no case shows the difference");
}

/// vllm#51094: where the prompt ended at a chunk, a state was used one token early.
#[test]
fn a_state_is_of_exactly_the_tokens_before_the_stop() {
    for page in [1, 16, 640] {
        for stop in (1..20).map(|count| count * page) {
            let needs = GroupRule::Stop.needs(stop, tokens(page));
            assert_eq!((needs.start + 1, needs.end), (needs.end, stop / page));
            assert_eq!(needs.end * page, stop);
        }
    }
    // A prompt of two pages that computes its last token finds the state after one page, not that after two.
    let states = pages(GroupRule::Stop, 16, [0, 1]);
    assert_eq!(stops(&[states], 31, 16), [16]);
}

/// vllm#53951: stores kept as many pages of a window as it has, lookups wanted one more, so nothing was ever read.
#[test]
fn what_a_stop_needs_is_enough_and_each_page_of_it_is_necessary() {
    for rule in rules() {
        for page in [1, 3, 16] {
            for stop in (1..12).map(|count| count * page) {
                let needs = rule.needs(stop, tokens(page));
                let stored = pages(rule, page, needs.clone());
                let found = stops(std::slice::from_ref(&stored), stop, page);
                assert_eq!(found.first(), Some(&stop), "{rule}, pages of {page}");
                for missing in needs {
                    let mut without = stored.clone();
                    without.pages.remove(&missing);
                    let found = stops(&[without], stop, page);
                    assert!(!found.contains(&stop), "{rule}: {stop} without {missing}");
                }
            }
        }
    }
}

/// vllm#52735: with a drafter no prefix was a hit.
#[test]
fn a_drafter_without_any_page_never_shortens_a_hit() {
    let shape = Shape::key_value(1, 2, 16, 2, 8, "bf16").unwrap();
    let group = |name, rule| ModelGroup::new(name, rule, &shape).unwrap();
    let model = ModelIdentity::new(
        "m",
        "r",
        vec![
            group("full", GroupRule::Full),
            group("window", window(64)),
            group("eagle", GroupRule::Full).with_role(GroupRole::Draft),
        ],
    )
    .unwrap();
    let stored = |group: &ModelGroup| match group.name().as_str() {
        "eagle" => pages(group.rule(), 16, []),
        _ => pages(group.rule(), 16, 0..10),
    };
    let deciding: Vec<StoredPages> = model.targets().map(stored).collect();
    assert_eq!(stops(&deciding, 160, 16).first(), Some(&160));
    let all: Vec<StoredPages> = model.groups().iter().map(stored).collect();
    assert_eq!(stops(&all, 160, 16), [0; 0]);
}

/// vllm#51761: a drafter took one block off the hit, and at that boundary no window was stored: 0 of 30,208 tokens.
#[test]
fn a_limit_leads_to_a_stored_stop_and_not_to_the_boundary_below_it() {
    // A prompt of 30,208 tokens: stored were the windows of its end and of an earlier branch.
    let needs = |stop| window(512).needs(stop, tokens(16));
    let near = pages(window(512), 16, needs(30_208).chain(needs(12_000)));
    let full = pages(GroupRule::Full, 16, 0..1888);
    let groups = [full, near];
    assert_eq!(stops(&groups, 30_208, 16).first(), Some(&30_208));
    // With one token, or one block, less the earlier stop is the hit.
    for most in [30_207, 30_192, 12_000] {
        assert_eq!(stops(&groups, most, 16).first(), Some(&12_000), "{most}");
    }
}

/// vllm#42948: the keys of the first blocks were lost, and with them every hit. A stop after the first page needs that
/// page alone, under every rule.
#[test]
fn the_first_page_is_a_hit_of_its_own() {
    for rule in rules() {
        for page in [1, 16, 256] {
            let group = pages(rule, page, [0]);
            let found = stops(&[group], page, page);
            assert_eq!(found, [page], "{rule}, pages of {page}");
        }
    }
}

/// vllm-rbln#1151: after a failed load the hit was shortened by the failed blocks, although a window before them was no
/// longer there. The next stop is one that has all that it needs.
#[test]
fn the_stop_after_a_failed_load_has_its_own_window() {
    let needs = |stop| window(64).needs(stop, tokens(16));
    let full = pages(GroupRule::Full, 16, 0..100);
    let near = pages(window(64), 16, needs(1600).chain(needs(480)));
    assert_eq!(stops(&[full.clone(), near.clone()], 1600, 16), [1600, 480]);
    for failed in needs(1600) {
        let mut left = near.clone();
        left.pages.remove(&failed);
        assert_eq!(stops(&[full.clone(), left], 1600, 16), [480], "{failed}");
    }
}

/// llm-d-router#2362: the pages of a window, of which the first ones are missing, were counted as a prefix.
#[test]
fn pages_after_a_hole_are_no_prefix() {
    assert_eq!(
        stops(&[pages(GroupRule::Full, 16, [4, 5, 6, 7])], 128, 16),
        [0; 0]
    );
    assert_eq!(
        stops(&[pages(GroupRule::Full, 16, [0, 1, 5, 6])], 128, 16),
        [32, 16]
    );
    let near = pages(window(33), 16, [4, 5, 6, 7]);
    assert_eq!(stops(&[near], 128, 16), [128, 112, 96]);
}

/// vllm-ascend#13339: hits were multiples of the block times the number of groups, so short prompts had none.
#[test]
fn the_unit_of_hits_does_not_grow_with_the_number_of_groups() {
    for count in 1..8 {
        let mut groups = vec![pages(GroupRule::Full, 16, 0..2)];
        groups.extend((1..count).map(|_| pages(window(64), 16, 0..2)));
        assert_eq!(stops(&groups, 40, 16), [32, 16], "{count} groups");
    }
    // Pages of unequal size share multiples, not products.
    let groups = [
        pages(GroupRule::Full, 16, 0..4),
        pages(GroupRule::Stop, 32, [0, 1]),
    ];
    assert_eq!(stops(&groups, 64, 16), [64, 32]);
}

/// sglang-jax#1239: lookups with windows took three times as long as without a cache. A hit asks for each page of a full
/// group once and for the pages of one window; a miss asks for no page of a window twice.
#[test]
fn a_lookup_asks_for_few_pages() {
    let asked = Cell::new(0_u64);
    let count = |has: bool| {
        asked.set(asked.get() + 1);
        has
    };
    let find = |near: &dyn Fn(u64) -> bool| {
        asked.set(0);
        let full = |page| count(page < 10_000);
        let near = |page| count(near(page));
        let group = |rule, has| GroupPresence {
            rule,
            page: tokens(16),
            has,
        };
        let groups = [group(GroupRule::Full, &full), group(window(1025), &near)];
        let first = usable_stops(&groups, 160_000, tokens(16)).next();
        (first, asked.get())
    };
    assert_eq!(find(&|_| true), (Some(160_000), 10_000 + 64));
    let (first, asked) = find(&|page| page % 64 != 5);
    // Windows that begin with the prompt are shorter.
    assert_eq!(first, Some(5 * 16));
    assert!(asked <= 20_000 + 64, "{asked}");
}
