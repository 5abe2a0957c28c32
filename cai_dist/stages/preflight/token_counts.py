"""Whether the tables of `prepare` hold what later stages will want of them, hours from now."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from cai_dist.config.run import RunConfig
from cai_dist.config.stages import EVALUATE, FEEDBACK, PPO, PREFERENCE, REVISE
from cai_dist.data.chat import ChatFormat
from cai_dist.errors import DataError
from cai_dist.stages.context import RunContext
from cai_dist.stages.execution.chat_format import chat_format
from cai_dist.stages.tables.prompts import given_prompts, heldout_prompts
from cai_dist.stages.tables.records import read_comparisons
from cai_dist.types import Prompt


def check_tables(ctx: RunContext, paths: Mapping[str, str]) -> None:
    """Look ahead with the models in `paths` (role -> folder or hub name): prompts that leave room for answers, human
    comparisons to mix in. Warns of what may become short. Raises DataError, a line each, for what will be missing."""
    chats = {role: chat_format(ctx, path) for role, path in paths.items() if role != "feedback"}
    prompts = {kind: given_prompts(ctx, kind) for kind in ("red_team", "helpful")} | {"held-out": heldout_prompts(ctx)}
    problems = [
        line
        for stage, role, kind in _askers(ctx.config)
        if (line := room_problem(ctx.config, stage, kind, chats[role], prompts[kind]))
    ]
    human = sum(x.comparison.prompt.split == "train" for x in read_comparisons(ctx.paths.human))
    if line := few_comparisons(ctx.config, len(prompts["red_team"]) + ctx.config.expand.prompts, human):
        if human:
            ctx.console.warn(line)
        else:
            problems.append(line)
    if problems:
        raise DataError("\n".join(problems))


def _askers(config: RunConfig) -> Iterator[tuple[str, str, str]]:
    """(stage, role of the model whose tokens count, kind of prompt) of everything that answers prompts."""
    yield REVISE, "assistant", "red_team"
    yield FEEDBACK, "pretrained", "red_team"
    if PPO in config.stages and config.ppo.helpful_fraction < 1:
        yield PPO, "pretrained", "red_team"
    if PPO in config.stages and config.ppo.helpful_fraction > 0:
        yield PPO, "pretrained", "helpful"
    yield EVALUATE, "pretrained", "held-out"


def room_problem(config: RunConfig, stage: str, kind: str, chat: ChatFormat, prompts: Sequence[Prompt]) -> str | None:
    """One line where no prompt leaves room for the answers of `stage`; None where one does, or where there are none."""
    new, context, shortest = getattr(config, stage).sampling.max_new_tokens, config.models.context, None
    # In order of their length in characters, so that as a rule the first one settles it.
    for prompt in sorted(prompts, key=lambda p: sum(len(turn.text) for turn in p.turns)):
        tokens = len(chat.prompt_ids(prompt.turns))
        if tokens + new <= context:
            return None
        shortest = tokens if shortest is None else min(shortest, tokens)
    if shortest is None:
        return None
    return (
        f"{stage}.sampling.max_new_tokens={new}: none of {len(prompts)} {kind} prompts leaves room for that in "
        f"models.context={context} (the shortest has {shortest} tokens); lower it or raise the context"
    )


def few_comparisons(config: RunConfig, prompts: int, human: int) -> str | None:
    """One line where `human` comparisons are too few for the share that is wanted even if half of the pairs of answers
    to `prompts` prompts get no label (answers may be equal, or not readable); else None."""
    learner = config.aligned.learner
    fraction = getattr(config, learner).helpful_fraction
    used = config.preference.label_fraction if learner == PREFERENCE else 1.0
    labelled = round(prompts * config.feedback.pairs_per_prompt * used)
    wanted = round(labelled * fraction / (1.0 - fraction))
    if human >= wanted / 2:
        return None
    return (
        f"{learner}.helpful_fraction={fraction:g}: asks for up to {wanted} human comparisons beside up to {labelled} "
        f"of the feedback model, and there are {human}; set it to {int(100 * human / (human + labelled)) / 100:g}, "
        "give more in data.helpful_comparisons, or lower feedback.pairs_per_prompt"
    )
