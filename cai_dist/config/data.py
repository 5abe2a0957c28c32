"""Where prompts, human comparisons and other human-made data come from."""

from __future__ import annotations

from pydantic import Field

from cai_dist.config.base import Section


class PromptSource(Section):
    """Where prompts come from: `world`, or a path to JSONL / JSONL.gz / Parquet.

    Known layouts: hh-rlhf (`chosen`, `rejected` dialogues), self-instruct (`instruction`, `instances`), plain
    (`prompt` as text or as a list of {"role", "content"}).
    """

    source: str = "world"
    limit: int | None = Field(None, ge=1)
    """Use this many training prompts (drawn by the run's seed); default: all."""
    max_turns: int | None = Field(None, ge=1)
    """Leave out conversations of more turns than this (all parties' turns count), and say how many; default: none."""
    heldout: int = Field(64, ge=1)
    """Prompts set aside for evaluation; no training stage sees them."""


class ComparisonSource(Section):
    """Human helpfulness comparisons for the preference model: `world`, `none`, or a path in the hh-rlhf layout."""

    source: str = "world"
    limit: int | None = Field(None, ge=1)
    heldout: int = Field(200, ge=0)
    """Set aside at most this many to measure the preference model on; nothing learns from them. Of a file: what `limit`
    leaves over, or at most a tenth where there is no limit."""


class RankedSource(Section):
    """Ranked answers of people, to pretrain the preference model on: `none`, `world`, or a path to JSONL / JSONL.gz /
    Parquet in the layout of stack-exchange-preferences (`question`, `answers` of `text`, `pm_score`, `selected`)."""

    source: str = "none"
    limit: int | None = Field(None, ge=1)
    """Use this many questions (drawn by the run's seed); default: all, or 2000 of the micro-world's."""


class RatingSource(Section):
    """Human ratings of answers for absolute harmfulness (paper, section 4.5): `none`, `world`, or a path to JSONL /
    JSONL.gz / Parquet with `prompt` (as in `PromptSource`), `response` and `rating` from 0 (harmless) to 4."""

    source: str = "none"
    """`none`: no absolute harmfulness."""
    limit: int | None = Field(None, ge=1)
    """Use this many ratings (drawn by the run's seed); default: all, or 2000 of the micro-world's."""


class DataConfig(Section):
    """Where prompts and human comparisons come from."""

    red_team: PromptSource = PromptSource()
    helpful: PromptSource = PromptSource()
    helpful_comparisons: ComparisonSource = ComparisonSource()
    ranked_answers: RankedSource = RankedSource()
    harm_ratings: RatingSource = RatingSource()
