"""Stage 4: what is learned from the comparisons: a preference model, or the policy at once (DPO)."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from cai_dist.config.base import Section
from cai_dist.config.training import LoraConfig, TrainConfig


class PmPretrainingConfig(Section):
    """Before the comparisons, the preference model learns from ranked answers of people (`data.ranked_answers`), each
    pair as GOOD:A > BAD:A and BAD:B > GOOD:B (2112.00861). Done where that source is not `none`."""

    language_weight: float = Field(1.0, ge=0)
    """Weight of a language-model loss (nats per token) on side A of each pair, from behind its label on: the better
    answer after GOOD:, and also the worse one after BAD:."""
    good: str = "GOOD:"
    """Stands before an answer that is called good; words that the model's tokenizer knows."""
    bad: str = "BAD:"
    """Stands before an answer that is called bad."""
    pairs_per_question: int = Field(1, ge=1)
    """Pairs of answers with different scores that are drawn from each question (all, where it has fewer)."""
    train: TrainConfig = TrainConfig()

    @model_validator(mode="after")
    def _labels(self) -> PmPretrainingConfig:
        if not self.good.strip() or not self.bad.strip() or self.good.strip() == self.bad.strip():
            raise ValueError(f"good={self.good!r} and bad={self.bad!r}: must be two different texts")
        return self


class PreferenceConfig(Section):
    """Stage 4: one scalar score per answer, from soft labels (paper, section 4.1; 2204.05862, section 3)."""

    init: Literal["sl", "pretrained"] = "pretrained"
    """The trunk starts from the SL-CAI or from the pretrained model."""
    helpful_fraction: float = Field(0.5, ge=0, lt=1)
    """Share of human helpfulness comparisons in the training mixture."""
    label_fraction: float = Field(1.0, gt=0, le=1)
    """Share of the AI's comparisons that is learned from (drawn by the run's seed), to see what labels are worth."""
    margin: float = Field(0.0, ge=0)
    """The better answer's score is wanted this much above the other's, times the label's certainty |2p - 1|."""
    pretraining: PmPretrainingConfig = PmPretrainingConfig()
    calibrate: bool = True
    """Fit a temperature on one half of the held-out comparisons and report calibration on the other, with and without
    it. Scores stay as they are."""
    halves: bool = False
    """Train two models on disjoint halves of the comparisons: `model`, which PPO learns from, and `second`, which the
    evaluation scores beside it (2204.05862, the robustness experiments)."""
    gate: float | None = Field(0.5, ge=0, lt=1)
    """On held-out pairs of the AI's labels the model must be right more often than this, the whole 95% interval (over
    prompts) being above it, or the run stops before PPO with exit code 8; what is done stays, and with another gate the
    same command goes on. 0.5 is chance. null: no gate."""
    lora: LoraConfig | None = None
    """Train low-rank adapters and the scalar head instead of all weights, in the pretraining on ranked answers, too; a
    language head then stays as it is. Default: all weights."""
    train: TrainConfig = TrainConfig()


class DpoConfig(Section):
    """DPO, in place of preference and ppo with `alignment: dpo`: the policy learns the comparisons themselves (Rafailov
    et al. 2023, 2305.18290; Azar et al. 2023, 2310.12036)."""

    loss: Literal["dpo", "ipo"] = "dpo"
    """`dpo`: cross-entropy of the soft label; `ipo`: squared distance to a margin that the label sets."""
    beta: float = Field(0.1, gt=0)
    """Pull towards the SL-CAI model, per nat of a whole answer (IPO's tau); smaller moves further away from it."""
    lora: LoraConfig | None = None
    """Train low-rank adapters instead of all weights; SL-CAI is the model without them. Default: all weights."""
    helpful_fraction: float = Field(0.5, ge=0, lt=1)
    """Share of human helpfulness comparisons in the training mixture."""
    train: TrainConfig = TrainConfig()
