"""The prompts of a run, for every stage that needs some: those of `prepare`, and those that `expand` has written."""

from __future__ import annotations

from pathlib import Path

from cai_dist.stages import prepare
from cai_dist.stages.context import RunContext
from cai_dist.stages.records import read_comparisons, read_prompts
from cai_dist.types import Comparison, Prompt, PromptKind

KINDS: tuple[PromptKind, ...] = ("red_team", "helpful")


def training_prompts(run: RunContext, kind: PromptKind) -> list[Prompt]:
    """The prompts of a kind that may be trained on, each with its whole conversation: those given, then, where the run
    has the stage `expand`, those it made. Raises DataError where a table is missing."""
    return given_prompts(run, kind) + (read_prompts(expanded_file(run)) if _expanded(run, kind) else [])


def given_prompts(run: RunContext, kind: PromptKind) -> list[Prompt]:
    """The training prompts of a kind without those of `expand`."""
    return [p for p in read_prompts(_given(run, kind)) if p.split == "train"]


def heldout_prompts(run: RunContext) -> list[Prompt]:
    """The prompts set aside for measuring, red-team first. No training stage may see them."""
    return [p for kind in KINDS for p in read_prompts(_given(run, kind)) if p.split == "heldout"]


def heldout_comparisons(run: RunContext) -> list[Comparison]:
    """The human comparisons set aside for measuring. Raises DataError where the table is missing."""
    found = [x.comparison for x in read_comparisons(human_file(run))]
    return [c for c in found if c.prompt.split == "heldout"]


def human_file(run: RunContext) -> Path:
    """The table of human comparisons."""
    return run.run_dir / prepare.NAME / "human.parquet"


def prompt_files(run: RunContext, *kinds: PromptKind) -> list[Path]:
    """The tables that the functions above read (default: of both kinds), as inputs of a stage."""
    wanted = kinds or KINDS
    return [_given(run, kind) for kind in wanted] + [expanded_file(run) for kind in wanted if _expanded(run, kind)]


def expanded_file(run: RunContext) -> Path:
    """The table of the stage `expand`."""
    return run.run_dir / "expand" / "red_team.parquet"


def _given(run: RunContext, kind: PromptKind) -> Path:
    return run.run_dir / prepare.NAME / f"{kind}.parquet"


def _expanded(run: RunContext, kind: PromptKind) -> bool:
    return kind == "red_team" and "expand" in run.config.stages
