//! Reads return the written blocks.

use kvtile_tiers::{
    BatchError, TierError,
    tier::{BlockRead, GroupId, NotWritten, TierMiss, WriteSuccess},
};

use super::{GROUP, TENANT, TierCheck, TierRig, bytes_of, chain, chain_of, ended, keys};

pub(super) const CHECKS: &[TierCheck] = &[
    (
        "reads return what was written, in the order of the batch",
        comes_back,
    ),
    ("an empty batch has no outcomes", empty_batches),
    (
        "a block that is in a batch twice is written once and read twice",
        twice_in_a_batch,
    ),
    ("a block is written only after its parent", parents),
    (
        "blocks of another group are other blocks, or refused",
        other_groups,
    ),
    (
        "a hold reports parents and tenants",
        holds_know_their_blocks,
    ),
    ("id and abilities do not change", it_stays_the_same),
    (
        "a tier that reads pieces reads and verifies each alone",
        pieces,
    ),
];

fn comes_back(rig: &mut TierRig) {
    let links = chain(1, 8);
    let absent = chain(2, 8);
    rig.read_none(&links);
    rig.write_new(&links);
    for outcome in rig.write(&links) {
        assert!(matches!(outcome, Ok(WriteSuccess::Present)), "{outcome:?}");
    }
    assert_eq!(rig.tier().stats().present, 8);
    // Not in the order of the chain, with absent blocks in between.
    let mut mixed = Vec::new();
    for at in [5, 0, 7, 2, 1, 6, 4, 3] {
        mixed.push(absent[at]);
        mixed.push(links[at]);
    }
    for (at, outcome) in rig.read(&mixed).into_iter().enumerate() {
        assert_eq!(outcome.is_ok(), at % 2 == 1, "{at}: {outcome:?}");
    }
    assert_eq!(rig.leading(&links), 8);
    assert_eq!(rig.leading(&absent), 0);
    assert_eq!(rig.leading(&[&links[..3], &absent[..1]].concat()), 3);
    assert!(rig.find(&absent).is_none() && rig.hold(&absent).is_none());
    // Another chain branches off the middle of the first.
    let mut branch = chain(3, 8);
    branch[4].parent = Some(links[3].name.key);
    rig.write_new(&branch[4..]);
    assert_eq!(rig.leading(&[&links[..4], &branch[4..]].concat()), 8);
    rig.read_all(&branch[4..]);
}

/// Each piece, each run of pieces, and pieces of several blocks in one batch; other bytes stay
/// unchanged.
fn pieces(rig: &mut TierRig) {
    let abilities = rig.tier().abilities();
    if !abilities.reads_pieces {
        return;
    }
    assert!(
        abilities.verifies,
        "a tier that reads pieces must verify them"
    );
    let links = chain(1, 4);
    rig.write_new(&links);
    let absent = chain(2, 1);
    let pieces = rig.host.identity().pieces.clone();
    assert!(pieces.count() > 1, "{pieces:?}");
    for start in 0..pieces.count() {
        for end in start + 1..=pieces.count() {
            let (links, missing) = (&links, &absent[0]);
            let wanted: Vec<_> = links.iter().chain([missing]).collect();
            let part = |link: &&super::ChainLink| {
                let (reserved, into) = rig.host.empty_part(start..end);
                let name = link.name;
                (reserved, BlockRead { name, into })
            };
            let (reserved, batch): (Vec<_>, Vec<_>) = wanted.iter().map(part).unzip();
            let report = ended(&rig.tier().read(batch));
            assert_eq!(report.blocks.len(), wanted.len(), "outcomes of pieces");
            for ((outcome, link), reserved) in report.blocks.iter().zip(&wanted).zip(&reserved) {
                if link.name == missing.name {
                    assert!(matches!(outcome, Err(TierMiss::Absent)), "{outcome:?}");
                    continue;
                }
                assert!(outcome.is_ok(), "pieces {start}..{end}: {outcome:?}");
                let bytes = pieces.bytes(start..end);
                let mut expected = bytes_of(&link.name, rig.host.block_bytes());
                for (at, byte) in (0..).zip(&mut expected) {
                    *byte *= u8::from(bytes.contains(&at));
                }
                let found = rig.host.bytes(reserved);
                assert_eq!(found, expected, "pieces {start}..{end} of {link:?}");
            }
        }
    }
}

fn empty_batches(rig: &mut TierRig) {
    assert!(rig.write(&[]).is_empty());
    assert!(rig.read(&[]).is_empty());
    assert_eq!(rig.leading(&[]), 0);
    assert_eq!(rig.tier().forget(GROUP, &[]), 0);
    assert!(rig.tier().durable(GROUP, &[]).is_empty());
    rig.write_new(&chain(1, 2));
    assert_eq!(rig.tier().evict(0, kvtile_blocks::Tick(0)), 0);
    assert_eq!(rig.tier().stats().present, 2);
}

fn twice_in_a_batch(rig: &mut TierRig) {
    let links = chain(1, 3);
    let batch = [links[0], links[0], links[1], links[0], links[1], links[2]];
    let outcomes = rig.write(&batch);
    let is_new =
        |outcome: &Result<WriteSuccess, NotWritten>| matches!(outcome, Ok(WriteSuccess::New));
    assert!(outcomes.iter().all(Result::is_ok), "{outcomes:?}");
    let new: Vec<bool> = outcomes.iter().map(is_new).collect();
    assert_eq!(new, [true, false, true, false, false, true]);
    assert_eq!(rig.tier().stats().present, 3);
    rig.read_all(&batch);
}

fn parents(rig: &mut TierRig) {
    let links = chain(1, 6);
    let is_orphan =
        |outcome: &Result<WriteSuccess, NotWritten>| matches!(outcome, Err(NotWritten::NoParent));
    let outcomes = rig.write(&links[1..]);
    assert!(outcomes.iter().all(is_orphan), "{outcomes:?}");
    assert_eq!(rig.tier().stats().present, 0);
    rig.read_none(&links);
    // The parent follows the block in the batch.
    let outcomes = rig.write(&[links[1], links[0], links[2]]);
    assert!(is_orphan(&outcomes[0]) && outcomes[1].is_ok() && is_orphan(&outcomes[2]));
    assert_eq!(rig.leading(&links), 1);
    // The block between two of the batch is missing.
    let outcomes = rig.write(&[links[1], links[3], links[4]]);
    assert!(outcomes[0].is_ok() && outcomes[1..].iter().all(is_orphan));
    rig.write_new(&links[2..]);
    rig.read_all(&links);
}

fn other_groups(rig: &mut TierRig) {
    let mine = chain(1, 3);
    let other = GroupId(9);
    let theirs = chain_of(other, 1, 3);
    assert_eq!(keys(&mine), keys(&theirs));
    rig.write_new(&mine);
    rig.read_none(&theirs);
    assert!(rig.tier().hold(other, &keys(&theirs)).is_none());
    assert!(!rig.tier().has(other, &theirs[0].name.key));
    assert_eq!(rig.tier().durable(other, &keys(&theirs)), [false; 3]);
    let written = rig.write(&theirs);
    let refused = |outcome: &Result<WriteSuccess, NotWritten>| {
        let Err(NotWritten::Failed(TierError::Batch(error))) = outcome else {
            return false;
        };
        matches!(error, BatchError::NoSuchGroup { group: 9, .. })
    };
    // A tier has the groups of its context, or takes any group.
    if written.iter().all(Result::is_ok) {
        rig.read_all(&theirs);
        assert_eq!(rig.tier().stats().present, 6);
        rig.check();
        assert_eq!(rig.tier().forget(other, &keys(&theirs)[2..]), 1);
        rig.read_none(&theirs[2..]);
    } else {
        assert!(written.iter().all(refused), "{written:?}");
        rig.read_none(&theirs);
        assert_eq!(rig.tier().forget(other, &keys(&theirs)), 0);
    }
    rig.read_all(&mine);
    assert_eq!(rig.leading(&mine), 3);
    rig.check();
}

fn holds_know_their_blocks(rig: &mut TierRig) {
    let links = chain(1, 6);
    rig.write_new(&links);
    for mut hold in [rig.find(&links), rig.hold(&links)].into_iter().flatten() {
        assert_eq!(hold.blocks(), 6);
        let rest = hold.split_off(2);
        assert_eq!((hold.blocks(), rest.blocks()), (2, 4));
        for (at, link) in links.iter().enumerate() {
            let (hold, at) = match at.checked_sub(2) {
                None => (&hold, at),
                Some(behind) => (&rest, behind),
            };
            assert_eq!(hold.parent(at), link.parent);
            assert_eq!(hold.tenant(at), TENANT);
        }
    }
    // A hold from the middle of a chain, without the blocks before.
    let hold = rig.hold(&links[4..]);
    assert_eq!(hold.map(|hold| hold.blocks()), Some(2));
}

fn it_stays_the_same(rig: &mut TierRig) {
    let (id, abilities) = (rig.tier().id(), rig.tier().abilities());
    rig.write_new(&chain(1, 4));
    rig.tier().maintain();
    rig.reopen();
    assert_eq!((rig.tier().id(), rig.tier().abilities()), (id, abilities));
}
