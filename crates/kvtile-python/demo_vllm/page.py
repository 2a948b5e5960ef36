"""What was measured, as a page that stands alone."""

from __future__ import annotations

from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from results import Results
from table import against, is_itself, milliseconds, notes, span

HERE = Path(__file__).parent
# The style that all pages of the project have.
STYLE = HERE.parents[1] / "kvtile-cli" / "src" / "output" / "page.css"


def page(results: Results) -> str:
    """The page. What anybody wrote stays text."""
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
