"""Stages 1 and 2: more prompts, critique and revision, supervised fine-tuning (2212.08073, section 3)."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from cai_dist.config.base import Section
from cai_dist.config.training import LoraConfig, SamplingConfig, TrainConfig


class ExpandConfig(Section):
    """Before stage 1: the model itself writes more prompts, after examples (2212.08073, section 3.2: 140,335 of the
    paper's 182,831 red-team prompts were made so; 4.2: 491,142 red-team and 474,300 helpful ones more for RL alone).
    Where none are wanted there is no such stage."""

    prompts: int = Field(0, ge=0)
    """New red-team prompts wanted, after duplicates are gone, for all stages."""
    helpful: int = Field(0, ge=0)
    """New helpful prompts wanted, for all stages."""
    rl_prompts: int = Field(0, ge=0)
    """New red-team prompts wanted besides, for PPO alone."""
    rl_helpful: int = Field(0, ge=0)
    """New helpful prompts wanted besides, for PPO alone."""
    model: Literal["pretrained", "assistant"] = "pretrained"
    """Who writes them."""
    few_shot: int = Field(5, ge=1)
    """Prompts of its kind that go before each new one, drawn anew each time; fewer where `models.context` has no room.
    In a chat template they are chats, which the model itself has answered first."""
    near_duplicate: float = Field(0.7, gt=0, le=1)
    """A prompt whose word 3-grams have this Jaccard similarity or more with an earlier prompt's is a duplicate; one
    that is as similar to what opens a held-out prompt or human comparison is not used either, nor one of seven words or
    more that has this share of the shorter of the two in common with it."""
    tries: float = Field(8.0, ge=1)
    """Samples at most, in multiples of the prompts wanted; then the stage goes on with what it has, and says so."""
    sampling: SamplingConfig = SamplingConfig(max_new_tokens=64)
    shard_size: int = Field(128, ge=1)
    """Samples per durable shard."""
    workers: int = Field(2, ge=1)
    """Processes that sample; the result does not depend on them."""

    def wanted(self, kind: str) -> int:
        """New prompts of a kind (`red_team`, `helpful`) that all stages learn from."""
        return self.prompts if kind == "red_team" else self.helpful

    def wanted_for_rl(self, kind: str) -> int:
        """New prompts of a kind that PPO alone learns from."""
        return self.rl_prompts if kind == "red_team" else self.rl_helpful

    @property
    def any_wanted(self) -> bool:
        """Whether a run has this stage."""
        return any(self.wanted(kind) + self.wanted_for_rl(kind) for kind in ("red_team", "helpful"))


class ReviseConfig(Section):
    """Stage 1: answer, criticise, rewrite (paper, section 3.1)."""

    rounds: int = Field(4, ge=0)
    principles: int | None = Field(None, ge=0)
    """Use the first n critique principles; 0: no critique, each revision copies its answer (a control);
    default: all."""
    critique: bool = True
    """False: direct revision without a critique (paper, section 3.5)."""
    few_shot: int = Field(0, ge=0)
    """Worked critique-revision dialogues of the constitution that go before the prompt (plain form)."""
    retries: int = Field(0, ge=0)
    """How often a text that cannot be used (empty, a loop, a copy of a worked example, another party's part) is drawn
    again before `unusable` applies."""
    unusable: Literal["keep", "drop"] = "keep"
    """What then happens: `keep` takes the answer of the round before and learns nothing of this round; `drop` leaves
    the prompt out from there on. Both are counted. A prompt without a first answer has no rounds either way."""
    sampling: SamplingConfig = SamplingConfig()
    shard_size: int = Field(128, ge=1)
    """Prompts per durable shard."""
    workers: int = Field(2, ge=1)


class SftConfig(Section):
    """Stage 2: fine-tune on revisions and on helpful answers (paper, sections 1.2 and 3.1)."""

    revisions: Literal["all", "final"] | int = "all"
    """Which revisions to learn: every round's, the last, or rounds 1..n."""
    helpful_per_prompt: int = Field(1, ge=0)
    """Answers of the helpful-only model per helpful prompt mixed in (paper: 2)."""
    dropout: Literal["model", "off"] = "model"
    """`model`: training passes have the dropout of the model's own config.json (0.1 in GPT-2, OPT and GPT-J, 0 in most
    models of today), as in TRL and OpenRLHF; `off`: none. Preference model, PPO and DPO never have any."""
    lora: LoraConfig | None = None
    """Train low-rank adapters instead of all weights (docs/lora.md). Default: all weights."""
    train: TrainConfig = TrainConfig()
