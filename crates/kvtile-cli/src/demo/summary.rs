//! The end of the demonstration: both processes side by side, the refusal, and what to think of it.

use kvtile_demo::demonstration::DemoReport;

use super::page::time;
use crate::output::{Align, Screen, Table, count, thousands};

/// Table, refusal and remarks.
pub(super) fn text(report: &DemoReport, screen: Screen) -> String {
    let equal = format!(
        "\n  {} ({} of {}, greedy, against the run that never left memory)\n",
        screen.bold("tokens equal: yes"),
        report.comparison.tokens_compared,
        report.comparison.tokens_compared,
    );
    [
        "\n",
        &table(report),
        &equal,
        &refusal(report, screen),
        &remarks(report, screen),
    ]
    .concat()
}

fn table(report: &DemoReport) -> String {
    let (first, second, comparison) = (&report.first, &report.second, &report.comparison);
    let mut table = Table::new([
        ("", Align::Left),
        ("cold: prefill", Align::Right),
        ("warm: from the file", Align::Right),
    ]);
    let speed = |speed: f64| format!("{speed:.2} GB/s");
    let rows = [
        (
            "time to first token",
            time(comparison.cold_seconds),
            time(comparison.warm_seconds),
        ),
        (
            "ratio",
            String::new(),
            format!("{:.1} times faster", comparison.ratio),
        ),
        (
            "tokens computed for it",
            thousands(first.prefill.tokens as u64),
            thousands(second.computed_tokens as u64),
        ),
        (
            "before it: model, blocks",
            time(first.model.seconds + first.allocate.seconds),
            time(second.model.seconds + second.allocate.seconds),
        ),
        (
            "bytes moved",
            format!("{} saved", count(comparison.saved_bytes)),
            format!("{} restored", count(comparison.restored_bytes)),
        ),
        (
            "speed",
            speed(comparison.save_gb_per_second),
            speed(comparison.restore_gb_per_second),
        ),
    ];
    for (name, cold, warm) in rows {
        table.row([name.to_owned(), cold, warm]);
    }
    table.text()
}

fn refusal(report: &DemoReport, screen: Screen) -> String {
    let refusal = &report.refusal;
    format!(
        "\n{}\n  refused: {} is {} in that model, {} in the file\n",
        screen.bold("The same file, the same model with another RoPE base"),
        refusal.field,
        refusal.asked,
        refusal.stored,
    )
}

fn remarks(report: &DemoReport, screen: Screen) -> String {
    let mut lines = vec![
        "Saving includes waiting for the disk; the file was read from the page cache,",
        "as it had just been written. The last token of the prompt is computed again:",
        "logits are not stored.",
    ];
    if report.first.model.tiny {
        lines.push("The model was the tiny one: its words are noise, the rest is real.");
    }
    let mut text = String::from("\n");
    for line in lines {
        text.push_str(&screen.dim(&format!("  {line}\n")));
    }
    if let Some(folder) = &report.kept {
        let file = report.first.save.file.display();
        let again = folder.join("resume.json");
        text.push_str(&format!("\n  kept: {file}\n"));
        text.push_str(&format!("  look into it:      kvtile inspect {file}\n"));
        text.push_str(&format!(
            "  continue again:    kvtile demo-resume < {}\n",
            again.display()
        ));
    }
    text
}
