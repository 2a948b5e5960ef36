//! Byte images of layouts, and a test pattern that shows every misplaced byte.
//!
//! A byte of the pattern is a hash of the seed, the plane's name, the index along every axis and
//! the byte's offset in its unit. Swapped planes, shifted blocks and transposed axes all show.
//! Padding holds a hash of its address, the poison, so that a stray write shows too.

use kvtile_layout::Axis;
use kvtile_random::mix;

use crate::{
    error::TestkitError,
    reference::{ReferenceLayout, to_usize},
};

/// The bytes of every region of a layout.
pub type Image = Vec<Vec<u8>>;

/// The pattern's byte for byte `byte` of the unit of `plane` at `index`. Axes with index 0 may be
/// omitted; the order of the axes does not matter.
#[must_use]
pub fn pattern_byte(seed: u64, plane: &str, index: &[(Axis, u64)], byte: u64) -> u8 {
    let mut hash = mix(seed);
    for letter in plane.bytes() {
        hash = mix(hash ^ u64::from(letter));
    }
    let mut sum = 0u64;
    for &(axis, i) in index.iter().filter(|(_, i)| *i != 0) {
        sum = sum.wrapping_add(mix(hash ^ mix(u64::from(axis.letter())) ^ mix(!i)));
    }
    low_byte(mix(sum ^ hash ^ mix(byte.wrapping_add(1 << 40))))
}

/// The poison byte of padding at `offset` of `region`.
#[must_use]
pub fn poison_byte(region: usize, offset: u64) -> u8 {
    low_byte(mix(mix(0xdead ^ region as u64) ^ offset))
}

fn low_byte(hash: u64) -> u8 {
    let [.., low] = hash.to_be_bytes();
    low
}

impl ReferenceLayout {
    /// An image of poison bytes only.
    ///
    /// # Errors
    /// Regions that do not fit into memory.
    pub fn poisoned(&self) -> Result<Image, TestkitError> {
        let mut image = Vec::new();
        for (region, &bytes) in self.region_bytes().iter().enumerate() {
            to_usize(bytes)?;
            image.push((0..bytes).map(|at| poison_byte(region, at)).collect());
        }
        Ok(image)
    }

    /// An image with the pattern of `seed` in its units and poison in its padding.
    ///
    /// # Errors
    /// Regions that do not fit into memory.
    pub fn filled(&self, seed: u64) -> Result<Image, TestkitError> {
        let mut image = self.poisoned()?;
        fill(self, &mut image, seed)?;
        Ok(image)
    }
}

/// Writes the pattern of `seed` into every unit; padding is unchanged.
///
/// # Errors
/// An image whose regions differ from those of the layout.
pub fn fill(layout: &ReferenceLayout, image: &mut Image, seed: u64) -> Result<(), TestkitError> {
    check_regions(layout, image)?;
    for unit in layout.units() {
        let Some(plane) = layout.shape().planes().get(unit.plane) else {
            continue;
        };
        let bytes = plane.unit().bytes();
        let name = plane.name().as_str();
        let target = unit_bytes_mut(image, unit.place.region, unit.place.offset, bytes)?;
        for (byte, target) in target.iter_mut().enumerate() {
            *target = pattern_byte(seed, name, &unit.index, byte as u64);
        }
    }
    Ok(())
}

/// Checks that every unit holds the pattern of `seed` and that padding is still poisoned.
///
/// # Errors
/// The first wrong byte; an image whose regions differ from those of the layout.
pub fn check(layout: &ReferenceLayout, image: &Image, seed: u64) -> Result<(), TestkitError> {
    check_regions(layout, image)?;
    for unit in layout.units() {
        let Some(plane) = layout.shape().planes().get(unit.plane) else {
            continue;
        };
        let name = plane.name().as_str();
        let bytes = plane.unit().bytes();
        let found = unit_bytes(image, unit.place.region, unit.place.offset, bytes)?;
        for (byte, &found) in (0u64..).zip(found) {
            let expected = pattern_byte(seed, name, &unit.index, byte);
            if found != expected {
                return Err(TestkitError::WrongByte {
                    plane: name.to_owned(),
                    index: unit.index.clone(),
                    byte,
                    region: unit.place.region,
                    offset: unit.place.offset + byte,
                    expected,
                    found,
                });
            }
        }
    }
    check_padding(layout, image)
}

/// Checks that every byte outside the units is still poisoned.
///
/// # Errors
/// The first byte that is not; an image whose regions differ from those of the layout.
pub fn check_padding(layout: &ReferenceLayout, image: &Image) -> Result<(), TestkitError> {
    check_regions(layout, image)?;
    let mut used: Vec<Vec<bool>> = image.iter().map(|bytes| vec![false; bytes.len()]).collect();
    for unit in layout.units() {
        let Some(plane) = layout.shape().planes().get(unit.plane) else {
            continue;
        };
        let bytes = plane.unit().bytes();
        unit_bytes_mut(&mut used, unit.place.region, unit.place.offset, bytes)?.fill(true);
    }
    for (region, (bytes, used)) in image.iter().zip(&used).enumerate() {
        for ((offset, &found), used) in (0u64..).zip(bytes).zip(used) {
            let expected = poison_byte(region, offset);
            if !used && found != expected {
                return Err(TestkitError::PaddingWritten {
                    region,
                    offset,
                    expected,
                    found,
                });
            }
        }
    }
    Ok(())
}

pub(crate) fn check_regions(layout: &ReferenceLayout, image: &Image) -> Result<(), TestkitError> {
    let found: Vec<u64> = image.iter().map(|bytes| bytes.len() as u64).collect();
    if found == layout.region_bytes() {
        Ok(())
    } else {
        Err(TestkitError::ImageRegions {
            expected: layout.region_bytes().to_vec(),
            found,
        })
    }
}

pub(crate) fn unit_bytes(
    image: &Image,
    region: usize,
    offset: u64,
    bytes: u64,
) -> Result<&[u8], TestkitError> {
    let (start, end) = (to_usize(offset)?, to_usize(offset.saturating_add(bytes))?);
    image
        .get(region)
        .and_then(|region| region.get(start..end))
        .ok_or_else(|| outside(end))
}

pub(crate) fn unit_bytes_mut<T>(
    image: &mut [Vec<T>],
    region: usize,
    offset: u64,
    bytes: u64,
) -> Result<&mut [T], TestkitError> {
    let (start, end) = (to_usize(offset)?, to_usize(offset.saturating_add(bytes))?);
    image
        .get_mut(region)
        .and_then(|region| region.get_mut(start..end))
        .ok_or_else(|| outside(end))
}

fn outside(end: usize) -> TestkitError {
    TestkitError::TooLarge {
        what: "the end of a unit in its region",
        size: end as u64,
        max: 0,
    }
}
