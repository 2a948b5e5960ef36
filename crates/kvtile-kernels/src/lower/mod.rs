//! The lowering of copy plans to launches.
//!
//! ```text
//! nest of a plan            launch
//! loops of strides ───────► loops of strides
//! loops over regions ─────► one loop with tables of differences between addresses
//! block pairs ────────────► the outermost loop, with tables
//! run ────────────────────► vectors; a long one becomes a loop over pieces
//! ```
//!
//! A nest whose loops change regions becomes one launch for each region at which its pairs start.

mod packed;
mod part;
mod rows;
mod tables;
mod tiles;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use kvtile_layout::{AddressStep, CopyPlan, Location, Loop, Nest};

use self::tables::{TABLE_WORDS_MAX, TableWords};
pub use self::{
    packed::{PackedPiece, PackedSide},
    part::PlanPart,
};
use crate::{
    error::LowerError,
    program::{MoveLaunch, MoveProgram},
    shape::{CopyShape, DeviceLoop},
};

/// The memory of a region as a device sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MoveRegion {
    /// The address of the first byte.
    pub address: u64,
    /// Its bytes.
    pub bytes: u64,
}

/// Where the bytes of one side of a plan are.
#[derive(Clone, Copy, Debug)]
pub enum MoveSide<'r> {
    /// In the regions of its layout.
    Regions(&'r [MoveRegion]),
    /// Packed, from an address on.
    Packed(&'r PackedSide, u64),
}

/// The program that copies what `plan` copies, between regions at these addresses.
///
/// # Errors
/// A plan that has other regions or leaves one; loops over too many regions.
pub fn lower(
    plan: &CopyPlan,
    source: &[MoveRegion],
    destination: &[MoveRegion],
) -> Result<MoveProgram, LowerError> {
    lower_part(
        &PlanPart::whole(plan),
        MoveSide::Regions(source),
        MoveSide::Regions(destination),
    )
}

/// The program that copies what a part of a plan copies.
///
/// # Errors
/// As for [`lower`]; a packed side that was made for another part.
pub fn lower_part(
    part: &PlanPart<'_>,
    source: MoveSide<'_>,
    destination: MoveSide<'_>,
) -> Result<MoveProgram, LowerError> {
    let mut lowering = PlanLowering {
        source: RegionSide {
            name: "source",
            side: source,
        },
        destination: RegionSide {
            name: "destination",
            side: destination,
        },
        tables: TableWords::default(),
        launches: Vec::new(),
    };
    for (class, pairs) in part.classes() {
        for nest in class.nests.iter() {
            let starts = pairs.iter().map(|pair| part.plan().start(nest, pair));
            lowering.nest(nest, starts)?;
        }
    }
    Ok(MoveProgram {
        launches: lowering.launches,
        tables: lowering.tables.into_words(),
    })
}

/// One side.
#[derive(Clone, Copy)]
struct RegionSide<'r> {
    name: &'static str,
    side: MoveSide<'r>,
}

impl RegionSide<'_> {
    /// The address of `start`, from which `span` bytes are in its region.
    fn address(&self, start: Location, span: u64) -> Result<u64, LowerError> {
        let regions = match self.side {
            MoveSide::Packed(packed, address) => {
                let place = packed.place(start, span);
                let place = place.map(|place| address.wrapping_add(place));
                return place.ok_or(LowerError::NotPacked {
                    side: self.name,
                    region: start.region,
                    offset: start.offset,
                });
            }
            MoveSide::Regions(regions) => regions,
        };
        let region = usize::try_from(start.region).ok();
        let Some(region) = region.and_then(|region| regions.get(region)) else {
            return Err(LowerError::NoRegion {
                side: self.name,
                region: start.region,
                regions: regions.len(),
            });
        };
        let end = start.offset.saturating_add(span);
        if end > region.bytes {
            return Err(LowerError::OutsideRegion {
                side: self.name,
                region: start.region,
                end,
                bytes: region.bytes,
            });
        }
        Ok(region.address.wrapping_add(start.offset))
    }

    /// The differences between the addresses of `steps` from a start in `region` and that start; `offset` is the
    /// largest offset of a start.
    fn differences(
        &self,
        region: u64,
        (offset, span): (u64, u64),
        steps: impl Iterator<Item = AddressStep>,
    ) -> Result<Vec<u64>, LowerError> {
        let first = self.address(Location { region, offset }, span)?;
        let difference = |step: AddressStep| {
            let place = Location {
                region: region.saturating_add(step.regions),
                offset: offset.saturating_add(step.bytes),
            };
            Ok(self.address(place, span)?.wrapping_sub(first))
        };
        steps.map(difference).collect()
    }
}

struct PlanLowering<'r> {
    source: RegionSide<'r>,
    destination: RegionSide<'r>,
    tables: TableWords,
    launches: Vec<MoveLaunch>,
}

/// Pairs of starts by the regions in which they start, on the sides on which a loop leaves it.
type StartGroups = BTreeMap<(Option<u64>, Option<u64>), Vec<(Location, Location)>>;

impl PlanLowering<'_> {
    fn nest(
        &mut self,
        nest: &Nest,
        starts: impl Iterator<Item = (Location, Location)>,
    ) -> Result<(), LowerError> {
        let is_local = |l: &&Loop| l.source.is_local() && l.destination.is_local();
        let (local, over): (Vec<&Loop>, Vec<&Loop>) = nest.loops.iter().partition(is_local);
        let leaves_source = over.iter().any(|l| !l.source.is_local());
        let leaves_destination = over.iter().any(|l| !l.destination.is_local());
        let steps = combinations(&over)?;
        let mut groups = StartGroups::new();
        for start in starts {
            let source = leaves_source.then_some(start.0.region);
            let destination = leaves_destination.then_some(start.1.region);
            groups.entry((source, destination)).or_default().push(start);
        }
        for pairs in groups.values() {
            self.group(nest, &local, &steps, pairs)?;
        }
        Ok(())
    }

    /// Lowers `nest` for pairs that share the steps over regions.
    fn group(
        &mut self,
        nest: &Nest,
        local: &[&Loop],
        steps: &[(AddressStep, AddressStep)],
        pairs: &[(Location, Location)],
    ) -> Result<(), LowerError> {
        // `local` is outermost first.
        let mut loops: Vec<DeviceLoop> = local.iter().rev().map(|l| DeviceLoop::local(l)).collect();
        let span = |step: fn(&Loop) -> AddressStep| {
            let inner = local
                .iter()
                .map(|l| step(l).bytes.saturating_mul(l.extent - 1));
            inner.fold(nest.run_bytes, u64::saturating_add)
        };
        let (source_span, destination_span) = (span(|l| l.source), span(|l| l.destination));
        let source: Vec<Location> = pairs.iter().map(|pair| pair.0).collect();
        let destination: Vec<Location> = pairs.iter().map(|pair| pair.1).collect();
        let source_steps = steps.iter().map(|step| step.0);
        let destination_steps = steps.iter().map(|step| step.1);
        let source = self.source.places(&source, source_span, source_steps)?;
        let destination =
            self.destination
                .places(&destination, destination_span, destination_steps)?;
        for (from, to) in [
            (source.steps, destination.steps),
            (source.pairs, destination.pairs),
        ] {
            if from.len() > 1 {
                loops.push(DeviceLoop {
                    extent: from.len() as u64,
                    source: self.tables.side(from),
                    destination: self.tables.side(to),
                });
            }
        }
        let shape = CopyShape {
            source: source.first,
            destination: destination.first,
            run_bytes: nest.run_bytes,
            loops,
        };
        for shape in shape.split() {
            let launches = match tiles::launch(&shape, &mut self.tables)? {
                Some(launch) => vec![launch],
                None => rows::launches(&shape, &mut self.tables)?,
            };
            self.launches.extend(launches);
        }
        Ok(())
    }
}

/// The addresses of a side: of the first start, and the differences to it.
struct SidePlaces {
    first: u64,
    steps: Vec<u64>,
    pairs: Vec<u64>,
}

impl RegionSide<'_> {
    /// The places of `starts`, from each of which `steps` go, and from there `span` bytes. All starts are in one
    /// region if a step leaves it.
    fn places(
        &self,
        starts: &[Location],
        span: u64,
        steps: impl Iterator<Item = AddressStep> + Clone,
    ) -> Result<SidePlaces, LowerError> {
        let first = starts.first().copied().unwrap_or(Location {
            region: 0,
            offset: 0,
        });
        let mut addresses = Vec::with_capacity(starts.len());
        let leaves = steps.clone().any(|step| step.regions > 0);
        let furthest = steps.clone().map(|step| step.bytes).max().unwrap_or(0);
        let end = starts.iter().map(|start| start.offset).max().unwrap_or(0);
        for start in starts {
            // Where steps leave the region, their differences are checked.
            let reach = match leaves {
                true => 0,
                false => span.saturating_add(furthest),
            };
            addresses.push(self.address(*start, reach)?);
        }
        let steps = match leaves {
            true => self.differences(first.region, (end, span), steps)?,
            false => steps.map(|step| step.bytes).collect(),
        };
        let address = self.address(first, 0)?;
        let pairs = addresses
            .iter()
            .map(|other| other.wrapping_sub(address))
            .collect();
        Ok(SidePlaces {
            first: address,
            steps,
            pairs,
        })
    }
}

/// Every combination of the iterations of loops over regions.
fn combinations(over: &[&Loop]) -> Result<Vec<(AddressStep, AddressStep)>, LowerError> {
    let count = over
        .iter()
        .fold(1u64, |count, l| count.saturating_mul(l.extent));
    if count > TABLE_WORDS_MAX {
        return Err(LowerError::TableTooLong {
            combinations: count,
            max: TABLE_WORDS_MAX,
        });
    }
    let mut found = vec![(AddressStep::default(), AddressStep::default())];
    for l in over {
        let further = |from: AddressStep, step: AddressStep, i: u64| AddressStep {
            regions: from.regions.saturating_add(step.regions.saturating_mul(i)),
            bytes: from.bytes.saturating_add(step.bytes.saturating_mul(i)),
        };
        let longer = found
            .iter()
            .flat_map(|&(source, destination)| {
                (0..l.extent).map(move |i| {
                    (
                        further(source, l.source, i),
                        further(destination, l.destination, i),
                    )
                })
            })
            .collect();
        found = longer;
    }
    Ok(found)
}
