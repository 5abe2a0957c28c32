"""What is set aside for measuring stays out of training, whichever file it comes from."""

from __future__ import annotations

from collections.abc import Sequence

from cai_dist.data.prompts import opening
from cai_dist.types import Comparison, Prompt


def without_held_out(
    prompts: Sequence[Prompt], comparisons: Sequence[Comparison]
) -> tuple[list[Prompt], list[Comparison]]:
    """Prompts and comparisons without what opens like a held-out prompt of either kind or a held-out comparison; what
    is held out stays.

    Each file keeps its own held-out part apart; this is for files that share conversations (or are the same file).
    """
    aside = held_out_openings(prompts, comparisons)
    kept = [p for p in prompts if p.split == "heldout" or opening(p) not in aside]
    return kept, [c for c in comparisons if c.prompt.split == "heldout" or opening(c.prompt) not in aside]


def held_out_openings(prompts: Sequence[Prompt], comparisons: Sequence[Comparison]) -> set[str]:
    """Openings of the conversations that nothing may learn from."""
    return {opening(p) for p in (*prompts, *(c.prompt for c in comparisons)) if p.split == "heldout"}
