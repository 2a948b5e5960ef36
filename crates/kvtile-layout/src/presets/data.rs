//! Parses and checks the data file of layouts.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::{Evidence, Preset, PresetError, PresetLayout};
use crate::{
    axis::Axis,
    error::LayoutError,
    shape::{Plane, Shape},
    strided::{AddressStep, Digit, PlaneDigits},
    unit::Unit,
    word::Word,
};

const FILE: &str = "presets/layouts.toml";

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct LayoutsFile {
    engines: BTreeMap<String, EngineRow>,
    units: BTreeMap<String, UnitRow>,
    shapes: BTreeMap<String, ShapeRow>,
    preset: Vec<PresetRow>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct EngineRow {
    title: String,
    version: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct UnitRow {
    bytes: u64,
    values: Option<u64>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ShapeRow {
    num_blocks: u64,
    num_layers: u64,
    page_size: u64,
    planes: Vec<PlaneRow>,
}

#[derive(Deserialize)]
struct PlaneRow {
    name: String,
    unit: String,
    #[serde(default)]
    per_page: bool,
    /// Tokens of an entry, if there are several.
    every: Option<u64>,
    #[serde(flatten)]
    extents: BTreeMap<String, u64>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PresetRow {
    name: String,
    case: String,
    word: Option<String>,
    digits: Option<DigitsRow>,
    refused: Option<String>,
    shape: Option<String>,
    source: String,
    evidence: Evidence,
    note: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct DigitsRow {
    region_bytes: Vec<u64>,
    planes: Vec<PlaneDigitsRow>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PlaneDigitsRow {
    plane: String,
    region: u64,
    offset: u64,
    digits: Vec<DigitRow>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct DigitRow {
    axis: Axis,
    #[serde(default = "fastest")]
    low: u64,
    extent: u64,
    #[serde(default)]
    regions: u64,
    #[serde(default)]
    bytes: u64,
}

fn fastest() -> u64 {
    1
}

pub(super) fn parse(text: &str) -> Result<Vec<Preset>, LayoutError> {
    let file: LayoutsFile = toml::from_str(text).map_err(|error| broken(&error.to_string()))?;
    let mut shapes = BTreeMap::new();
    for (name, row) in &file.shapes {
        let shape = shape(row, &file.units);
        let shape = shape.map_err(|error| broken(&format!("shape {name}: {error}")))?;
        shapes.insert(name.as_str(), shape);
    }
    let mut presets: Vec<Preset> = Vec::new();
    for row in file.preset {
        let name = row.name.clone();
        let at = |problem: &str| broken(&format!("{name}: {problem}"));
        if presets.iter().any(|preset| preset.name == name) {
            return Err(at("a second row of this name"));
        }
        let engine = name.split_once(':').and_then(|(e, _)| file.engines.get(e));
        let engine = engine.ok_or_else(|| at("its engine is not in [engines]"))?;
        presets.push(preset(row, engine, &shapes).map_err(|error| at(&error.to_string()))?);
    }
    Ok(presets)
}

fn broken(problem: &str) -> LayoutError {
    PresetError::Data {
        file: FILE,
        problem: problem.to_owned(),
    }
    .into()
}

fn preset(
    row: PresetRow,
    engine: &EngineRow,
    shapes: &BTreeMap<&str, Shape>,
) -> Result<Preset, LayoutError> {
    let layout = match (row.word, row.digits, row.refused) {
        (Some(word), None, None) => PresetLayout::Word(Word::parse(&word)?),
        (None, Some(digits), None) => digits_of(digits),
        (None, None, Some(reason)) => PresetLayout::Refused(reason),
        _ => return Err(broken("give one of word, digits and refused")),
    };
    let shape = match (&row.shape, &layout) {
        (None, PresetLayout::Refused(_)) => None,
        (Some(name), PresetLayout::Word(_) | PresetLayout::Digits { .. }) => {
            let shape = shapes.get(name.as_str());
            Some(shape.ok_or_else(|| broken(&format!("no shape {name}")))?)
        }
        _ => return Err(broken("a layout has a shape, a refusal has none")),
    };
    Ok(Preset {
        name: row.name,
        engine: engine.title.clone(),
        version: engine.version.clone(),
        case: row.case,
        layout,
        shape: shape.cloned(),
        source: row.source,
        evidence: row.evidence,
        note: row.note,
    })
}

fn digits_of(row: DigitsRow) -> PresetLayout {
    let digit = |row: DigitRow| Digit {
        axis: row.axis,
        low: row.low,
        extent: row.extent,
        step: AddressStep {
            regions: row.regions,
            bytes: row.bytes,
        },
    };
    let planes = row.planes.into_iter().map(|plane| PlaneDigits {
        plane: plane.plane,
        region: plane.region,
        offset: plane.offset,
        digits: plane.digits.into_iter().map(digit).collect(),
    });
    PresetLayout::Digits {
        planes: planes.collect(),
        region_bytes: row.region_bytes,
    }
}

fn shape(row: &ShapeRow, units: &BTreeMap<String, UnitRow>) -> Result<Shape, LayoutError> {
    let mut planes = Vec::new();
    for plane in &row.planes {
        planes.push(plane_of(plane, units)?);
    }
    Shape::new(row.num_blocks, row.num_layers, row.page_size, planes)
}

fn plane_of(row: &PlaneRow, units: &BTreeMap<String, UnitRow>) -> Result<Plane, LayoutError> {
    let unit = match units.get(&row.unit) {
        Some(UnitRow {
            bytes,
            values: Some(values),
        }) => Unit::new(&row.unit, *bytes, *values)?,
        Some(UnitRow {
            bytes,
            values: None,
        }) => Unit::opaque(&row.unit, *bytes)?,
        None => Unit::named(&row.unit)
            .ok_or_else(|| broken(&format!("unit {} is not in [units]", row.unit)))?,
    };
    let mut plane = Plane::new(&row.name, unit)?;
    for (letter, &extent) in &row.extents {
        let mut letters = letter.chars();
        let (Some(axis), None) = (letters.next().and_then(Axis::new), letters.next()) else {
            return Err(broken(&format!("plane {}: {letter} is no axis", row.name)));
        };
        plane = plane.extent(axis, extent);
    }
    match (row.per_page, row.every) {
        (true, None) => Ok(plane.per_page()),
        (false, Some(tokens)) => Ok(plane.every(tokens)),
        (false, None) => Ok(plane),
        (true, Some(_)) => Err(broken(&format!(
            "plane {} has entries of a page and of tokens",
            row.name
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMALL: &str = r#"
[engines.e]
title = "E"
[units]
page = { bytes = 7 }
[shapes.s]
num_blocks = 2
num_layers = 1
page_size = 2
planes = [{ name = "k", unit = "page", per_page = true }]
[[preset]]
name = "e:x"
case = "x"
word = "L|B"
shape = "s"
source = "here"
evidence = "none"
"#;

    fn problem(old: &str, new: &str) -> String {
        assert!(SMALL.contains(old), "{old}");
        parse(&SMALL.replacen(old, new, 1)).unwrap_err().to_string()
    }

    #[test]
    fn a_row_becomes_a_preset() {
        let presets = parse(SMALL).unwrap();
        let [preset] = presets.as_slice() else {
            panic!("{presets:?}");
        };
        assert_eq!(preset.engine, "E");
        let shape = preset.shape.as_ref().unwrap();
        assert!(shape.planes()[0].unit().is_opaque());
        assert!(!shape.planes()[0].is_per_token());
    }

    #[test]
    fn broken_rows_are_named() {
        for (old, new, part) in [
            ("word = \"L|B\"", "word = \"L|B?\"", "e:x"),
            ("word = \"L|B\"", "", "one of word, digits and refused"),
            ("shape = \"s\"", "shape = \"t\"", "no shape t"),
            ("shape = \"s\"", "", "a layout has a shape"),
            ("name = \"e:x\"", "name = \"f:x\"", "[engines]"),
            ("unit = \"page\"", "unit = \"nope\"", "[units]"),
            ("per_page = true", "Hh = 2", "Hh is no axis"),
            ("evidence = \"none\"", "evidence = \"hope\"", "hope"),
            ("source = \"here\"", "sauce = \"here\"", "sauce"),
            ("bytes = 7", "bytes = 0", "0 bytes"),
        ] {
            let problem = problem(old, new);
            assert!(problem.contains(part), "{new}: {problem}");
        }
    }

    #[test]
    fn hostile_files_are_refused() {
        for text in ["", "[[preset]]", "preset = 3", "\u{0}", "[[[[[[["] {
            assert!(parse(text).is_err(), "{text:?}");
        }
        assert!(parse(&"[".repeat(100_000)).is_err());
    }
}
