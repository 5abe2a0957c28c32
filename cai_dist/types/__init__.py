"""Typed carriers that cross the borders between rooms. No torch, no ray; numpy once there is a sample.

Text-side carriers (`Turn`, `Prompt`, `Demonstration`, `Comparison`) describe data in words. Of the token-side ones,
`TokenSequence` (training data) holds tuples; `Generation` and `Trajectory` (samples of PPO) hold numpy arrays, and many
of them travel packed in one flat array a field (`types.ragged`). A mask is stored only where a sample holds somebody
else's words among the model's (`loss_mask`).
"""

from __future__ import annotations

from cai_dist.types.refs import HasRemoteRows, KeepRemote, RemoteBlock, RemoteRow, SampleRef, TrajectoryRef, rows_of
from cai_dist.types.samples import Finish, Generation, SamplingParams, Trajectory
from cai_dist.types.strategies import DataRows, Environment, FeedbackScorer, Reward
from cai_dist.types.text import (
    ChoiceQuestion,
    Comparison,
    Demonstration,
    DpoPair,
    LabelledPair,
    Prompt,
    PromptKind,
    RankedAnswer,
    RankedQuestion,
    RatedAnswer,
    RatedSequence,
    ScoredPair,
    Speaker,
    Split,
    TokenSequence,
    Turn,
)
from cai_dist.types.weights import AdapterSpec, TensorPiece, TensorSpec, WeightPart, WeightPlan, WeightTerms
from cai_dist.types.workers import (
    PHASE_NEEDS,
    GenerateRequest,
    LabelRequest,
    MemoryPart,
    Phase,
    RankInfo,
    Span,
    StepShard,
    WeightProbe,
    WorkerSpec,
)

__all__ = [
    "PHASE_NEEDS",
    "AdapterSpec",
    "RemoteBlock",
    "ChoiceQuestion",
    "Comparison",
    "DataRows",
    "Demonstration",
    "DpoPair",
    "Environment",
    "FeedbackScorer",
    "Finish",
    "GenerateRequest",
    "Generation",
    "HasRemoteRows",
    "KeepRemote",
    "LabelRequest",
    "LabelledPair",
    "TrajectoryRef",
    "MemoryPart",
    "Phase",
    "Prompt",
    "PromptKind",
    "RankInfo",
    "RankedAnswer",
    "RankedQuestion",
    "RatedAnswer",
    "RatedSequence",
    "Speaker",
    "RemoteRow",
    "Reward",
    "SampleRef",
    "SamplingParams",
    "ScoredPair",
    "Span",
    "Split",
    "StepShard",
    "TensorPiece",
    "TensorSpec",
    "TokenSequence",
    "Trajectory",
    "Turn",
    "WeightPart",
    "WeightPlan",
    "WeightProbe",
    "WeightTerms",
    "WorkerSpec",
    "rows_of",
]
