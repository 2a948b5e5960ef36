//! Sets of layers against a list of layers.

use std::collections::BTreeSet;

use kvtile_layout::{AxisRange, LAYER_RUNS_MAX, LayerSet};
use proptest::prelude::*;

#[test]
fn ranges_are_written_as_such() {
    let text = |layers: &[u64]| LayerSet::new(layers.iter().copied()).unwrap().to_string();
    assert_eq!(text(&[0, 1, 2, 3]), "0..4");
    assert_eq!(text(&[5]), "5");
    assert_eq!(text(&[0, 1, 4, 88, 89, 92]), "0..2, 4, 88..90, 92");
    let range = LayerSet::range(AxisRange::new(3, 1 << 60)).unwrap();
    assert_eq!(range.count(), 1 << 60);
    assert_eq!(range.as_range(), Some(AxisRange::new(3, 1 << 60)));
    assert_eq!(LayerSet::new([1, 3]).unwrap().as_range(), None);
}

#[test]
fn hostile_sets_are_refused_with_bounded_work() {
    for bad in [
        "",
        " ",
        ",",
        "1,",
        "a",
        "1..",
        "..1",
        "2..1",
        "3..3",
        "1 2",
        "-1",
        "+1",
        "5, 4",
        "4, 4",
        "0..3, 2",
        "0..18446744073709551616",
        "1, 65536",
        "0, 2..18446744073709551615",
    ] {
        assert!(bad.parse::<LayerSet>().is_err(), "{bad:?}");
        assert!(
            serde_json::from_value::<LayerSet>(bad.into()).is_err(),
            "{bad:?}"
        );
    }
    let odd = |runs: u64| {
        (0..runs)
            .map(|i| (2 * i).to_string())
            .collect::<Vec<_>>()
            .join(",")
    };
    let most = u64::try_from(LAYER_RUNS_MAX).unwrap();
    assert_eq!(odd(most).parse::<LayerSet>().unwrap().count(), most);
    for runs in [most + 1, most + 2, 100_000] {
        assert!(odd(runs).parse::<LayerSet>().is_err(), "{runs}");
    }
    // An endless list ends at the limit.
    assert!(LayerSet::new((0..).step_by(2)).is_err());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_set_is_its_list(
        layers in proptest::collection::btree_set(0..60_u64, 1..40),
        start in 0..70_u64,
        count in 0..70_u64,
    ) {
        let set = LayerSet::new(layers.iter().copied()).unwrap();
        let list: Vec<u64> = layers.iter().copied().collect();
        prop_assert_eq!(set.iter().collect::<Vec<_>>(), list.clone());
        prop_assert_eq!(set.count(), list.len() as u64);
        prop_assert_eq!(set.to_string().parse::<LayerSet>().unwrap(), set.clone());
        let inside: BTreeSet<u64> = (start..start + count).collect();
        let positions: Vec<u64> = (0..).zip(&list).filter(|(_, layer)| inside.contains(layer)).map(|(i, _)| i).collect();
        let within = set.within(AxisRange::new(start, count));
        let found: Vec<u64> = within.map_or(vec![], |range| (range.start..range.end().unwrap()).collect());
        prop_assert_eq!(found, positions);
        for layer in 0..70 {
            let expected = list.iter().position(|one| *one == layer).map(|at| at as u64);
            prop_assert_eq!(set.position(layer), expected);
        }
    }
}
