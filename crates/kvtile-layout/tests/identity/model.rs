//! Models with groups of layers.

use std::num::NonZeroU64;

use super::*;

fn window(tokens: u64) -> GroupRule {
    GroupRule::Window {
        tokens: NonZeroU64::new(tokens).unwrap(),
    }
}

fn key_value(layers: u64, page_size: u64, heads: u64, size: u64) -> Shape {
    Shape::key_value(BLOCKS, layers, page_size, heads, size, "bf16").unwrap()
}

/// The state of a layer: one entry a page.
fn state(layers: u64, page_size: u64) -> Shape {
    let plane = |name: &str, unit: &str| Plane::new(name, Unit::named(unit).unwrap()).unwrap();
    let conv = plane("conv", "bf16").per_page().extent(Axis::C, 64);
    let recurrent = plane("recurrent", "f32")
        .per_page()
        .extent(Axis::H, 4)
        .extent(Axis::C, 256);
    Shape::new(BLOCKS, layers, page_size, vec![recurrent, conv]).unwrap()
}

/// Layers 3 and 7 with full attention, 0, 2, 4 and 6 with a window, 1 and 5 with states.
fn groups() -> Vec<ModelGroup> {
    let layers = |layers: &[u64]| LayerSet::new(layers.iter().copied()).unwrap();
    let full = ModelGroup::new("full", GroupRule::Full, &key_value(2, 16, 2, 512)).unwrap();
    let near = ModelGroup::new("window", window(100), &key_value(4, 24, 8, 128)).unwrap();
    let states = ModelGroup::new("state", GroupRule::Stop, &state(2, 48)).unwrap();
    vec![
        near.with_layers(layers(&[0, 2, 4, 6]))
            .unwrap()
            .with_rope(Rope::new("default", 10_000.0).unwrap()),
        full.with_layers(layers(&[3, 7]))
            .unwrap()
            .with_rope(rope(500_000.0)),
        states
            .with_layers(layers(&[1, 5]))
            .unwrap()
            .with_extra("conv", "4 columns")
            .unwrap(),
    ]
}

fn drafter() -> ModelGroup {
    ModelGroup::new("eagle", GroupRule::Full, &key_value(1, 8, 2, 64))
        .unwrap()
        .with_role(GroupRole::Draft)
        .with_extra("revision", "77aa")
        .unwrap()
}

fn model_of(groups: Vec<ModelGroup>) -> ModelIdentity {
    ModelIdentity::new("hybrid", "0e9e39f", groups)
        .unwrap()
        .with_extra("cache_dtype", "auto")
        .unwrap()
}

fn model() -> ModelIdentity {
    model_of(groups())
}

/// Folders and keys of a model with one full group stay valid: the pinned values of `form` hold with groups as well.
#[test]
fn a_plain_model_has_the_fingerprints_and_the_file_form_of_its_identity() {
    let plain = logical();
    let model = ModelIdentity::from(plain.clone());
    assert_eq!(
        model.fingerprint().to_string(),
        "6661a131e8bdf20612a173053cf28713"
    );
    assert_eq!(model.chain(), plain.model_fingerprint());
    assert_eq!(model.group_identity("full"), Some(plain.clone()));
    assert_eq!(model.plain(), Some(plain.clone()));
    assert_eq!(
        serde_json::to_string(&model).unwrap(),
        serde_json::to_string(&plain).unwrap()
    );
    let read: ModelIdentity =
        serde_json::from_value(serde_json::to_value(&plain).unwrap()).unwrap();
    assert_eq!(read, model);
    // Made from a group it is the same.
    let group = ModelGroup::new("full", GroupRule::Full, &shape_of("bf16")).unwrap();
    let made = ModelIdentity::new("llama", "0e9e39f", vec![group.with_rope(rope(500_000.0))]);
    assert_eq!(made.unwrap().with_extra("scales", "none").unwrap(), model);
    // The first difference is that of the identities.
    let other = ModelIdentity::from(plain.clone().with_rope(rope(10_000.0)));
    assert_eq!(model.first_difference(&other).unwrap().field, "rope.base");
}

/// Changing these values makes every stored block of a model with groups unreachable.
#[test]
fn fingerprints_of_models_with_groups_are_pinned() {
    let model = model();
    let of = |name| model.group_identity(name).unwrap().fingerprint();
    let found = [
        model.chain(),
        model.fingerprint(),
        of("full"),
        of("state"),
        of("window"),
    ];
    let expected = [
        "ab95f3892740220e5ab69e429b00a218",
        "ab95f3892740220e5ab69e429b00a218",
        "abcb5fb7455c964d20dbed9d49e4e758",
        "796c007c08fd72c3c817c85f856532e0",
        "885f2b6358296e41ff15fe25f9c53a38",
    ];
    assert_eq!(found.map(|fingerprint| fingerprint.to_string()), expected);
}

/// The canonical form, written out by hand from its description.
#[test]
fn the_fingerprint_of_a_model_is_the_keyed_hash_of_the_described_form() {
    let plane = Plane::new("c", Unit::named("bf16").unwrap()).unwrap();
    let plane = plane.extent(Axis::C, 576);
    let shape = Shape::new(9, 2, 64, vec![plane]).unwrap();
    let group = ModelGroup::new("latent", window(100), &shape).unwrap();
    let group = group.with_layers(LayerSet::new([1, 4]).unwrap()).unwrap();
    let model = ModelIdentity::new("m", "r", vec![group]).unwrap();

    let number = |value: u64| value.to_le_bytes().to_vec();
    let text = |text: &str| [number(text.len() as u64), text.as_bytes().to_vec()].concat();
    let numeric = |path, value| [text(path), vec![0], number(value)].concat();
    let textual = |path, value| [text(path), vec![1], text(value)].concat();
    let fields = [
        textual("model", "m"),
        textual("revision", "r"),
        textual("groups", "latent"),
        textual("groups.latent.rule", "window of 100 tokens"),
        textual("groups.latent.role", "target"),
        textual("groups.latent.layers", "1, 4"),
        numeric("groups.latent.page_size", 64),
        textual("groups.latent.planes", "c"),
        textual("groups.latent.planes.c.codec", "bf16"),
        textual("groups.latent.planes.c.unit", "values"),
        numeric("groups.latent.planes.c.unit_bytes", 2),
        numeric("groups.latent.planes.c.unit_values", 1),
        textual("groups.latent.planes.c.per", "token"),
        numeric("groups.latent.planes.c.C", 576),
        numeric("groups.latent.shard.layers.start", 0),
        numeric("groups.latent.shard.layers.count", 2),
        numeric("groups.latent.shard.total_layers", 2),
        numeric("groups.latent.shard.heads.start", 0),
        numeric("groups.latent.shard.heads.count", 1),
        numeric("groups.latent.shard.total_heads", 1),
    ];
    let form = [number(fields.len() as u64), fields.concat()].concat();
    let hash = blake3::derive_key("kvtile identity logical 2", &form);
    let expected = Fingerprint::from_bytes(hash[..16].try_into().unwrap());
    assert_eq!(model.fingerprint(), expected);
}

#[test]
fn each_field_of_a_group_changes_the_chain_and_is_named() {
    let ours = model();
    let json = serde_json::to_value(&ours).unwrap();
    // Groups by name: full, state, window.
    for (path, value, field) in [
        ("/model", json!("hybird"), "model"),
        ("/extra/cache_dtype", json!("fp8_e5m2"), "extra.cache_dtype"),
        ("/groups/0/name", json!("whole"), "groups"),
        (
            "/groups/0/rule",
            json!({"window": {"tokens": 9}}),
            "groups.full.rule",
        ),
        (
            "/groups/2/rule/window/tokens",
            json!(101),
            "groups.window.rule",
        ),
        (
            "/groups/2/rule",
            json!({"chunk": {"tokens": 100}}),
            "groups.window.rule",
        ),
        ("/groups/0/layers", json!("3, 6"), "groups.full.layers"),
        ("/groups/2/page_size", json!(32), "groups.window.page_size"),
        (
            "/groups/2/planes/0/unit/codec",
            json!("f16"),
            "groups.window.planes.k.codec",
        ),
        (
            "/groups/1/planes/0/per_token",
            json!(true),
            "groups.state.planes.conv.per",
        ),
        (
            "/groups/2/rope/base",
            json!("10001"),
            "groups.window.rope.base",
        ),
        ("/groups/0/rope", Value::Null, "groups.full.rope.kind"),
        (
            "/groups/1/extra/conv",
            json!("3 columns"),
            "groups.state.extra.conv",
        ),
    ] {
        let mut changed = json.clone();
        *changed.pointer_mut(path).unwrap() = value;
        let theirs: ModelIdentity = serde_json::from_value(changed).unwrap();
        assert_eq!(
            ours.first_difference(&theirs).unwrap().field,
            field,
            "{path}"
        );
        assert_ne!(ours.chain(), theirs.chain(), "{path}");
        assert_ne!(ours.fingerprint(), theirs.fingerprint(), "{path}");
        for name in ["full", "state", "window"] {
            let (ours, theirs) = (ours.group_identity(name), theirs.group_identity(name));
            assert_ne!(
                ours.map(|i| i.fingerprint()),
                theirs.map(|i| i.fingerprint()),
                "{path}"
            );
        }
    }
    let theirs = model_of(groups().into_iter().map(|g| g.with_rope(None)).collect());
    let text = ours.first_difference(&theirs).unwrap().to_string();
    assert_eq!(
        text,
        "groups.full.rope.kind differs: llama3 here, (absent) there"
    );
}

#[test]
fn groups_are_a_set_with_names() {
    let mut reversed = groups();
    reversed.reverse();
    assert_eq!(model_of(reversed), model());
    let model = model();
    let names: Vec<&str> = model.groups().iter().map(|g| g.name().as_str()).collect();
    assert_eq!(names, ["full", "state", "window"]);
    let twice = [groups(), groups()].concat();
    assert!(matches!(
        refusal(ModelIdentity::new("m", "r", twice)),
        IdentityError::GroupTwice { .. }
    ));
    for bad in ["", "0", "Full", "a/b", "..", "a.b", &"a".repeat(65)] {
        let error = refusal(ModelGroup::new(
            bad,
            GroupRule::Full,
            &key_value(1, 16, 1, 8),
        ));
        assert!(matches!(error, IdentityError::GroupName { .. }), "{bad}");
    }
}

/// A drafter has an identity of its own that depends on the model's, and the model's does not depend on it.
#[test]
fn a_drafter_is_no_part_of_the_chain() {
    let with = model_of([groups(), vec![drafter()]].concat());
    assert_eq!(with.chain(), model().chain());
    assert_ne!(with.fingerprint(), model().fingerprint());
    assert_eq!(with.group_identity("full"), model().group_identity("full"));
    assert_eq!(with.targets().count(), 3);
    let own = |model: &ModelIdentity| model.group_identity("eagle").unwrap().fingerprint();
    let other = drafter().with_extra("revision", "88bb").unwrap();
    let other = model_of([groups(), vec![other]].concat());
    assert_ne!(own(&with), own(&other));
    // A plain model keeps its keys and folders when it gets a drafter.
    let full = ModelGroup::new("full", GroupRule::Full, &shape_of("bf16")).unwrap();
    let plain = ModelIdentity::new("llama", "0e9e39f", vec![full.clone()]).unwrap();
    let drafted = ModelIdentity::new("llama", "0e9e39f", vec![drafter(), full]).unwrap();
    assert_eq!(drafted.chain(), plain.chain());
    assert_eq!(drafted.group_identity("full"), plain.group_identity("full"));
    assert_eq!((plain.plain().is_some(), drafted.plain()), (true, None));
}

/// vllm#52735: all groups counted as the drafter's, so nothing decided and nothing was a hit.
#[test]
fn a_model_whose_groups_are_all_a_drafters_is_refused() {
    for groups in [vec![], vec![drafter()]] {
        let count = groups.len();
        assert_eq!(
            refusal(ModelIdentity::new("m", "r", groups)),
            IdentityError::NoTargetGroup { count }
        );
    }
}

/// vllm#56855: numbers of blocks meant other blocks in other groups. Groups that are alike but for their name have
/// identities of their own, so their blocks are never in one pool or folder.
#[test]
fn groups_of_one_shape_have_identities_of_their_own() {
    let shape = key_value(2, 16, 2, 64);
    let group = |name, layers: [u64; 2]| {
        let group = ModelGroup::new(name, window(64), &shape).unwrap();
        group.with_layers(LayerSet::new(layers).unwrap()).unwrap()
    };
    let model = model_of(vec![
        group("a", [0, 2]),
        group("b", [1, 3]),
        group("c", [1, 3]),
    ]);
    let of = |name| model.group_identity(name).unwrap();
    let fingerprints: std::collections::BTreeSet<_> =
        ["a", "b", "c"].map(|name| of(name).fingerprint()).into();
    assert_eq!(fingerprints.len(), 3);
    assert_eq!(model.group_identity("d"), None);
}

/// vllm-ascend#13339: the unit of hits was a block times the number of groups, so short prompts never hit.
#[test]
fn the_unit_of_keys_divides_each_page_and_does_not_grow_with_groups() {
    assert_eq!(model().unit(), 8);
    let same = |name| ModelGroup::new(name, window(64), &key_value(2, 16, 2, 64)).unwrap();
    let names = ["a", "b", "c", "d", "e"];
    assert_eq!(model_of(names.map(same).to_vec()).unit(), 16);
    assert_eq!(ModelIdentity::from(logical()).unit(), 16);
}

/// The keys of all ranks are equal; their folders are not.
#[test]
fn parts_of_one_model_have_one_chain() {
    let of = |rank| {
        let shard = Shard::tensor_parallel(4, 8, rank, 2).unwrap();
        let shape = key_value(4, 24, 4, 128).with_shard(shard).unwrap();
        let near = ModelGroup::new("window", window(100), &shape).unwrap();
        model_of(vec![near])
    };
    assert_eq!(of(0).chain(), of(1).chain());
    let whole = ModelGroup::new("window", window(100), &key_value(4, 24, 8, 128)).unwrap();
    assert_eq!(model_of(vec![whole]).chain(), of(0).chain());
    let differences = of(0).differences(&of(1));
    let fields: Vec<_> = differences.iter().map(|d| d.field.as_str()).collect();
    assert_eq!(fields, ["groups.window.shard.heads.start"]);
    let folder = |rank| of(rank).group_identity("window").unwrap();
    assert_ne!(folder(0).fingerprint(), folder(1).fingerprint());
    assert_eq!(folder(0).model_fingerprint(), folder(1).model_fingerprint());
}

#[test]
fn the_identity_of_a_group_says_what_differs() {
    let other = groups()
        .into_iter()
        .map(|group| match group.name().as_str() {
            "full" => group.with_rope(rope(10_000.0)),
            _ => group,
        });
    let (ours, theirs) = (model(), model_of(other.collect()));
    let of = |model: &ModelIdentity, name| model.group_identity(name).unwrap();
    let own = of(&ours, "full").differences(&of(&theirs, "full"));
    let own: Vec<_> = own.iter().map(|d| d.field.as_str()).collect();
    assert_eq!(own, ["extra.group.target_groups", "rope.base"]);
    let state = of(&ours, "state");
    let entries: Vec<_> = state.extra().keys().map(String::as_str).collect();
    assert_eq!(
        entries,
        [
            "cache_dtype",
            "group.extra.conv",
            "group.layers",
            "group.name",
            "group.role",
            "group.rule",
            "group.target_groups"
        ]
    );
    assert_eq!(
        state.extra()["group.target_groups"],
        ours.chain().to_string()
    );
}

#[test]
fn entries_of_groups_are_reserved_and_bounded() {
    let error = refusal(model().with_extra("group.name", "x"));
    assert!(matches!(error, IdentityError::ReservedExtra { .. }));
    let many = (0..300).try_fold(model(), |model, i| model.with_extra(&format!("e{i}"), "x"));
    assert!(matches!(
        refusal(many),
        IdentityError::TooManyEntries { .. }
    ));
    let key = "k".repeat(4090);
    let group = ModelGroup::new("state", GroupRule::Stop, &state(2, 48)).unwrap();
    let group = group.with_extra(&key, "x").unwrap();
    let error = refusal(ModelIdentity::new("m", "r", vec![group]));
    assert!(matches!(error, IdentityError::TextLength { .. }));
    let error = refusal(drafter().with_layers(LayerSet::new([4, 5]).unwrap()));
    assert_eq!(
        error.to_string(),
        "group eagle has 2 layers (4..6), and its shape is a part of 1; total_layers of the shape is the number of the \
         group's layers in all parts"
    );
}

#[test]
fn files_of_models_are_checked() {
    let json = serde_json::to_value(model()).unwrap();
    let read: ModelIdentity = serde_json::from_value(json.clone()).unwrap();
    assert_eq!(read, model());
    for (path, value) in [
        ("/groups", json!([])),
        ("/groups/0/name", json!("window")),
        ("/groups/0/layers", json!("7, 3")),
        ("/groups/0/layers", json!("0..18446744073709551615")),
        ("/groups/2/rule/window/tokens", json!(0)),
        ("/groups/2/rule", json!("last")),
        ("/groups/0/page_size", json!(0)),
        ("/extra", json!({"group.rule": "full"})),
        ("/revision", json!("")),
    ] {
        let mut changed = json.clone();
        *changed.pointer_mut(path).unwrap() = value;
        assert!(
            serde_json::from_value::<ModelIdentity>(changed).is_err(),
            "{path}"
        );
    }
    for (name, value) in [
        ("page_size", json!(16)),
        ("rope", json!({"kind": "a", "base": "1"})),
        ("more", json!(1)),
    ] {
        let mut changed = json.clone();
        changed[name] = value;
        assert!(
            serde_json::from_value::<ModelIdentity>(changed).is_err(),
            "{name}"
        );
    }
}
