"""What the labels look like, over all and under each principle: do both orders agree, does a place win, how sure is the
feedback model?"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from statistics import fmean

from cai_dist.losses.calibration import same_side
from cai_dist.stages.ai_feedback.labelling import PairLabel

Statistics = dict[str, float | int | str | None]


def principle_statistics(ids: Sequence[str], asked: Sequence[tuple[Sequence[str], PairLabel]]) -> list[Statistics]:
    """One entry for each principle of `ids`, in that order, from (ids of the principles asked, label) of each pair.

    `n` pairs; `order_agreement`, the share where both orders prefer the same answer, and `position_bias`, half the mean
    excess of p(first place), both None where one order was asked; `option_mass`, the mean probability of both options
    together; `entropy` in bits and `mean_confidence` max(p, 1 - p), of the mean over both orders, before any clamp;
    None where n is 0.
    """
    found: dict[str, list[tuple[float, float | None, float]]] = defaultdict(list)
    masses: dict[str, list[float]] = defaultdict(list)
    for names, label in asked:
        for k, name in enumerate(names):
            second = label.second[k] if label.second else None
            found[name].append((label.first[k], second, label.under(k)))
            masses[name] += label.mass[k : k + 1]
    return [{"id": name, **_summary(found[name]), "option_mass": mean(masses[name])} for name in ids]


def mean(values: Sequence[float]) -> float | None:
    """The mean; None of nothing."""
    return fmean(values) if values else None


def _summary(asked: Sequence[tuple[float, float | None, float]]) -> Statistics:
    both = [(first, second) for first, second, _ in asked if second is not None]
    return {
        "n": len(asked),
        "order_agreement": fmean(agree(a, b) for a, b in both) if both else None,
        "position_bias": fmean(a - b for a, b in both) / 2 if both else None,
        "entropy": fmean(entropy(p) for _, _, p in asked) if asked else None,
        "mean_confidence": fmean(max(p, 1.0 - p) for _, _, p in asked) if asked else None,
    }


def agree(first: float, second: float) -> float:
    """1 where p(A) in both orders prefers the same answer or none, 0 where not, 1/2 where one of them is a tie."""
    return same_side(first - 0.5, second - 0.5)


def entropy(p: float) -> float:
    """Entropy of a choice with probability `p`, in bits: 0 for a sure one, 1 for a tie."""
    return -sum(q * math.log2(q) for q in (p, 1.0 - p) if q > 0.0)
