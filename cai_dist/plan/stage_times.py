"""How long the stages take that are not PPO: seconds of one step of a training, and of a thousand answers."""

from __future__ import annotations

from collections.abc import Mapping

from cai_dist.config.run import RunConfig
from cai_dist.config.stages import DPO, GENERATING, SFT
from cai_dist.plan.passes import Tokens
from cai_dist.plan.rates import Rates, decoding_seconds, forward
from cai_dist.plan.roles import PlannedStage
from cai_dist.plan.shapes import Shape

ANSWERS = 1000
"""Of the figure of a stage that generates."""


def step_seconds(stage: PlannedStage, shape: Shape, tokens: Tokens, rates: Rates) -> float:
    """Seconds of one optimiser step of a stage that trains one model. A comparison is two sequences; logits are those
    of the response."""
    split = stage.splits[0]
    sequences = split.batch * (1 if stage.name == SFT else 2)
    rows = sequences * tokens.wanted if stage.name in (SFT, DPO) else 0
    work = 3.0 * forward(shape, sequences * tokens.sequence, tokens.sequence, rows)
    return work / (rates.update if rates.per == "all" else split.ranks * split.together * rates.update)


def answers_seconds(
    config: RunConfig, stage: PlannedStage, shapes: Mapping[str, Shape], tokens: Tokens, rates: Rates
) -> float:
    """Seconds for a thousand answers of the assistant, over all engines of the stage."""
    shape, engines = shapes["assistant"], stage.workers[0].count // config.engine.processes
    if rates.per == "all":
        return forward(shape, ANSWERS * tokens.sequence, tokens.sequence, ANSWERS * tokens.wanted) / rates.rollout
    return decoding_seconds(config, shape, tokens, -(-ANSWERS // engines), rates)


def longest_answer(config: RunConfig) -> int:
    """New tokens of the stage that asks for most of them."""
    return max(getattr(config, name).sampling.max_new_tokens for name in GENERATING if name in config.stages)
