"""The stages of a run by name, and what each way of alignment brings with it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

PREPARE: Final = "prepare"
EXPAND: Final = "expand"
REVISE: Final = "revise"
SFT: Final = "sft"
FEEDBACK: Final = "feedback"
PREFERENCE: Final = "preference"
PPO: Final = "ppo"
DPO: Final = "dpo"
EVALUATE: Final = "evaluate"

GENERATING: Final = (EXPAND, REVISE, FEEDBACK, EVALUATE)
"""Stages whose section has `workers`: independent processes that sample and score text."""
SUPERVISED: Final = (SFT, PREFERENCE, DPO)
"""Stages whose section has `train`: one engine that learns from labels."""

Alignment = Literal["ppo", "dpo"]


@dataclass(frozen=True)
class AlignmentSpec:
    """One way to make the aligned model out of SL-CAI and the comparisons."""

    stages: tuple[str, ...]
    """The stages that such a run may have, in their order."""
    stage: Literal["ppo", "dpo"]
    """Name of the stage that trains the aligned model."""
    model: str
    """Key of the aligned model in `evaluation.json`."""
    title: str
    """Name of the aligned model for a reader."""
    learner: Literal["preference", "dpo"]
    """Name of the stage that learns a reward from the comparisons: the evaluation's judge on real text. Its
    `heldout.json` says how right that reward is."""
    reward: str
    """Key of the learned reward's figures in `evaluation.json`."""
    reward_title: str
    """Name of the learned reward for a reader."""


ALIGNMENTS: dict[Alignment, AlignmentSpec] = {
    "ppo": AlignmentSpec(
        stages=(EXPAND, REVISE, SFT, FEEDBACK, PREFERENCE, PPO, EVALUATE),
        stage=PPO,
        model="rl",
        title="RL-CAI",
        learner=PREFERENCE,
        reward="preference_model",
        reward_title="preference model",
    ),
    "dpo": AlignmentSpec(
        stages=(EXPAND, REVISE, SFT, FEEDBACK, DPO, EVALUATE),
        stage=DPO,
        model="dpo",
        title="DPO-CAI",
        learner=DPO,
        reward="implicit_reward",
        reward_title="implicit reward of DPO-CAI",
    ),
}
"""Every value of `alignment`."""

STAGES = (
    *dict.fromkeys(name for spec in ALIGNMENTS.values() for name in spec.stages if name != EVALUATE),
    EVALUATE,
)
"""Names of all stages that a user may ask for, in their order. `prepare` comes before them in every run."""
