//! Resolves a word and a shape to digits and regions.
//!
//! The word is a tree: the resolver places the items right of an item first, and their size is the
//! item's stride. Left of a bar, the size is a number of regions instead of bytes.

use super::{AddressStep, Digit, PlanePiece, REGIONS_MAX, StridedLayout, meant::explained, names};
use crate::{
    axis::Axis,
    broken::broken,
    error::{LayoutError, ResolveError, ShapeError},
    shape::{Plane, PlaneName, Shape, checked},
    word::{AxisItem, StrideRule, Word, WordItem},
};

impl StridedLayout {
    /// Resolves `word` for `shape`. The stride of blocks is rounded up to `alignment` (a power of
    /// two, in bytes), which must divide the start of every region.
    ///
    /// # Errors
    /// A word that leaves planes unseparated, lacks or repeats an axis, has moduli that do not
    /// divide, shares an axis between planes that differ along it, or fixes a stride below what
    /// it holds; sizes beyond what a signed offset can express; too many regions.
    pub fn resolve(
        word: &Word,
        shape: &Shape,
        alignment: u64,
    ) -> Result<StridedLayout, LayoutError> {
        let resolved = StridedLayout::resolve_word(word, shape, alignment);
        resolved.map_err(|error| explained(error, word, shape))
    }

    pub(super) fn resolve_word(
        word: &Word,
        shape: &Shape,
        alignment: u64,
    ) -> Result<StridedLayout, LayoutError> {
        check_alignment(alignment)?;
        let all: Vec<usize> = (0..shape.planes().len()).collect();
        let resolver = WordResolver {
            word,
            shape,
            alignment,
            paths: paths(word, shape)?,
        };
        let items: Vec<&WordItem> = word.items().iter().collect();
        let placed = resolver.place(&items, &all, word.has_regions())?;
        let mut pieces: Vec<Option<PlanePiece>> = vec![None; shape.planes().len()];
        for (plane, piece) in placed.pieces {
            let Some(slot) = pieces.get_mut(plane) else {
                broken(format_args!("a piece of plane {plane} in {word}"))
            };
            *slot = Some(piece);
        }
        let pieces: Option<Vec<PlanePiece>> = pieces.into_iter().collect();
        let layout = StridedLayout {
            shape: shape.clone(),
            pieces: pieces.ok_or_else(|| {
                LayoutError::Resolve(ResolveError::PlanesNotSeparated {
                    word: word.to_string(),
                    planes: names(shape.planes()),
                    meant: Vec::new(),
                })
            })?,
            region_bytes: placed.regions,
            alignment,
            word: Some(word.clone()),
            injective: true,
        };
        layout.assert_sound();
        Ok(layout)
    }
}

pub(super) fn check_alignment(alignment: u64) -> Result<(), LayoutError> {
    if alignment.is_power_of_two() && alignment <= 1 << 30 {
        Ok(())
    } else {
        Err(LayoutError::Resolve(ResolveError::Alignment { alignment }))
    }
}

/// The digits on the path of one plane through the word.
struct WordPath {
    digits: Vec<AxisItem>,
}

impl WordPath {
    /// The modulus below the digit of `axis` whose own modulus is `high`.
    fn low(&self, axis: Axis, high: Option<u64>) -> u64 {
        self.moduli(axis)
            .filter(|&m| high.is_none_or(|high| m < high))
            .max()
            .unwrap_or(1)
    }

    fn moduli(&self, axis: Axis) -> impl Iterator<Item = u64> {
        self.digits
            .iter()
            .filter(move |item| item.axis == axis)
            .filter_map(|item| item.modulus)
    }
}

/// The planes that each part of a sum applies to.
fn split(parts: &[Word], set: &[usize], shape: &Shape) -> Result<Vec<Vec<usize>>, LayoutError> {
    let plane_name = |i: usize| shape.planes().get(i).map(Plane::name);
    let named = |part: &Word, i: usize| plane_name(i).is_some_and(|name| part.names(name));
    let unnamed: Vec<usize> = set
        .iter()
        .copied()
        .filter(|&i| !parts.iter().any(|part| named(part, i)))
        .collect();
    let mut result: Vec<Vec<usize>> = Vec::new();
    for part in parts {
        let mine: Vec<usize> = set.iter().copied().filter(|&i| named(part, i)).collect();
        let mine = match (mine.is_empty(), names_any(part)) {
            (false, _) => mine,
            (true, false) => unnamed.clone(),
            (true, true) => Vec::new(),
        };
        if mine.is_empty() {
            return Err(LayoutError::Resolve(ResolveError::EmptyPart {
                part: part.to_string(),
                planes: names(shape.planes()),
            }));
        }
        let twice = |&&i: &&usize| result.iter().any(|other| other.contains(&i));
        if let Some(name) = mine.iter().find(twice).and_then(|&i| plane_name(i)) {
            return Err(LayoutError::Shape(ShapeError::DuplicatePlane {
                plane: name.clone(),
            }));
        }
        result.push(mine);
    }
    match set.iter().find(|&i| !result.iter().any(|r| r.contains(i))) {
        None => Ok(result),
        Some(&missing) => Err(LayoutError::Resolve(ResolveError::PlaneMissing {
            plane: plane_name(missing)
                .map(PlaneName::to_string)
                .unwrap_or_default(),
            parts: parts
                .iter()
                .map(Word::to_string)
                .collect::<Vec<_>>()
                .join(","),
        })),
    }
}

fn names_any(part: &Word) -> bool {
    part.items().iter().any(|item| match item {
        WordItem::Plane(_) => true,
        WordItem::Sum(parts) => parts.iter().any(names_any),
        WordItem::Axis(_) | WordItem::Bar => false,
    })
}

/// Narrows `set` to the plane called `name`.
fn narrow(name: &PlaneName, set: &[usize], shape: &Shape) -> Result<Vec<usize>, LayoutError> {
    let found = shape.planes().iter().position(|p| p.name() == name);
    match found {
        Some(i) if set.contains(&i) => Ok(vec![i]),
        _ => Err(LayoutError::Resolve(ResolveError::UnknownPlane {
            plane: name.to_string(),
            known: set
                .iter()
                .filter_map(|&i| shape.planes().get(i))
                .map(|p| p.name().to_string())
                .collect::<Vec<_>>()
                .join(", "),
        })),
    }
}

fn paths(word: &Word, shape: &Shape) -> Result<Vec<WordPath>, LayoutError> {
    let all: Vec<usize> = (0..shape.planes().len()).collect();
    let mut paths: Vec<WordPath> = all
        .iter()
        .map(|_| WordPath { digits: Vec::new() })
        .collect();
    collect(word.items(), &all, shape, &mut paths)?;
    for (plane, path) in shape.planes().iter().zip(&paths) {
        check_path(plane, path, shape, word)?;
    }
    Ok(paths)
}

fn collect(
    items: &[WordItem],
    set: &[usize],
    shape: &Shape,
    paths: &mut [WordPath],
) -> Result<(), LayoutError> {
    let mut set = set.to_vec();
    for item in items {
        match item {
            WordItem::Bar => {}
            WordItem::Plane(name) => set = narrow(name, &set, shape)?,
            WordItem::Axis(axis) => {
                for &i in &set {
                    if let Some(path) = paths.get_mut(i) {
                        path.digits.push(*axis);
                    }
                }
            }
            WordItem::Sum(parts) => {
                for (part, set) in parts.iter().zip(split(parts, &set, shape)?) {
                    collect(part.items(), &set, shape, paths)?;
                }
            }
        }
    }
    Ok(())
}

/// Checks that every axis of the plane occurs, none twice, and that the moduli divide each other
/// and the extent.
fn check_path(
    plane: &Plane,
    path: &WordPath,
    shape: &Shape,
    word: &Word,
) -> Result<(), LayoutError> {
    for (i, item) in path.digits.iter().enumerate() {
        if !shape.knows(item.axis) {
            return Err(LayoutError::Resolve(ResolveError::UnknownAxis {
                axis: item.axis,
                word: word.to_string(),
            }));
        }
        let earlier = path.digits.iter().take(i);
        if earlier
            .clone()
            .any(|e| e.axis == item.axis && e.modulus == item.modulus)
        {
            return Err(LayoutError::Resolve(ResolveError::RepeatedAxis {
                axis: item.axis,
                modulus: item.modulus,
                word: word.to_string(),
            }));
        }
    }
    let declared = plane.extents().iter().map(|(axis, _)| *axis);
    for axis in [Axis::B, Axis::L, Axis::N].into_iter().chain(declared) {
        let extent = shape.extent(plane, axis);
        if extent == 1 {
            continue;
        }
        let mut moduli: Vec<u64> = path.moduli(axis).collect();
        moduli.sort_unstable();
        let bare = path
            .digits
            .iter()
            .any(|d| d.axis == axis && d.modulus.is_none());
        if !bare && moduli.last().is_none_or(|&largest| largest != extent) {
            return Err(LayoutError::Resolve(ResolveError::AxisMissing {
                axis,
                extent,
                plane: plane.name().clone(),
                word: word.to_string(),
                meant: Vec::new(),
            }));
        }
        let above = moduli.iter().skip(1).copied().chain([extent]);
        if let Some((modulus, above)) = moduli.iter().copied().zip(above).find(|(m, a)| a % m != 0)
        {
            return Err(LayoutError::Resolve(ResolveError::ModulusDoesNotDivide {
                axis,
                modulus,
                of: above,
                plane: plane.name().clone(),
            }));
        }
    }
    Ok(())
}

/// The placement of the items right of some item: the bytes of each region and the pieces in them.
struct PlacedItems {
    regions: Vec<u64>,
    pieces: Vec<(usize, PlanePiece)>,
}

impl PlacedItems {
    /// Bytes of the one region that items right of a bar have.
    fn bytes(&self) -> u64 {
        let [bytes] = self.regions.as_slice() else {
            broken(format_args!(
                "{} regions where bytes are placed",
                self.regions.len()
            ))
        };
        *bytes
    }
}

struct WordResolver<'a> {
    word: &'a Word,
    shape: &'a Shape,
    alignment: u64,
    paths: Vec<WordPath>,
}

impl WordResolver<'_> {
    /// Places `items` for the planes of `set`. `enumerating` is true left of a bar.
    fn place(
        &self,
        items: &[&WordItem],
        set: &[usize],
        enumerating: bool,
    ) -> Result<PlacedItems, LayoutError> {
        let Some((first, rest)) = items.split_first() else {
            return self.unit(set, enumerating);
        };
        match first {
            WordItem::Bar if enumerating => self.place(rest, set, false),
            WordItem::Bar => Err(self.mixed_bars()),
            WordItem::Plane(name) => self.place(rest, &narrow(name, set, self.shape)?, enumerating),
            WordItem::Sum(parts) => {
                let mut placed = Vec::new();
                for (part, set) in parts.iter().zip(split(parts, set, self.shape)?) {
                    let items: Vec<&WordItem> =
                        part.items().iter().chain(rest.iter().copied()).collect();
                    placed.push(self.place(&items, &set, enumerating)?);
                }
                self.side_by_side(placed, None, enumerating)
            }
            WordItem::Axis(item) if item.axis == Axis::K => {
                let mut placed = Vec::new();
                for &plane in set {
                    placed.push(self.place(rest, &[plane], enumerating)?);
                }
                self.side_by_side(placed, item.rule, enumerating)
            }
            WordItem::Axis(item) => {
                let placed = self.place(rest, set, enumerating)?;
                self.repeat(*item, set, placed, enumerating)
            }
        }
    }

    fn unit(&self, set: &[usize], enumerating: bool) -> Result<PlacedItems, LayoutError> {
        if enumerating {
            return Err(self.mixed_bars());
        }
        let [plane] = set else {
            return Err(LayoutError::Resolve(ResolveError::PlanesNotSeparated {
                word: self.word.to_string(),
                planes: set
                    .iter()
                    .filter_map(|&i| self.shape.planes().get(i))
                    .map(|p| p.name().to_string())
                    .collect::<Vec<_>>()
                    .join(", "),
                meant: Vec::new(),
            }));
        };
        let bytes = self.plane(*plane).unit().bytes();
        let piece = PlanePiece {
            region: 0,
            offset: 0,
            digits: Vec::new(),
        };
        Ok(PlacedItems {
            regions: vec![bytes],
            pieces: vec![(*plane, piece)],
        })
    }

    fn mixed_bars(&self) -> LayoutError {
        LayoutError::Resolve(ResolveError::MixedBars {
            word: self.word.to_string(),
        })
    }

    /// Places the parts of a sum one after the other, in regions or in bytes.
    fn side_by_side(
        &self,
        parts: Vec<PlacedItems>,
        rule: Option<StrideRule>,
        enumerating: bool,
    ) -> Result<PlacedItems, LayoutError> {
        if enumerating && rule.is_some() {
            return Err(self.region_stride(Axis::K));
        }
        let mut all = PlacedItems {
            regions: Vec::new(),
            pieces: Vec::new(),
        };
        let mut offset = 0u64;
        for part in parts {
            let bytes = match enumerating {
                true => 0,
                false => self.strided(Axis::K, part.bytes(), rule)?,
            };
            let region = all.regions.len() as u64;
            for (plane, mut piece) in part.pieces {
                if enumerating {
                    piece.region += region;
                } else {
                    piece.offset += offset;
                }
                all.pieces.push((plane, piece));
            }
            if enumerating {
                all.regions.extend(part.regions);
                self.check_regions(all.regions.len() as u64)?;
            } else {
                offset = checked(offset.checked_add(bytes), "bytes of a region")?;
            }
        }
        if !enumerating {
            all.regions.push(offset);
        }
        Ok(all)
    }

    fn repeat(
        &self,
        item: AxisItem,
        set: &[usize],
        mut placed: PlacedItems,
        enumerating: bool,
    ) -> Result<PlacedItems, LayoutError> {
        let extent = self.digit_extent(item, set)?;
        let step;
        if enumerating {
            if item.rule.is_some() {
                return Err(self.region_stride(item.axis));
            }
            let count = placed.regions.len() as u64;
            let total = count.saturating_mul(extent);
            self.check_regions(total)?;
            step = AddressStep::regions(count);
            placed.regions = (0..extent)
                .flat_map(|_| placed.regions.iter().copied())
                .collect();
        } else {
            let mut stride = self.strided(item.axis, placed.bytes(), item.rule)?;
            if item.axis == Axis::B {
                stride =
                    self.strided(Axis::B, stride, Some(StrideRule::RoundUp(self.alignment)))?;
            }
            step = AddressStep::bytes(stride);
            placed.regions = vec![checked(stride.checked_mul(extent), "bytes of a region")?];
        }
        if extent > 1 {
            for (plane, piece) in &mut placed.pieces {
                let digit = Digit {
                    axis: item.axis,
                    low: self.low(item, *plane),
                    extent,
                    step,
                };
                piece.digits.insert(0, digit);
            }
        }
        Ok(placed)
    }

    fn check_regions(&self, regions: u64) -> Result<(), LayoutError> {
        if regions > REGIONS_MAX {
            return Err(LayoutError::Resolve(ResolveError::TooManyRegions {
                regions,
                max: REGIONS_MAX,
            }));
        }
        Ok(())
    }

    fn region_stride(&self, axis: Axis) -> LayoutError {
        LayoutError::Resolve(ResolveError::RegionStride {
            axis,
            word: self.word.to_string(),
        })
    }

    /// The modulus below the digit that `item` has for `plane`.
    fn low(&self, item: AxisItem, plane: usize) -> u64 {
        let Some(path) = self.paths.get(plane) else {
            broken(format_args!(
                "plane {plane} of {} paths through {}",
                self.paths.len(),
                self.word
            ))
        };
        path.low(item.axis, item.modulus)
    }

    fn plane(&self, index: usize) -> &Plane {
        let planes = self.shape.planes();
        let Some(plane) = planes.get(index) else {
            broken(format_args!(
                "plane {index} of {} in {}",
                planes.len(),
                self.word
            ))
        };
        plane
    }

    /// Extent of the digit of `item`, which must be the same for all planes of `set`. The meaning
    /// of one step may differ: in `C(s,kC32)` one scale goes with 32 units.
    fn digit_extent(&self, item: AxisItem, set: &[usize]) -> Result<u64, LayoutError> {
        let mut shared: Option<(&Plane, u64)> = None;
        for &i in set {
            let plane = self.plane(i);
            let low = self.low(item, i);
            let whole = self.shape.extent(plane, item.axis);
            let extent = match item.modulus {
                _ if whole == 1 => 1,
                Some(modulus) => modulus / low,
                None => whole / low,
            };
            match shared {
                Some((first, first_extent)) if first_extent != extent => {
                    return Err(LayoutError::Resolve(ResolveError::SharedAxisDiffers {
                        axis: item.axis,
                        first: first.name().clone(),
                        first_extent,
                        second: plane.name().clone(),
                        second_extent: extent,
                    }));
                }
                Some(_) => {}
                None => shared = Some((plane, extent)),
            }
        }
        Ok(shared.map_or(1, |(_, extent)| extent))
    }

    fn strided(
        &self,
        axis: Axis,
        bytes: u64,
        rule: Option<StrideRule>,
    ) -> Result<u64, LayoutError> {
        match rule {
            None => Ok(bytes),
            Some(StrideRule::RoundUp(to)) => {
                checked(bytes.checked_next_multiple_of(to), "a rounded stride")
            }
            Some(StrideRule::Fixed(stride)) if stride >= bytes => Ok(stride),
            Some(StrideRule::Fixed(stride)) => {
                Err(LayoutError::Resolve(ResolveError::StrideTooSmall {
                    axis,
                    stride,
                    holds: bytes,
                }))
            }
        }
    }
}
