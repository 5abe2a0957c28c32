"""Stages of one's own, run among those of the pipeline."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from pydantic import Field

from cai_dist.config.base import Section, StrategyPath
from cai_dist.config.stages import PREPARE, STAGES

KEY = "own_stages"
TAKEN = (PREPARE, *STAGES, "report", "logs", "endpoint", "wandb")
"""Names that other folders of a run have."""


class OwnStage(Section):
    """One stage of one's own (docs/extending.md)."""

    use: StrategyPath
    """The path of a function that does the work."""
    name: str = Field(pattern=r"^[a-z][a-z0-9_]{0,39}$")
    """Its name in the manifest, on the command line and as a folder of the run."""
    after: str
    """The stage that it follows; it runs again when the result of that one has changed."""
    args: dict[str, Any] = {}
    """Keyword arguments of the function."""


def with_own(stages: Sequence[str], own: Sequence[OwnStage]) -> tuple[str, ...]:
    """Names of all stages of a run in order: those of the pipeline, each followed by the ones that follow it. What
    follows none of them is left out."""
    names = list(stages)
    for stage in own:
        if stage.after in names:
            at = names.index(stage.after) + 1
            while at < len(names) and names[at] in {other.name for other in own if other.after == stage.after}:
                at += 1
            names.insert(at, stage.name)
    return tuple(names)


def own_stage_problems(stages: Sequence[str], own: Sequence[OwnStage]) -> Iterator[str]:
    """One line for each contradiction; `stages` are those of the pipeline."""
    seen = list(stages)
    for stage in own:
        if stage.name in TAKEN or stage.name in [other.name for other in own if other is not stage]:
            yield f"{KEY}: the name {stage.name} is taken; give each stage a name of its own"
        if stage.after not in seen:
            yield f"{KEY}: {stage.name}: after={stage.after}: must be one of {', '.join(seen)}"
        seen.append(stage.name)
