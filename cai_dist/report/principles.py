"""The report's table of the comparison principles: `feedback/principles.json`."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape
from typing import Any

from cai_dist.report.evaluation import is_number

COLUMNS = {
    "n": "pairs",
    "option_mass": "mass of the options",
    "order_agreement": "both orders agree",
    "position_bias": "position bias",
    "entropy": "entropy (bits)",
    "mean_confidence": "mean confidence",
}


def principles(found: Any) -> Iterator[str]:
    """The table, or nothing where the stage has not run."""
    entries = found.get("principles") if isinstance(found, dict) else None
    if not isinstance(entries, list) or not entries:
        return
    head = "".join(f'<th scope="col">{name}</th>' for name in COLUMNS.values())
    rows = "".join(
        f'<tr><th scope="row">{escape(str(entry.get("id")))}</th>'
        + "".join(f"<td>{_number(entry.get(key))}</td>" for key in COLUMNS)
        + "</tr>"
        for entry in entries
        if isinstance(entry, dict)
    )
    yield "<h2>Labels by principle</h2>"
    yield f'<div class="wide"><table><thead><tr><td></td>{head}</tr></thead><tbody>{rows}</tbody></table></div>'


def _number(value: Any) -> str:
    if not is_number(value):
        return "–"
    return str(value) if isinstance(value, int) else f"{value:.3f}"
