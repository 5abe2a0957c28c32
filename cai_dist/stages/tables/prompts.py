"""The prompts of a run, for every stage that needs some: those of `prepare`, and those that `expand` has written."""

from __future__ import annotations

from pathlib import Path

from cai_dist.stages.context import RunContext
from cai_dist.stages.tables.records import read_comparisons, read_prompts
from cai_dist.types import Comparison, Prompt, PromptKind

KINDS: tuple[PromptKind, ...] = ("red_team", "helpful")


def training_prompts(ctx: RunContext, kind: PromptKind, rl: bool = False) -> list[Prompt]:
    """The prompts of a kind that may be trained on, each with its whole conversation: those given, then, where the run
    has the stage `expand`, those it made, with `rl` those for PPO alone, too. Raises DataError where a table is
    missing."""
    return given_prompts(ctx, kind) + [p for file in _expanded(ctx, kind, rl) for p in read_prompts(file)]


def given_prompts(ctx: RunContext, kind: PromptKind) -> list[Prompt]:
    """The training prompts of a kind without those of `expand`."""
    return [p for p in read_prompts(ctx.paths.prompts(kind)) if p.split == "train"]


def heldout_prompts(ctx: RunContext) -> list[Prompt]:
    """The prompts set aside for measuring, red-team first. No training stage may see them."""
    return [p for kind in KINDS for p in read_prompts(ctx.paths.prompts(kind)) if p.split == "heldout"]


def heldout_comparisons(ctx: RunContext) -> list[Comparison]:
    """The human comparisons set aside for measuring. Raises DataError where the table is missing."""
    found = [x.comparison for x in read_comparisons(ctx.paths.human)]
    return [c for c in found if c.prompt.split == "heldout"]


def prompt_files(ctx: RunContext, *kinds: PromptKind, rl: bool = False) -> list[Path]:
    """The tables that the functions above read (default: of both kinds), as inputs of a stage."""
    wanted = kinds or KINDS
    return [ctx.paths.prompts(kind) for kind in wanted] + [file for kind in wanted for file in _expanded(ctx, kind, rl)]


def _expanded(ctx: RunContext, kind: PromptKind, rl: bool) -> list[Path]:
    config, paths = ctx.config.expand, ctx.paths
    return [paths.expanded(kind)] * bool(config.wanted(kind)) + [paths.expanded(kind, rl=True)] * bool(
        rl and config.wanted_for_rl(kind)
    )
