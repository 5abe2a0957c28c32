"""The protocols of everything that a run file may name by `package.module:object` (docs/extending.md), in one place.

| setting | what is named | protocol |
|---|---|---|
| `ppo.rewards` | a function, or a class that is made with `args` | `Reward` |
| `ppo.environment.use` | a class that is made with `args` for each conversation | `Environment` |
| `ppo.algorithm` | a function, with the decorator `algorithm` | `Algorithm` |
| `ppo.schedule` | a class or function that takes a `ScheduleContext` | `Schedule` |
| `ppo.transfer` | a function | `WeightSend` |
| `engine.backend` | a class or function (`RolloutBuilder`) that makes the engine | `RolloutEngine` |
| `engine.training` | a class or function (`TrainBuilder`) that makes the engine | `TrainEngine` |
| `use` under `own_stages` | a function | `StageWork` |
| `feedback.model` | a function, or a class that is made without arguments | `FeedbackScorer` |
| `source` under `data` | a function | `DataRows` |
"""

from __future__ import annotations

from cai_dist.cluster.ppo.weight_transfer import WeightSend
from cai_dist.config.algorithms import AlgorithmDefaults, algorithm
from cai_dist.coordinator.schedules.protocol import Schedule, ScheduleContext
from cai_dist.engines.factory import RolloutBuilder, TrainBuilder
from cai_dist.engines.protocols.rollout import RolloutEngine
from cai_dist.engines.protocols.training import TrainEngine
from cai_dist.experience.algorithms.protocol import Algorithm, Estimate, Experience
from cai_dist.stages.own_stage import StageWork
from cai_dist.types import DataRows, Environment, FeedbackScorer, Reward

__all__ = [
    "Algorithm",
    "AlgorithmDefaults",
    "DataRows",
    "Environment",
    "Estimate",
    "Experience",
    "FeedbackScorer",
    "Reward",
    "RolloutBuilder",
    "RolloutEngine",
    "Schedule",
    "ScheduleContext",
    "StageWork",
    "TrainBuilder",
    "TrainEngine",
    "WeightSend",
    "algorithm",
]
