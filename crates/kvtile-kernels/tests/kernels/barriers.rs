//! Barriers of the kernels, each left out of the text in turn: the interpreter finds every one of them.

use kvtile_kernels::MOVE_PTX;
use kvtile_layout::{CopyPlan, Selection, Shape, StridedLayout, Unit};
use kvtile_ptx::{PtxFault, PtxFaultKind, PtxLaunchError, PtxModule};
use kvtile_testkit::ReferenceLayout;

use crate::run::{DevicePlacement, run_kernels};

/// The fault of a transpose of elements of `element` bytes with these kernels: more than 32 tiles for a block, so that it
/// decodes places twice.
fn fault(text: &str, element: u64) -> Option<PtxFault> {
    let shape = Shape::key_value(6, 2, 16, 4, 32, Unit::raw(element).unwrap()).unwrap();
    let layout = |word: &str| StridedLayout::resolve(&word.parse().unwrap(), &shape, 1).unwrap();
    let (source, destination) = (layout("BLKNHC"), layout("L|BH(kCN,vNC)"));
    let selection = Selection::blocks(&[0, 1, 2, 3, 4, 5], &[5, 3, 1, 0, 2, 4], 16).unwrap();
    let plan = CopyPlan::new(&source, &destination, &selection).unwrap();
    let reference = |layout| ReferenceLayout::from_strided(layout).unwrap();
    let from = reference(&source).filled(1).unwrap();
    let to = reference(&destination).poisoned().unwrap();
    let kernels = PtxModule::parse(text).unwrap();
    let placement = DevicePlacement {
        blocks: 1,
        ..DevicePlacement::ALIGNED
    };
    match run_kernels(&kernels, &plan, (&from, &to), placement) {
        Ok(_) => None,
        Err(PtxLaunchError::Fault(fault)) => Some(fault),
        Err(error) => panic!("{error}"),
    }
}

#[test]
fn every_barrier_that_is_left_out_is_found() {
    let lines: Vec<&str> = MOVE_PTX.lines().collect();
    let barriers = (0..lines.len()).filter(|&at| lines[at].contains("bar.sync"));
    let barriers: Vec<usize> = barriers.collect();
    assert_eq!(barriers.len(), 9, "three for each tiles kernel");
    let mut kernel = "";
    for (at, line) in lines.iter().enumerate() {
        if let Some((_, name)) = line.split_once(".entry ") {
            kernel = name.trim_end_matches('(');
        }
        if !barriers.contains(&at) {
            continue;
        }
        let element = kernel.trim_start_matches("tiles_").parse().unwrap();
        assert_eq!(fault(MOVE_PTX, element), None);
        let mut without = lines.clone();
        without.remove(at);
        let found = fault(&without.join("\n"), element);
        let found = found.unwrap_or_else(|| panic!("the barrier of line {} is not missed", at + 1));
        assert_eq!(found.kernel, kernel);
        let kinds = matches!(
            found.kind,
            PtxFaultKind::SharedRace { .. } | PtxFaultKind::UnwrittenShared { .. }
        );
        assert!(kinds, "{found}");
    }
}
