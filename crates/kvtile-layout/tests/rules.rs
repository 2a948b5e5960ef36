//! The usable stops are those of a fold over single tokens, for all presences of small cases and for random larger ones.

#![expect(clippy::indexing_slicing, clippy::unwrap_used, reason = "tests")]

use std::num::NonZeroU64;

use kvtile_layout::{GroupPresence, GroupRule, usable_stops};
use proptest::prelude::*;

/// The tokens that a hit of `stop` tokens needs, one by one.
fn tokens(rule: GroupRule, stop: u64) -> Vec<u64> {
    (0..stop)
        .filter(|token| match rule {
            GroupRule::Full => true,
            // The next token is `stop`; it attends to itself and to `tokens - 1` before it.
            GroupRule::Window { tokens } => stop - token < tokens.get(),
            GroupRule::Chunk { tokens } => *token / tokens == stop / tokens,
            GroupRule::Stop => token + 1 == stop,
        })
        .collect()
}

#[derive(Clone, Debug)]
struct NaiveGroup {
    rule: GroupRule,
    page: u64,
    has: Vec<bool>,
}

impl NaiveGroup {
    fn serves(&self, stop: u64) -> bool {
        let page = |token: u64| usize::try_from(token / self.page).unwrap();
        stop.is_multiple_of(self.page)
            && tokens(self.rule, stop)
                .into_iter()
                .all(|token| self.has[page(token)])
    }
}

fn check(groups: &[NaiveGroup], most: u64, unit: u64) {
    let stops = (1..=most).rev().filter(|stop| stop.is_multiple_of(unit));
    let expected: Vec<u64> = stops
        .filter(|stop| groups.iter().all(|group| group.serves(*stop)))
        .collect();
    let has: Vec<_> = groups
        .iter()
        .map(|group| move |page: u64| group.has[usize::try_from(page).unwrap()])
        .collect();
    let presences: Vec<GroupPresence<'_>> = groups
        .iter()
        .zip(&has)
        .map(|(group, has)| GroupPresence {
            rule: group.rule,
            page: NonZeroU64::new(group.page).unwrap(),
            has,
        })
        .collect();
    let found: Vec<u64> = usable_stops(&presences, most, NonZeroU64::new(unit).unwrap()).collect();
    let text: Vec<_> = groups
        .iter()
        .map(|group| (group.rule, group.page, &group.has))
        .collect();
    assert_eq!(found, expected, "{text:?}, at most {most}, unit {unit}");
}

fn rules(tokens: u64) -> Vec<GroupRule> {
    let mut rules = vec![GroupRule::Full, GroupRule::Stop];
    for tokens in (1..=tokens).filter_map(NonZeroU64::new) {
        rules.extend([GroupRule::Window { tokens }, GroupRule::Chunk { tokens }]);
    }
    rules
}

#[test]
fn every_presence_of_two_small_groups() {
    for first in rules(4) {
        for second in rules(4) {
            for bits in 0..1_u32 << 8 {
                let has = |shift: u32| (0..4).map(|at| bits >> (shift + at) & 1 == 1).collect();
                let group = |rule, shift| NaiveGroup {
                    rule,
                    page: 1,
                    has: has(shift),
                };
                check(&[group(first, 0), group(second, 4)], 4, 1);
            }
        }
    }
}

#[test]
fn every_presence_of_one_group_with_pages_and_units() {
    for rule in rules(13) {
        for page in 1..=3 {
            for unit in 1..=4 {
                for bits in 0..1_u32 << 4 {
                    let has = (0..4).map(|at| bits >> at & 1 == 1).collect();
                    check(&[NaiveGroup { rule, page, has }], 4 * page, unit);
                }
            }
        }
    }
}

fn group(most: u64) -> impl Strategy<Value = NaiveGroup> {
    let rule = proptest::sample::select(rules(20));
    let has = proptest::collection::vec(
        proptest::bool::weighted(0.85),
        usize::try_from(most).unwrap() + 1,
    );
    (rule, 1..7_u64, has).prop_map(|(rule, page, has)| NaiveGroup { rule, page, has })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 3000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn random_groups_of_unequal_pages(
        groups in proptest::collection::vec(group(60), 0..4),
        most in 0..60_u64,
        unit in 1..6_u64,
    ) {
        check(&groups, most, unit);
    }
}

#[test]
fn without_groups_every_unit_is_a_stop() {
    check(&[], 10, 3);
}
