"""Numbers of the evaluation with their intervals. Several answers to one prompt are no independent evidence: they count
as one, by their mean."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from statistics import fmean

from cai_dist.losses.calibration import bootstrap_interval, wilson_interval
from cai_dist.types import Prompt

Figure = dict[str, float | int | None]
"""`value` with its 95% interval `low`..`high` over `n` prompts; value None where n is 0."""


def by_prompt(found: Iterable[tuple[Prompt, float]]) -> list[float]:
    """The mean of each prompt's values, prompts in the order of their first value."""
    values: dict[str, list[float]] = defaultdict(list)
    for prompt, value in found:
        values[prompt.id].append(value)
    return [fmean(v) for v in values.values()]


def proportion(shares: Sequence[float]) -> Figure:
    """Mean share of hits, one share a prompt, with its Wilson interval."""
    if not shares:
        return {"value": None, "low": None, "high": None, "n": 0}
    low, high = wilson_interval(math.fsum(shares), len(shares))
    return {"value": fmean(shares), "low": low, "high": high, "n": len(shares)}


def mean_figure(values: Sequence[float]) -> Figure:
    """Mean with its bootstrap interval."""
    if not values:
        return {"value": None, "low": None, "high": None, "n": 0}
    low, high = bootstrap_interval(values)
    return {"value": fmean(values), "low": low, "high": high, "n": len(values)}
