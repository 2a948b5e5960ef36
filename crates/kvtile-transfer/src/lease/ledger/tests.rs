//! Leases of layers against a naive model: a set of blocks and layers that are read or written.

use std::collections::HashMap;

use kvtile_layout::{BlockPair, Shape, Unit, Word};
use kvtile_testkit::generate::{Choices, choices, config};

use super::{LeaseLedger, LeaseSide, LeaseTicket};
use crate::{
    LeaseError, LeaseMode, PhysicalLayout, TransferError,
    lease::{LayoutHandle, SideBlockIds, TransferPairs, layers::HeldLayers},
};

const BLOCKS: u64 = 4;
const LAYERS: u64 = 5;

// Each test has its own manager number, because the test counts the claims of that manager.

fn layout() -> PhysicalLayout {
    let shape = Shape::key_value(BLOCKS, LAYERS, 1, 1, 1, Unit::raw(2).unwrap()).unwrap();
    let builder = PhysicalLayout::builder().with_shape(shape);
    let builder = builder.layout("BLKNHC".parse::<Word>().unwrap());
    builder.allocate_system().build().unwrap()
}

/// The holders of each layer of each block. A lease counts once, however often it names the block.
#[derive(Default)]
struct LayerLeaseModel {
    held: HashMap<(u64, u64), Vec<LeaseMode>>,
}

fn places(blocks: &[u64], layers: &HeldLayers) -> Vec<(u64, u64)> {
    let mut places: Vec<(u64, u64)> = Vec::new();
    for block in blocks {
        places.extend(layers.range(LAYERS).map(|layer| (*block, layer)));
    }
    places.sort_unstable();
    places.dedup();
    places
}

impl LayerLeaseModel {
    /// The first of `blocks` that conflicts, and how it is held.
    fn conflict(
        &self,
        blocks: &[u64],
        layers: &HeldLayers,
        mode: LeaseMode,
    ) -> Option<(u64, &'static str)> {
        blocks.iter().find_map(|block| {
            let places = places(&[*block], layers);
            let holders: Vec<LeaseMode> = places
                .iter()
                .filter_map(|place| self.held.get(place))
                .flatten()
                .copied()
                .collect();
            if holders.contains(&LeaseMode::Write) {
                return Some((*block, "being written"));
            }
            let is_held = mode == LeaseMode::Write && !holders.is_empty();
            is_held.then_some((*block, "being read"))
        })
    }

    fn take(&mut self, blocks: &[u64], layers: &HeldLayers, mode: LeaseMode) {
        for place in places(blocks, layers) {
            self.held.entry(place).or_default().push(mode);
        }
    }

    fn give_back(&mut self, blocks: &[u64], layers: &HeldLayers, mode: LeaseMode) {
        for place in places(blocks, layers) {
            let holders = self.held.get_mut(&place).unwrap();
            let index = holders.iter().position(|holder| *holder == mode).unwrap();
            holders.swap_remove(index);
        }
    }

    fn holders(&self, block: u64) -> Vec<LeaseMode> {
        let places = places(&[block], &HeldLayers::All);
        let held = places.iter().filter_map(|place| self.held.get(place));
        held.flatten().copied().collect()
    }
}

enum KeptTickets {
    One(LeaseTicket, Vec<u64>),
    Both([LeaseTicket; 2], Vec<BlockPair>),
}

struct LedgerWorld {
    ledger: LeaseLedger,
    handle: LayoutHandle,
    model: LayerLeaseModel,
    kept: Vec<KeptTickets>,
    /// Leases granted on all layers, granted on some, refused, and refused because both sides
    /// overlap.
    counts: [u32; 4],
}

impl LedgerWorld {
    fn new(layout: PhysicalLayout) -> LedgerWorld {
        let mut ledger = LeaseLedger::new(u64::MAX);
        let handle = ledger.register(layout).unwrap();
        LedgerWorld {
            ledger,
            handle,
            model: LayerLeaseModel::default(),
            kept: Vec::new(),
            counts: [0; 4],
        }
    }

    fn step(&mut self, choices: &mut Choices) {
        match choices.below(8) {
            0..4 => self.lease(choices),
            4 => self.lease_both(choices),
            _ => self.release(choices),
        }
        self.ledger.check_integrity();
        let entry = self.ledger.entries.values().next().unwrap();
        assert_eq!(entry.leases, self.leases());
        for block in 0..BLOCKS {
            let holders = self.model.holders(block);
            let expected = match holders.contains(&LeaseMode::Write) {
                true => Some(LeaseMode::Write),
                false => holders.first().copied(),
            };
            assert_eq!(entry.blocks.held(block), expected, "block {block}");
        }
    }

    fn leases(&self) -> usize {
        let leases = self.kept.iter().map(|kept| match kept {
            KeptTickets::One(..) => 1,
            KeptTickets::Both(..) => 2,
        });
        leases.sum()
    }

    fn granted(&mut self, layers: &HeldLayers) {
        let kind = usize::from(*layers != HeldLayers::All);
        self.counts[kind] += 1;
    }

    fn lease(&mut self, choices: &mut Choices) {
        let (blocks, layers) = (some_blocks(choices), some_layers(choices));
        let mode = match choices.below(3) {
            0 => LeaseMode::Write,
            _ => LeaseMode::Read,
        };
        let side = LeaseSide {
            handle: self.handle,
            layers: &layers,
        };
        let leased = self
            .ledger
            .lease(side, SideBlockIds::Leased(blocks.iter()), mode);
        let conflict = self.model.conflict(&blocks, &layers, mode);
        match leased {
            Ok(ticket) => {
                assert_eq!(conflict, None, "{mode:?} of {blocks:?}, {layers:?}");
                self.granted(&layers);
                self.model.take(&blocks, &layers, mode);
                self.kept.push(KeptTickets::One(ticket, blocks));
            }
            Err(TransferError::Lease(LeaseError::BlockLeased { block, held, .. })) => {
                assert_eq!(conflict, Some((block, held)), "{mode:?}, {layers:?}");
                self.counts[2] += 1;
            }
            Err(error) => panic!("{error}"),
        }
    }

    /// A transfer inside the layout: leases both sides.
    fn lease_both(&mut self, choices: &mut Choices) {
        let (read, written) = (some_blocks(choices), some_blocks(choices));
        let layers = [some_layers(choices), some_layers(choices)];
        let pairs = read.iter().zip(&written);
        let pairs: Vec<BlockPair> = pairs
            .map(|(from, to)| BlockPair::whole(*from, *to, 1))
            .collect();
        let read: Vec<u64> = pairs.iter().map(|pair| pair.source_block).collect();
        let written: Vec<u64> = pairs.iter().map(|pair| pair.destination_block).collect();
        let sides = layers.each_ref().map(|layers| LeaseSide {
            handle: self.handle,
            layers,
        });
        let leased = self
            .ledger
            .lease_both(sides, &TransferPairs::Selected(pairs.as_slice().into()));
        let [source, destination] = &layers;
        let before = self.model.conflict(&read, source, LeaseMode::Read);
        let after = self.model.conflict(&written, destination, LeaseMode::Write);
        let meets = source.meets(destination) && written.iter().any(|b| read.contains(b));
        match leased {
            Ok(tickets) => {
                assert!(before.is_none() && after.is_none() && !meets);
                self.granted(source);
                self.model.take(&read, source, LeaseMode::Read);
                self.model.take(&written, destination, LeaseMode::Write);
                self.kept.push(KeptTickets::Both(tickets, pairs));
            }
            Err(TransferError::Lease(LeaseError::SameBlock { block })) => {
                assert!(before.is_none() && meets && read.contains(&block));
                assert!(written.contains(&block));
                self.counts[3] += 1;
            }
            Err(TransferError::Lease(LeaseError::BlockLeased { block, held, .. })) => {
                assert_eq!(before.or(after), Some((block, held)));
                assert!(before.is_some() || !meets);
                self.counts[2] += 1;
            }
            Err(error) => panic!("{error}"),
        }
    }

    fn release(&mut self, choices: &mut Choices) {
        if self.kept.is_empty() {
            return;
        }
        let kept = self.kept.swap_remove(choices.index(self.kept.len()));
        self.give_back(kept);
    }

    fn give_back(&mut self, kept: KeptTickets) {
        match kept {
            KeptTickets::One(ticket, blocks) => {
                self.ledger
                    .release(&ticket, SideBlockIds::Leased(blocks.iter()));
                self.model.give_back(&blocks, &ticket.layers, ticket.mode);
            }
            KeptTickets::Both(tickets, pairs) => {
                let sources: Vec<u64> = pairs.iter().map(|pair| pair.source_block).collect();
                let written: Vec<u64> = pairs.iter().map(|pair| pair.destination_block).collect();
                self.ledger
                    .release_both(&tickets, &TransferPairs::Selected(pairs.into()));
                for (ticket, blocks) in tickets.iter().zip([sources, written]) {
                    self.model.give_back(&blocks, &ticket.layers, ticket.mode);
                }
            }
        }
    }
}

/// One to three blocks; a block may occur several times.
fn some_blocks(choices: &mut Choices) -> Vec<u64> {
    let count = 1 + choices.below(3);
    (0..count).map(|_| choices.below(BLOCKS)).collect()
}

fn some_layers(choices: &mut Choices) -> HeldLayers {
    let start = choices.below(LAYERS);
    let end = start + 1 + choices.below(LAYERS - start);
    match choices.below(3) {
        0 => HeldLayers::All,
        _ => HeldLayers::of(start..end, LAYERS).unwrap(),
    }
}

#[test]
fn leases_of_layers_agree_with_a_model_of_single_layers() {
    let layout = layout();
    let mut runner = proptest::test_runner::TestRunner::new(config(300));
    let counts = std::cell::Cell::new([0; 4]);
    let cases = (choices(), choices(), choices());
    runner
        .run(&cases, |(a, b, c)| {
            let mut world = LedgerWorld::new(layout.clone());
            for mut choices in [a, b, c] {
                for _ in 0..20 {
                    world.step(&mut choices);
                }
            }
            while let Some(kept) = world.kept.pop() {
                world.give_back(kept);
                world.ledger.check_integrity();
            }
            let entry = world.ledger.entries.values().next().unwrap();
            assert_eq!((entry.leases, entry.blocks.held_blocks().count()), (0, 0));
            let mut sums = counts.get();
            for (sum, count) in sums.iter_mut().zip(world.counts) {
                *sum += count;
            }
            counts.set(sums);
            Ok(())
        })
        .unwrap();
    let counts = counts.get();
    assert!(counts.iter().all(|count| *count > 100), "{counts:?}");
}

/// When a block's last lease of layers ends, its readers of all layers are still counted. It is
/// free after them.
#[test]
fn whole_readers_outlast_leases_of_layers() {
    let mut ledger = LeaseLedger::new(u64::MAX - 1);
    let handle = ledger.register(layout()).unwrap();
    let part = HeldLayers::of(1..3, LAYERS).unwrap();
    let lease = |ledger: &mut LeaseLedger, layers: &HeldLayers, mode| {
        ledger.lease(
            LeaseSide { handle, layers },
            SideBlockIds::Leased([2].iter()),
            mode,
        )
    };
    let (all, read) = (HeldLayers::All, LeaseMode::Read);
    let readers = [&all, &part, &all].map(|layers| lease(&mut ledger, layers, read).unwrap());
    for ticket in &readers {
        assert!(lease(&mut ledger, &part, LeaseMode::Write).is_err());
        assert!(lease(&mut ledger, &all, LeaseMode::Write).is_err());
        ledger.check_integrity();
        ledger.release(ticket, SideBlockIds::Leased([2].iter()));
    }
    let written = lease(&mut ledger, &all, LeaseMode::Write).unwrap();
    ledger.release(&written, SideBlockIds::Leased([2].iter()));
    ledger.check_integrity();
}
