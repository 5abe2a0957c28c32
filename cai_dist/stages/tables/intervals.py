"""Numbers with their intervals. Several observations of one prompt, or of one conversation at several lengths, are no
independent evidence: as means (`by_prompt`) they count as one, pooled (`pooled_proportion`) they widen the interval by
as much as they depend on each other."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from statistics import fmean

from cai_dist.data.prompts import opening
from cai_dist.losses.calibration import bootstrap_interval, clustered_interval, wilson_interval
from cai_dist.types import Prompt

Figure = dict[str, float | int | None]
"""`value` with its 95% interval `low`..`high` over `n` prompts; value None where n is 0."""


def by_prompt(found: Iterable[tuple[Prompt, float]]) -> list[float]:
    """The mean of each conversation's values, in the order of their first value."""
    return [fmean(values) for values in clusters(found)]


def clusters(found: Iterable[tuple[Prompt, float]]) -> list[list[float]]:
    """The values of each conversation, in the order of their first value: prompts with the same opening are one."""
    values: dict[str, list[float]] = defaultdict(list)
    for prompt, value in found:
        values[opening(prompt)].append(value)
    return list(values.values())


def pooled_proportion(found: Iterable[tuple[Prompt, float]]) -> Figure:
    """Mean share of hits over all observations, each with the same weight, with an interval that allows for several of
    one prompt; `n` is the number of prompts."""
    apart = clusters(found)
    if not apart:
        return {"value": None, "low": None, "high": None, "n": 0}
    low, high = clustered_interval(apart)
    return {"value": fmean(share for own in apart for share in own), "low": low, "high": high, "n": len(apart)}


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
