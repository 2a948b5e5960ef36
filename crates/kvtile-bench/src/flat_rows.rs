//! One flat copy on several threads, against the same copy on one.

use crate::{
    arena::Arenas,
    class::CopyClass,
    contender::{BlockOrders, Contender, CopyMethod, FlatCopy},
    error::BenchError,
    matrix::PairPurpose,
    row::{BenchRow, SideMemory},
    settings::BenchSettings,
    times::{RoundTimes, seconds},
};

/// The orders of a copy without layouts.
const NO_BLOCKS: BlockOrders = BlockOrders {
    source: Vec::new(),
    destination: Vec::new(),
};

/// Measures `bytes` on `threads` threads.
pub(crate) fn measure(
    bytes: u64,
    threads: u32,
    settings: &BenchSettings,
    arenas: &mut Arenas,
) -> Result<BenchRow, BenchError> {
    let size = usize::try_from(bytes).unwrap_or(usize::MAX);
    let flat = |threads| FlatCopy {
        bytes: size,
        threads,
    };
    let mut contenders = [flat(1), flat(threads)];
    let mut times = [RoundTimes::default(), RoundTimes::default()];
    let mut first = contenders.iter_mut();
    let warm = first.try_fold(0.0, |sum, flat| {
        let time = flat.run(arenas, &NO_BLOCKS, 1, false)?;
        Ok::<f64, BenchError>(sum + seconds(time))
    })?;
    let rounds = settings.rounds(std::time::Duration::from_secs_f64(warm));
    for round in 0..rounds {
        for turn in 0..2 {
            let turn = (turn + round as usize) % 2;
            if let (Some(flat), Some(times)) = (contenders.get_mut(turn), times.get_mut(turn)) {
                arenas.poison(size)?;
                times.add(flat.run(arenas, &NO_BLOCKS, 1, false)?);
            }
        }
    }
    let [one, several] = times;
    Ok(BenchRow {
        source: "memcpy".to_owned(),
        destination: "memcpy".to_owned(),
        purpose: PairPurpose::Extra,
        source_place: SideMemory::Memory,
        destination_place: SideMemory::Memory,
        part: None,
        model: "flat".to_owned(),
        method: CopyMethod::Memcpy,
        class: CopyClass::Flat,
        bytes,
        blocks: 1,
        layers: 1,
        page_size: 1,
        runs: u64::from(threads),
        run_bytes: bytes.div_ceil(u64::from(threads)),
        run_bytes_min: bytes / u64::from(threads),
        threads,
        rounds,
        repeats: 1,
        gb_per_s: several.gb_per_s(bytes as f64),
        memcpy_gb_per_s: one.gb_per_s(bytes as f64),
        ratio: seconds(one.median()) / seconds(several.median()),
        spread: several.spread(),
        goal: None,
        ns_per_transfer: None,
        memcpy_ns_per_transfer: None,
        fio_gb_per_s: None,
        fio_ratio: None,
    })
}
