//! Random identities: serialised, compared and mutated.

use std::num::NonZeroU64;

use super::*;

fn texts() -> impl Strategy<Value = String> {
    "[a-z.]{1,3}|\\PC{1,6}"
}

fn ropes() -> impl Strategy<Value = Rope> {
    let param = prop_oneof![
        any::<f64>()
            .prop_filter_map("finite", |f| Real::new(f).ok())
            .prop_map(RopeParam::Number),
        prop::collection::vec(-9i32..9, 0..4).prop_map(|list| {
            let reals = list
                .into_iter()
                .map(|i| Real::new(f64::from(i) / 3.0).unwrap());
            RopeParam::Numbers(reals.collect())
        }),
        texts().prop_map(RopeParam::Text),
    ];
    let params = prop::collection::btree_map(texts(), param, 0..3);
    let base = prop_oneof![Just(1e4), Just(5e5), any::<f64>()];
    (
        texts(),
        base.prop_filter("finite", |f| f.is_finite()),
        params,
    )
        .prop_map(|(kind, base, params)| {
            let rope = Rope::new(&kind, base).unwrap();
            let with =
                |rope: Rope, (name, param): (String, RopeParam)| rope.with_param(&name, param);
            params.into_iter().try_fold(rope, with).unwrap()
        })
}

fn logicals() -> impl Strategy<Value = Identity> {
    let sizes = (1..3u64, 1..3u64, 1..3u64, 1..3u64);
    let codec = prop::sample::select(vec!["bf16", "f16"]);
    let extra = prop::collection::btree_map(texts(), texts(), 0..3);
    (texts(), sizes, codec, prop::option::of(ropes()), extra).prop_map(
        |(text, (layers, page, heads, size), codec, rope, extra)| {
            let unit = Unit::named(codec).unwrap();
            let shape = Shape::key_value(3, layers, page, heads, size, &unit).unwrap();
            let identity = Identity::new(&text, "r", &shape).unwrap().with_rope(rope);
            extra
                .into_iter()
                .try_fold(identity, |identity, (key, value)| {
                    identity.with_extra(&key, &value)
                })
                .unwrap()
        },
    )
}

fn layout_parts() -> impl Strategy<Value = LayoutIdentity> {
    let words = vec![
        "BLKNHC",
        "L|KBNHC",
        "LBNHN4KC",
        "L|BH(kCN,vNC)",
        "K|BLHNC2C",
    ];
    (prop::sample::select(words), 1..5u64, any::<bool>()).prop_map(|(word, blocks, whole)| {
        if whole {
            return whole_of(word, blocks);
        }
        block_of(word, blocks)
    })
}

fn identities() -> impl Strategy<Value = BlockIdentity> {
    (logicals(), layout_parts()).prop_map(|(logical, layout)| BlockIdentity { logical, layout })
}

fn groups() -> impl Strategy<Value = ModelGroup> {
    let tokens = (1..3u64).prop_map(|tokens| NonZeroU64::new(tokens).unwrap());
    let rule = prop_oneof![
        Just(GroupRule::Full),
        Just(GroupRule::Stop),
        tokens
            .clone()
            .prop_map(|tokens| GroupRule::Window { tokens }),
        tokens.prop_map(|tokens| GroupRule::Chunk { tokens }),
    ];
    let role = prop_oneof![4 => Just(GroupRole::Target), 1 => Just(GroupRole::Draft)];
    let name = prop::sample::select(vec!["full", "full", "window", "state"]);
    let extra = prop::collection::btree_map(texts(), texts(), 0..2);
    (name, rule, role, 0..3u64, prop::option::of(ropes()), extra).prop_map(
        |(name, rule, role, first, rope, extra)| {
            let shape = Shape::key_value(3, 2, 4, 1, 2, "bf16").unwrap();
            let layers = LayerSet::new([first, first + 1 + first % 2]).unwrap();
            let group = ModelGroup::new(name, rule, &shape).unwrap();
            let group = group.with_layers(layers).unwrap();
            let group = group.with_rope(rope).with_role(role);
            let mut extra = extra.into_iter();
            extra
                .try_fold(group, |group, (key, value)| group.with_extra(&key, &value))
                .unwrap()
        },
    )
}

/// Models with groups, and plain ones. Groups of one name, and models of drafters alone, are refused.
fn models() -> impl Strategy<Value = ModelIdentity> {
    let groups = prop::collection::vec(groups(), 1..4);
    let made = (texts(), groups).prop_filter_map("valid groups", |(text, groups)| {
        ModelIdentity::new(&text, "r", groups).ok()
    });
    prop_oneof![3 => made, 1 => logicals().prop_map(ModelIdentity::from)]
}

proptest! {
    #[test]
    fn models_survive_json(model in models()) {
        let json = serde_json::to_string(&model).unwrap();
        let read: ModelIdentity = serde_json::from_str(&json).unwrap();
        prop_assert_eq!(&read, &model);
        prop_assert_eq!(read.fingerprint(), model.fingerprint());
        prop_assert_eq!(read.chain(), model.chain());
    }

    /// Two models are equal, have no difference and share a fingerprint: all three or none. The chain is that of the
    /// targets, and so is equal where these and the names of the model are.
    #[test]
    fn equality_differences_and_fingerprints_of_models_agree(a in models(), b in models()) {
        let equal = a == b;
        prop_assert_eq!(a.first_difference(&b).is_none(), equal);
        prop_assert_eq!(a.fingerprint() == b.fingerprint(), equal);
        let own = |model: &ModelIdentity| {
            let groups: Vec<ModelGroup> = model.targets().cloned().collect();
            (model.model().to_owned(), model.extra().clone(), groups)
        };
        prop_assert_eq!(a.chain() == b.chain(), own(&a) == own(&b));
        for group in a.groups() {
            let name = group.name().as_str();
            let identity = a.group_identity(name).unwrap();
            prop_assert_eq!(identity.rope(), group.rope());
            let other = b.group_identity(name);
            let shared = other.is_some_and(|other| other.fingerprint() == identity.fingerprint());
            prop_assert_eq!(shared, own(&a) == own(&b) && b.group(name) == Some(group));
        }
    }

    #[test]
    fn mutated_json_of_models_never_panics(
        model in models(),
        edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
    ) {
        let mut bytes = serde_json::to_vec(&model).unwrap();
        for (at, byte) in edits {
            let at = at.index(bytes.len());
            bytes[at] = b"0123456789-{}[]\",:eBLKNHC."[usize::from(byte) % 26];
        }
        if let Ok(read) = serde_json::from_slice::<ModelIdentity>(&bytes) {
            let equal = read == model;
            prop_assert_eq!(read.fingerprint() == model.fingerprint(), equal);
            for group in read.groups() {
                prop_assert!(read.group_identity(group.name().as_str()).is_some());
            }
        }
    }

    #[test]
    fn identities_survive_json(identity in identities()) {
        let json = serde_json::to_string(&identity).unwrap();
        let read: BlockIdentity = serde_json::from_str(&json).unwrap();
        prop_assert_eq!(&read, &identity);
        prop_assert_eq!(read.fingerprint(), identity.fingerprint());
    }

    /// Two identities are equal, have no difference and share a fingerprint: all three or none.
    #[test]
    fn equality_differences_and_fingerprints_agree(a in identities(), b in identities()) {
        let equal = a == b;
        prop_assert_eq!(a.first_difference(&b).is_none(), equal);
        prop_assert_eq!(a.fingerprint() == b.fingerprint(), equal);
        prop_assert_eq!(a.logical.fingerprint() == b.logical.fingerprint(), a.logical == b.logical);
        prop_assert_eq!(a.layout.fingerprint() == b.layout.fingerprint(), a.layout == b.layout);
        prop_assert_eq!(a.first_difference(&a), None);
        if let Some(there) = a.first_difference(&b) {
            let back = b.first_difference(&a).unwrap();
            prop_assert_eq!((there.field, there.ours, there.theirs), (back.field, back.theirs, back.ours));
        }
    }

    #[test]
    fn mutated_json_never_panics(
        identity in identities(),
        edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
    ) {
        let mut bytes = serde_json::to_vec(&identity).unwrap();
        for (at, byte) in edits {
            let at = at.index(bytes.len());
            bytes[at] = b"0123456789-{}[]\",:eBLKNHC"[usize::from(byte) % 25];
        }
        if let Ok(read) = serde_json::from_slice::<BlockIdentity>(&bytes) {
            let equal = read == identity;
            prop_assert_eq!(read.fingerprint() == identity.fingerprint(), equal);
        }
    }
}
