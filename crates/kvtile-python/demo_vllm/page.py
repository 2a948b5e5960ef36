"""The results as a self-contained HTML page."""

from __future__ import annotations

from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from results import Results
from table import against, is_itself, milliseconds, notes, span

HERE = Path(__file__).parent
# The style of all pages of the project.
STYLE = HERE.parents[1] / "kvtile-cli" / "src" / "output" / "page.css"


def page(results: Results) -> str:
    """The page; it escapes all text."""
    environment = Environment(
        loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    rows = results.rows()
    return environment.get_template("page.html.jinja").render(
        style=STYLE.read_text(),
        rows=rows,
        longest=max(row.high_seconds for row in rows),
        milliseconds=milliseconds,
        span=span,
        against=against,
        is_itself=is_itself,
        notes=notes(results),
    )
