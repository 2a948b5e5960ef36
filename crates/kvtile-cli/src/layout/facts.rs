//! The report on one layout.

use std::fmt::Write as _;

use kvtile::{
    layout::{Digit, Shape, StridedLayout, Word},
    presets::{Evidence, Preset, RequestedLayout},
};
use serde::Serialize;

use super::words::{axis_text, nesting, shape_text};
use crate::{
    draw::{self, DrawingSide, NestingNode},
    output::{Align, Screen, TextTable, bytes, count, thousands},
};

/// One layout for one shape, as a report.
#[derive(Debug, Serialize)]
pub(crate) struct LayoutFacts {
    /// The facts of the preset, where the user gave its name.
    #[serde(flatten)]
    known: Option<PresetFacts>,
    /// `None` for explicit strides.
    word: Option<String>,
    long_form: String,
    shape: Shape,
    alignment: u64,
    regions: RegionFacts,
    bytes: LayoutBytes,
    contiguous: ContiguousFacts,
    planes: Vec<PlaneFacts>,
}

/// The origin of a known layout.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct PresetFacts {
    pub(crate) name: String,
    case: String,
    evidence: Evidence,
    source: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    note: Option<String>,
}

impl PresetFacts {
    /// The facts of a layout that the user gave by name.
    pub(crate) fn asked(asked: &RequestedLayout) -> Option<PresetFacts> {
        match asked {
            RequestedLayout::Word(_) => None,
            RequestedLayout::Known(preset) => Some(PresetFacts::of(preset)),
        }
    }

    /// The facts of a preset.
    fn of(preset: &Preset) -> PresetFacts {
        PresetFacts {
            name: preset.name.clone(),
            case: preset.case.clone(),
            evidence: preset.evidence,
            source: preset.source.clone(),
            note: preset.note.clone(),
        }
    }
}

/// How many regions there are.
#[derive(Debug, Serialize)]
struct RegionFacts {
    count: usize,
    /// Bytes of the largest.
    bytes_max: u64,
    /// Bytes of the smallest.
    bytes_min: u64,
}

/// All bytes of the layout.
#[derive(Debug, Serialize)]
struct LayoutBytes {
    total: u64,
    payload: u64,
    padding: u64,
    payload_per_block: u64,
}

/// The contiguous parts.
#[derive(Debug, Serialize)]
struct ContiguousFacts {
    /// A block with all layers and planes.
    block: bool,
    /// One layer of a block with all planes.
    layer_of_block: bool,
    /// One plane of one layer of a block, for each plane.
    plane_of_layer: Vec<bool>,
}

/// One plane and its digits, slowest first.
#[derive(Debug, Serialize)]
struct PlaneFacts {
    plane: String,
    unit: String,
    unit_bytes: u64,
    region: u64,
    offset_bytes: u64,
    digits: Vec<Digit>,
}

impl LayoutFacts {
    /// The facts of `layout`. Sizes fit, because the layout exists.
    pub(crate) fn of(layout: &StridedLayout, known: Option<PresetFacts>) -> LayoutFacts {
        let regions = layout.region_bytes();
        let total: u64 = regions.iter().sum();
        let shape = layout.shape();
        let payload = shape.total_bytes().unwrap_or(total);
        let planes = layout.planes().map(|(plane, piece)| {
            let mut digits = piece.digits().to_vec();
            digits.sort_by_key(|digit| std::cmp::Reverse(digit.step));
            PlaneFacts {
                plane: plane.name().to_string(),
                unit: plane.unit().to_string(),
                unit_bytes: plane.unit().bytes(),
                region: piece.region(),
                offset_bytes: piece.offset(),
                digits,
            }
        });
        let plane_of_layer = (0..shape.planes().len())
            .map(|plane| layout.plane_span(0, 0, plane).is_ok())
            .collect();
        LayoutFacts {
            known,
            word: layout.word().map(ToString::to_string),
            long_form: layout
                .word()
                .map_or_else(|| "explicit strides".to_owned(), |word| word.long_form()),
            shape: shape.clone(),
            alignment: layout.alignment(),
            regions: RegionFacts {
                count: regions.len(),
                bytes_max: regions.iter().copied().max().unwrap_or(0),
                bytes_min: regions.iter().copied().min().unwrap_or(0),
            },
            bytes: LayoutBytes {
                total,
                payload,
                padding: total.saturating_sub(payload),
                payload_per_block: shape.block_bytes().unwrap_or(0),
            },
            contiguous: ContiguousFacts {
                block: layout.blocks_are_contiguous(),
                layer_of_block: layout.page_span(0, 0).is_ok(),
                plane_of_layer,
            },
            planes: planes.collect(),
        }
    }

    /// The facts under the user's word.
    pub(crate) fn called(self, word: &Word) -> LayoutFacts {
        LayoutFacts {
            word: Some(word.to_string()),
            long_form: word.long_form(),
            ..self
        }
    }

    /// One side of a drawing.
    pub(crate) fn side<'a>(&self, node: &'a NestingNode) -> DrawingSide<'a> {
        let title = match &self.known {
            Some(known) => format!("{}   {}", self.word(), known.name),
            None => self.word().to_owned(),
        };
        DrawingSide {
            title,
            notes: vec![
                self.long_form.clone(),
                format!("{}; {}", shape_text(&self.shape), self.regions_text()),
            ],
            node,
        }
    }

    /// The report as text.
    pub(crate) fn text(&self, node: &NestingNode, screen: Screen) -> String {
        let mut text = self.heading(screen);
        let mut facts = TextTable::bare([Align::Left, Align::Left]);
        let mut fact = |name: &str, value: String| facts.row([name.to_owned(), value]);
        if let Some(known) = &self.known {
            fact("is", known.case.clone());
            fact("known", known.evidence.to_string());
            fact("source", known.source.clone());
            known
                .note
                .iter()
                .for_each(|note| fact("note", note.clone()));
        }
        fact("holds", shape_text(&self.shape));
        fact("regions", self.regions_text());
        fact("block", bytes(self.bytes.payload_per_block));
        fact("padding", self.padding_text());
        fact("contiguous", self.contiguous_text());
        text.push_str(&facts.text());
        let _ = writeln!(text, "\n{}", screen.bold("Nesting, slowest first"));
        text.push_str(&nesting(node, &self.plane_names()));
        let _ = writeln!(text, "\n{}", screen.bold("Digits"));
        text.push_str(&self.digits_table());
        let _ = writeln!(
            text,
            "\n{} {}",
            screen.bold("Memory from left to right"),
            screen.dim("(each row shows the first cell above it)")
        );
        text.push_str(&draw::picture(node, screen));
        text
    }

    /// Word, name and long form.
    pub(crate) fn heading(&self, screen: Screen) -> String {
        let mut text = screen.bold(self.word());
        if let Some(known) = &self.known {
            let _ = write!(text, "   {}", screen.dim(&known.name));
        }
        let _ = writeln!(text, "\n  {}\n", self.long_form);
        text
    }

    fn word(&self) -> &str {
        self.word.as_deref().unwrap_or("(no word)")
    }

    /// Names of the planes.
    pub(crate) fn plane_names(&self) -> Vec<String> {
        self.planes
            .iter()
            .map(|plane| plane.plane.clone())
            .collect()
    }

    fn regions_text(&self) -> String {
        let RegionFacts {
            count: many,
            bytes_max,
            bytes_min,
        } = self.regions;
        match many {
            1 => format!("1 region of {}", bytes(bytes_max)),
            _ if bytes_max == bytes_min => format!(
                "{} regions of {}, {} in all",
                thousands(many as u64),
                bytes(bytes_max),
                count(self.bytes.total)
            ),
            _ => format!(
                "{} regions of {} to {}, {} in all",
                thousands(many as u64),
                count(bytes_min),
                count(bytes_max),
                count(self.bytes.total)
            ),
        }
    }

    fn padding_text(&self) -> String {
        match self.bytes.padding {
            0 => "none".to_owned(),
            padding => {
                let permille = u128::from(padding) * 1000 / u128::from(self.bytes.total.max(1));
                format!("{}, {}.{} %", bytes(padding), permille / 10, permille % 10)
            }
        }
    }

    fn contiguous_text(&self) -> String {
        if self.contiguous.block {
            return "each block, with all layers and planes".to_owned();
        }
        if self.contiguous.layer_of_block {
            return "each layer of a block, with all planes".to_owned();
        }
        let names = self.planes.iter().zip(&self.contiguous.plane_of_layer);
        let whole: Vec<&str> = names
            .filter_map(|(plane, whole)| whole.then_some(plane.plane.as_str()))
            .collect();
        if whole.is_empty() {
            return "nothing as large as one plane of one layer of a block".to_owned();
        }
        format!(
            "each layer of a block, plane by plane ({})",
            whole.join(", ")
        )
    }

    fn digits_table(&self) -> String {
        let mut text = String::new();
        for plane in &self.planes {
            let mut table = TextTable::bare([Align::Left, Align::Right, Align::Right, Align::Left]);
            for digit in &plane.digits {
                let (stride, kind) = match digit.step.regions {
                    0 => (thousands(digit.step.bytes), "bytes"),
                    1 => ("1".to_owned(), "region"),
                    regions => (thousands(regions), "regions"),
                };
                table.row([
                    format!("  {}", axis_text(digit)),
                    format!("{} every", thousands(digit.extent)),
                    stride,
                    kind.to_owned(),
                ]);
            }
            let _ = writeln!(
                text,
                "  {}: units of {}, from byte {} of region {}",
                plane.plane,
                plane.unit,
                thousands(plane.offset_bytes),
                plane.region
            );
            text.push_str(&table.text());
        }
        text
    }
}
