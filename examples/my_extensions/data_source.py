"""A data source of one's own: rows as a file of JSON lines would hold them, the same ones every time.

data: {helpful: {source: "my_extensions.data_source:rows"}}
"""

from __future__ import annotations

from collections.abc import Iterator

MATERIALS = ("wood", "iron", "glass", "paper", "wool", "wax")
KINDS = ("rope", "lamp", "glue", "paint", "soap", "torch")


def rows() -> Iterator[dict[str, str]]:
    """A question for each pair of words."""
    for kind in KINDS:
        for material in MATERIALS:
            yield {"prompt": f"how to make {kind} of {material} ?"}
