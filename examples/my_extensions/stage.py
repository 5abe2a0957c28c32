"""A stage of one's own: how long the answers are that SL-CAI learned from, by round of revision.

own_stages: [{use: "my_extensions.stage:answer_lengths", name: lengths, after: revise}]
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from statistics import fmean

from cai_dist.stages.context import RunContext
from cai_dist.stages.tables.records import read_revisions
from cai_dist.tracking.atomic import write_json


def answer_lengths(ctx: RunContext, unit: str = "words") -> list[Path]:
    """Write the mean length of an answer of each round, in words or in characters."""
    lengths: dict[int, list[int]] = defaultdict(list)
    for revision in read_revisions(ctx.paths.revisions):
        lengths[revision.round].append(len(revision.response.split() if unit == "words" else revision.response))
    means = {str(number): fmean(found) for number, found in sorted(lengths.items())}
    ctx.log("lengths", 0, **{f"round_{number}": mean for number, mean in means.items()})
    target = ctx.folder("lengths") / "lengths.json"
    write_json(target, {"unit": unit, "means": means})
    return [target]
