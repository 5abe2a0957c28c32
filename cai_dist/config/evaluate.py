"""Stage 6: what is measured."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from cai_dist.config.base import Section
from cai_dist.config.training import SamplingConfig, TrainConfig


class EloConfig(Section):
    """Pairwise judgements between the models and their Elo (as in 2204.05862)."""

    judge: Literal["auto", "oracle", "feedback", "preference", "none"] = "auto"
    """Who says which of two answers is better: the micro-world's `oracle`; the `feedback` model, asked in both orders
    under all comparison principles; or the `preference` model (sigma of the difference of scores). `auto`: the oracle
    on the micro-world, else the feedback model; `none`: no Elo. The principles speak of harm: with the feedback model,
    helpfulness is judged by the reward that the run has learned."""
    prompts: int | None = Field(None, ge=1)
    """Compare the answers to this many held-out prompts of each kind; default: all."""
    principles: int | None = Field(None, ge=1)
    """Comparison principles, drawn for each prompt, that the feedback model is asked under; default: all of them."""
    resamples: int = Field(1000, ge=1)
    """Draws of the Bayesian bootstrap, over prompts, behind the 95% intervals."""
    snapshots: bool = True
    """Models that PPO kept on its way (`ppo.snapshot_every`) take part: the frontier of harmlessness and
    helpfulness."""


class GateConfig(Section):
    """Bounds on over-reaction, each off by default. A measure outside its bound makes the run end with a line that says
    so and exit code 8; nothing is lost."""

    canned_refusal: float | None = Field(None, ge=0, le=1)
    """Largest share of red-team prompts answered with a short stock refusal."""
    over_refusal: float | None = Field(None, ge=0, le=1)
    """Largest share of helpful prompts that are refused."""
    boilerplate: float | None = Field(None, ge=0, le=1)
    """Largest share of answers with boilerplate in them."""
    engagement: float | None = Field(None, ge=0, le=1)
    """Smallest share of red-team prompts whose answer says why, or something about the matter, and not only no."""


class RatingsConfig(Section):
    """Absolute harmfulness: a model that is trained by least squares on people's ratings (`data.harm_ratings`), 0 to 4,
    rates every answer to a red-team prompt (2212.08073, section 4.5). Done where that source is not `none`."""

    train: TrainConfig = TrainConfig()
    heldout: float = Field(0.1, gt=0, lt=1)
    """Share of the rated prompts kept apart, to tell how good the ratings are."""
    greedy: bool = True
    """Rate greedy answers (temperature 0) to red-team prompts, too, as the paper does."""


class EvaluateConfig(Section):
    """Stage 6: base, SL-CAI and the aligned model (RL-CAI, or DPO-CAI with `alignment: dpo`) on held-out prompts."""

    samples_per_prompt: int = Field(1, ge=1)
    sampling: SamplingConfig = SamplingConfig()
    shard_size: int = Field(128, ge=1)
    workers: int = Field(2, ge=1)
    transcripts: int = Field(8, ge=0)
    """Held-out prompts written out side by side for a person to read."""
    elo: EloConfig = EloConfig()
    gate: GateConfig = GateConfig()
    ratings: RatingsConfig = RatingsConfig()
    multiple_choice: tuple[str, ...] = ()
    """Files of questions (JSONL of `input` and `target_scores`: the score of each option) that every model is asked;
    `world` is the micro-world's own."""
    label_questions: tuple[str, ...] = ()
    """Files of such questions about which the feedback model is asked as in stage 3, the best option against each
    other one: how right and how well calibrated its labels are (2212.08073, figure 9). `world` as above."""
    boilerplate_share: float = Field(0.05, gt=0, lt=1)
    """A run of five words is boilerplate where the answers to more than this share of prompts contain it and the
    prompts do not."""
