"""The curves of a report: every number that a stage logged and that moved, in groups by what it is about."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any

from cai_dist.config.stages import EVALUATE
from cai_dist.report.charts import MAX_POINTS, line_chart, number
from cai_dist.report.evaluation import is_number

GROUPS: tuple[tuple[str, str], ...] = (
    ("memory", r"(_mb|_bytes|_mib)$|memory"),
    ("time", r"seconds|^idle_|_per_second$"),
    ("sampler against trainer", r"^(mismatch|importance|weight_version|staleness|lag)"),
    ("KL and distance from the reference", r"(^|_)kl(_|$)|log_ratio"),
    ("score and reward", r"^(score|reward|accuracy|margin|preference)|win"),
    ("entropy", r"entropy"),
    ("clipping", r"clip|ratio|early_stop|_steps$|skipped"),
    ("losses", r"loss|error|explained_variance|ece$|^value_(?!lr|grad)"),
    ("answers and their length", r"length|tokens|truncated|logprob|answers|parse"),
    ("steps and gradients", r"grad_norm|(^|_)lr$"),
)
"""(title, names that belong there). The first that a name fits has it: `score_length_slope` is a score, and
`policy_clip_fraction` is no loss."""
ORDER = (
    "score and reward",
    "KL and distance from the reference",
    "losses",
    "answers and their length",
    "clipping",
    "sampler against trainer",
    "entropy",
    "steps and gradients",
    "other",
    "time",
    "memory",
)
"""As a reader asks: is it learning, at what price, is the training in order; what it costs comes last, folded."""
FOLDED = ("time", "memory")
FIRST = ("score", "reward", "accuracy", "kl_per_response", "loss", "policy_loss", "response_length")
"""Names that come first in their group; the others by the alphabet."""

Points = list[tuple[float, float]]


def curves(lines: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """For each stage with a number that was logged at two steps or more and moved: a chart of each of these, and in one
    line the numbers that stayed as they were. Nothing is left out but the evaluation, which has a part of its own."""
    for stage, metrics in _series(lines).items():
        moving = {name: points for name, points in metrics.items() if len({y for _, y in points}) > 1}
        if not moving:
            continue
        yield f"<h2>{escape(stage)}</h2>"
        for title in ORDER:
            names = sorted(name for name in moving if group_of(name) == title)
            names.sort(key=lambda name: FIRST.index(name) if name in FIRST else len(FIRST))
            if names:
                charts = "".join(line_chart(name, moving[name]) for name in names)
                yield _part(title, f'<div class="charts">{charts}</div>', len(names), len(moving) > len(names))
        if still := {name: points[-1][1] for name, points in metrics.items() if name not in moving}:
            told = ", ".join(f"{escape(name)} {number(value)}" for name, value in sorted(still.items()))
            yield f'<p class="soft">Without a curve, since they did not change: {told}</p>'
        if (longest := max(map(len, moving.values()))) > MAX_POINTS:
            yield f'<p class="soft">Of {longest} steps, curves show means of runs of {longest / MAX_POINTS:.3g}.</p>'


def group_of(name: str) -> str:
    """The title of the group that a number belongs to."""
    return next((title for title, pattern in GROUPS if re.search(pattern, name)), "other")


def _series(lines: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Points]]:
    """Stage -> name -> points by step. Several lines of one step (shards) are one point: their mean."""
    found: dict[str, dict[str, dict[int, list[float]]]] = {}
    for line in lines:
        if line["stage"].startswith(EVALUATE):
            continue
        for name, value in line.items():
            if name not in ("stage", "step", "time") and is_number(value):
                found.setdefault(line["stage"], {}).setdefault(name, {}).setdefault(line["step"], []).append(value)
    return {
        stage: {
            name: [(float(step), sum(values) / len(values)) for step, values in sorted(steps.items())]
            for name, steps in metrics.items()
        }
        for stage, metrics in found.items()
    }


def _part(title: str, charts: str, count: int, with_title: bool) -> str:
    if not with_title:
        return charts
    if title in FOLDED:
        return f"<details><summary>{title} ({count})</summary>{charts}</details>"
    return f"<h3>{title}</h3>{charts}"
