"""The results as a table for a terminal."""

from __future__ import annotations

from results import Results, Row
from rich import box
from rich.console import Console
from rich.table import Table

BAR = 9
COLOURS = {"computed": "red", "own": "bright_black", "host": "green", "disk": "blue", "files": "yellow"}


def milliseconds(seconds: float) -> str:
    """A readable time."""
    return f"{seconds:.2f} s" if seconds >= 1 else f"{seconds * 1e3:.0f} ms"


def span(row: Row) -> str:
    """The range from the fastest round to the slowest."""
    if row.high_seconds >= 1:
        return f"{row.low_seconds:.2f}–{row.high_seconds:.2f} s"
    return f"{row.low_seconds * 1e3:.0f}–{row.high_seconds * 1e3:.0f} ms"


def against(row: Row) -> str:
    """The name of a ratio's baseline."""
    return {"cold": "no connector", "restarted": "no tier"}.get(row.way.against[1], "vLLM's own cache")


def is_itself(row: Row) -> bool:
    """Whether a row is a baseline."""
    return (row.way.engine, row.way.state) == row.way.against


def show(console: Console, results: Results) -> None:
    """Prints the table, with bars."""
    rows = results.rows()
    longest = max(row.seconds for row in rows)
    table = Table(title="Time to first token, by where the prompt's KV comes from", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.title_justify = "left"
    table.add_column("", no_wrap=True)
    table.add_column("", no_wrap=True)
    for name in ("median", "range", "ratio", "decoding"):
        table.add_column(name, justify="right", no_wrap=True)
    before = None
    for row in rows:
        if before is not None and before != against(row):
            table.add_section()
        before = against(row)
        bar = "█" * max(1, round(row.seconds / longest * BAR))
        table.add_row(
            row.way.title,
            f"[{COLOURS[row.way.source]}]{bar}",
            milliseconds(row.seconds),
            span(row),
            "1" if is_itself(row) else f"{row.ratio:.2f}",
            f"{row.tokens_per_second:.1f}/s" if row.tokens_per_second else "",
        )
    console.print()
    console.print(table)
    for note in notes(results):
        console.print(note, style="bright_black", highlight=False)


def notes(results: Results) -> list[str]:
    """Notes on how the figures were measured."""
    told = results.told
    versions = ", ".join(f"{name} {version}" for name, version in results.versions.items())
    ratio = results.tiers_ratio()
    if ratio is not None:
        baselines = (
            "Ratios: above against no connector, below against an engine without a tier in the same process, medians of "
            f"the ratios of each prompt. kvtile's tier over vLLM's fs tier: {ratio:.2f}. Both read with direct I/O where "
            "the disk has it; vLLM's tier verifies nothing."
        )
    else:
        baselines = (
            "Ratios: above against no connector, below against vLLM's own cache; medians of the ratios of each prompt, in "
            "the same process. kvtile reads its disk with direct I/O; the ExampleConnector's files are in the page cache."
        )
    return [
        f"Prompts: {told['rounds']} of {told['prompt_tokens']} tokens, with answers of {told['answer_tokens']}; every engine "
        "answered every prompt, in turns. All answers to a prompt have the same tokens.",
        baselines,
        f"{results.machine}; {versions}.",
    ]
