//! Sorts, merges and joins nests.

use std::collections::HashMap;

use super::{AxisSet, Loop, Nest};
use crate::{axis::Axis, broken::broken, strided::AddressStep};

/// Sorts the loops of `nest` from the longest step to the shortest, and merges every loop into its
/// inner neighbour, or into the run, where both sides continue.
pub(super) fn normalise(nest: &mut Nest, source_order: bool) {
    nest.loops.retain(|l| l.extent > 1);
    nest.loops.sort_by_key(|l| {
        let (first, second) = if source_order {
            (l.source, l.destination)
        } else {
            (l.destination, l.source)
        };
        std::cmp::Reverse((first, second))
    });
    // From the innermost outwards, because a merge can make the next one possible.
    let mut kept: Vec<Loop> = Vec::with_capacity(nest.loops.len());
    for outer in nest.loops.drain(..).rev() {
        let continues = AddressStep::bytes(nest.run_bytes);
        match kept.last_mut() {
            None if outer.source == continues && outer.destination == continues => {
                nest.run_bytes *= outer.extent;
                nest.run_axes = nest.run_axes.with(outer.axes);
            }
            Some(inner)
                if inner.source.times(inner.extent) == Some(outer.source)
                    && inner.destination.times(inner.extent) == Some(outer.destination) =>
            {
                inner.extent *= outer.extent;
                inner.axes = inner.axes.with(outer.axes);
            }
            _ => kept.push(outer),
        }
    }
    kept.reverse();
    nest.loops = kept;
}

/// Joins nests that are adjacent on both sides, and stacks equal nests at equal distances into one
/// nest with one more loop, until nothing changes.
pub(super) fn join(mut nests: Vec<Nest>, source_order: bool) -> Vec<Nest> {
    loop {
        let before = nests.len();
        nests = per_group(nests, |group| adjacent(group, source_order));
        nests = per_group(nests, |group| stack(group, source_order));
        if nests.len() == before {
            nests.sort_by_key(|n| {
                if source_order {
                    (n.source, n.destination)
                } else {
                    (n.destination, n.source)
                }
            });
            return nests;
        }
    }
}

/// Groups nests by block map and loops, and applies `merge` to each group sorted by destination.
fn per_group(nests: Vec<Nest>, merge: impl Fn(Vec<Nest>) -> Vec<Nest>) -> Vec<Nest> {
    if nests.len() < 2 {
        return nests;
    }
    type NestGroupKey = (usize, Vec<(u64, AddressStep, AddressStep)>);
    let mut order: Vec<Vec<Nest>> = Vec::new();
    let mut index: HashMap<NestGroupKey, usize> = HashMap::new();
    for nest in nests {
        let loops = nest.loops.iter();
        let key = (
            nest.map,
            loops.map(|l| (l.extent, l.source, l.destination)).collect(),
        );
        let at = *index.entry(key).or_insert_with(|| {
            order.push(Vec::new());
            order.len() - 1
        });
        let groups = order.len();
        let Some(group) = order.get_mut(at) else {
            broken(format_args!("group {at} of {groups} groups of nests"))
        };
        group.push(nest);
    }
    order
        .into_iter()
        .flat_map(|mut group| {
            group.sort_by_key(|n| (n.destination, n.source));
            merge(group)
        })
        .collect()
}

/// Joins nests whose runs touch on both sides into one nest with a longer run.
fn adjacent(group: Vec<Nest>, source_order: bool) -> Vec<Nest> {
    let mut joined: Vec<Nest> = Vec::new();
    for nest in group {
        if let Some(last) = joined.last_mut() {
            let run = AddressStep::bytes(last.run_bytes);
            if last.source.plus(run) == Some(nest.source)
                && last.destination.plus(run) == Some(nest.destination)
            {
                last.run_bytes += nest.run_bytes;
                last.run_axes = last.run_axes.with(nest.run_axes).with(AxisSet::of(Axis::K));
                continue;
            }
        }
        joined.push(nest);
    }
    for nest in &mut joined {
        normalise(nest, source_order);
    }
    joined
}

/// Stacks equal nests at equal distances into one nest with a loop over them.
fn stack(group: Vec<Nest>, source_order: bool) -> Vec<Nest> {
    let mut stacked: Vec<Nest> = Vec::new();
    let mut rest = group.as_slice();
    while let Some((first, others)) = rest.split_first() {
        let distance = others.first().and_then(|second| {
            let equal = second.run_bytes == first.run_bytes;
            let source = minus(second.source, first.source)?;
            let destination = minus(second.destination, first.destination)?;
            equal.then_some((source, destination))
        });
        let mut nest = first.clone();
        let mut count = 1;
        if let Some((source, destination)) = distance {
            for next in others {
                let follows = next.run_bytes == first.run_bytes
                    && source.times(count).and_then(|s| first.source.plus(s)) == Some(next.source)
                    && destination
                        .times(count)
                        .and_then(|d| first.destination.plus(d))
                        == Some(next.destination);
                if !follows {
                    break;
                }
                nest.run_axes = nest.run_axes.with(next.run_axes);
                count += 1;
            }
            nest.loops.push(Loop {
                extent: count,
                source,
                destination,
                axes: AxisSet::of(Axis::K),
            });
            normalise(&mut nest, source_order);
        }
        let taken = usize::try_from(count).ok();
        let Some(left) = taken.and_then(|taken| rest.get(taken..)) else {
            broken(format_args!("{count} of {} nests stacked", rest.len()))
        };
        rest = left;
        stacked.push(nest);
    }
    stacked
}

/// The distance between two offsets; `None` where it is negative.
fn minus(later: AddressStep, earlier: AddressStep) -> Option<AddressStep> {
    Some(AddressStep {
        regions: later.regions.checked_sub(earlier.regions)?,
        bytes: later.bytes.checked_sub(earlier.bytes)?,
    })
}
