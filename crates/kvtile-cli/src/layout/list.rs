//! The known layouts and models.

use std::fmt::Write as _;

use kvtile::presets::{self, Evidence, ModelCache, ModelPreset, Preset, PresetLayout};
use serde::Serialize;

use crate::{
    error::CliError,
    known,
    output::{self, Align, Screen, TextTable},
};

/// A known layout, as a report.
#[derive(Serialize)]
struct LayoutRow<'a> {
    name: &'a str,
    engine: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    version: Option<&'a str>,
    case: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    word: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    long_form: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    refused: Option<&'a str>,
    evidence: Evidence,
    source: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    note: Option<&'a str>,
}

impl LayoutRow<'_> {
    fn of(preset: &Preset) -> LayoutRow<'_> {
        LayoutRow {
            name: &preset.name,
            engine: &preset.engine,
            version: preset.version.as_deref(),
            case: &preset.case,
            word: preset.word().map(ToString::to_string),
            long_form: preset.word().map(|word| word.long_form()),
            refused: match &preset.layout {
                PresetLayout::Refused(reason) => Some(reason),
                _ => None,
            },
            evidence: preset.evidence,
            source: &preset.source,
            note: preset.note.as_deref(),
        }
    }
}

/// A known model, as a report.
#[derive(Serialize)]
struct ModelRow<'a> {
    name: &'a str,
    title: &'a str,
    layers: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    kv_heads: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    head_size: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    latent: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    rope_part: Option<u64>,
    dtype: &'a str,
    bytes_per_token: u64,
    source: &'a str,
    seen: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    note: Option<&'a str>,
}

impl ModelRow<'_> {
    fn of(model: &ModelPreset) -> Result<ModelRow<'_>, CliError> {
        let shape = model.shape(1, 1, 1, 0, &model.unit()?)?;
        let mut row = ModelRow {
            name: &model.name,
            title: &model.title,
            layers: model.layers,
            kv_heads: None,
            head_size: None,
            latent: None,
            rope_part: None,
            dtype: &model.dtype,
            bytes_per_token: shape.block_bytes()?,
            source: &model.source,
            seen: &model.seen,
            note: model.note.as_deref(),
        };
        match model.cache {
            ModelCache::Heads {
                kv_heads,
                head_size,
            } => (row.kv_heads, row.head_size) = (Some(kv_heads), Some(head_size)),
            ModelCache::Latent { latent, rope_part } => {
                (row.latent, row.rope_part) = (Some(latent), Some(rope_part));
            }
        }
        Ok(row)
    }

    fn cache(&self) -> String {
        match (self.kv_heads, self.head_size, self.latent, self.rope_part) {
            (Some(heads), Some(size), _, _) => format!("{heads} heads of {size}"),
            (_, _, Some(latent), Some(rope)) => format!("latent {latent} and rope {rope}"),
            _ => String::new(),
        }
    }
}

/// `kvtile layout list [NAME…]`.
pub(super) fn layouts(filters: &[String], json: bool) -> Result<(), CliError> {
    let all = presets::all()?;
    let wanted: Vec<LayoutRow<'_>> = all
        .iter()
        .filter(|preset| {
            let word = preset.word().map(ToString::to_string).unwrap_or_default();
            let text = format!("{} {} {}", preset.name, preset.engine, preset.case);
            filters.iter().all(|f| *f == word || holds(&text, f))
        })
        .map(LayoutRow::of)
        .collect();
    if wanted.is_empty() {
        let mut engines: Vec<&str> = all.iter().map(|preset| preset.engine.as_str()).collect();
        engines.dedup();
        return Err(nothing(filters, &engines));
    }
    if json {
        return output::print_json(&wanted);
    }
    let screen = Screen::of_stdout();
    let mut text = String::new();
    let mut engine = "";
    let mut table = table();
    for row in &wanted {
        if row.engine != engine {
            flush(&mut text, &mut table);
            engine = row.engine;
            let version = row.version.map_or(String::new(), |v| format!(" {v}"));
            let _ = writeln!(text, "{}", screen.bold(&format!("{engine}{version}")));
        }
        let preset = all.iter().find(|preset| preset.name == row.name);
        let word = preset.map(known::short).unwrap_or_default();
        table.row([row.name.to_owned(), word, mark(row.evidence).to_owned()]);
        if wanted.len() <= DETAILED {
            details(row, &mut table, &mut text, screen);
        }
    }
    flush(&mut text, &mut table);
    let _ = writeln!(
        text,
        "\n{} listed. How each is known: bytes, compared with bytes that the engine wrote; \
         strides,\ncompared with its tensors; source, read in its source; text, from \
         documentation; unknown.\n`kvtile layout NAME` explains one; `--json` has the sources.",
        wanted.len()
    );
    output::print(&text)
}

/// Up to this many layouts are listed with all details.
const DETAILED: usize = 6;

fn table() -> TextTable {
    TextTable::bare([Align::Left, Align::Left, Align::Left])
}

fn flush(text: &mut String, rows: &mut TextTable) {
    text.push_str(&std::mem::replace(rows, table()).text());
}

fn details(row: &LayoutRow<'_>, rows: &mut TextTable, text: &mut String, screen: Screen) {
    flush(text, rows);
    let lines = [
        Some(row.case),
        row.long_form.as_deref(),
        row.refused,
        Some(row.source),
        row.note,
    ];
    for line in lines.into_iter().flatten() {
        let _ = writeln!(text, "      {}", screen.dim(line));
    }
}

fn mark(evidence: Evidence) -> &'static str {
    match evidence {
        Evidence::Run => "bytes",
        Evidence::Strides => "strides",
        Evidence::Read => "source",
        Evidence::Excerpt => "text",
        _ => "unknown",
    }
}

/// `kvtile layout models [NAME…]`.
pub(super) fn models(filters: &[String], json: bool) -> Result<(), CliError> {
    let all = presets::models()?;
    let wanted = all
        .iter()
        .filter(|model| {
            let text = format!("{} {}", model.name, model.title);
            filters.iter().all(|filter| holds(&text, filter))
        })
        .map(ModelRow::of)
        .collect::<Result<Vec<_>, _>>()?;
    if wanted.is_empty() {
        let names: Vec<&str> = all.iter().map(|model| model.name.as_str()).collect();
        return Err(nothing(filters, &names));
    }
    if json {
        return output::print_json(&wanted);
    }
    let mut table = TextTable::new([
        ("model", Align::Left),
        ("layers", Align::Right),
        ("cache", Align::Left),
        ("dtype", Align::Left),
        ("bytes/token", Align::Right),
    ]);
    for row in &wanted {
        table.row([
            row.name.to_owned(),
            row.layers.to_string(),
            row.cache(),
            row.dtype.to_owned(),
            output::thousands(row.bytes_per_token),
        ]);
    }
    let mut text = table.text();
    text.push_str("\nUse one with --model NAME; `--json` has the sources of the numbers.\n");
    output::print(&text)
}

fn holds(text: &str, filter: &str) -> bool {
    let lower = text.to_lowercase();
    lower.contains(&filter.to_lowercase())
}

fn nothing(filters: &[String], known: &[&str]) -> CliError {
    CliError::NothingLeft {
        filter: filters.join(" "),
        known: known.join(", "),
    }
}
