"""What PPO carries from one iteration to the next besides the engines: small, frozen, JSON in and out."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from cai_dist.config.ppo import PpoConfig
from cai_dist.experience.moments import Moments
from cai_dist.losses.kl import KlController, controller_from_dict, make_controller


@dataclass(frozen=True, slots=True)
class PpoState:
    """The state between two iterations."""

    kl: KlController
    iteration: int = 0
    """Iterations finished; also the data cursor, and the 0-based number of the next one."""
    weight_version: int = 0
    """Version of the policy's weights; 0 is SL-CAI. Every iteration ends with a transfer of the next version."""
    scores: Moments = field(default_factory=Moments)
    """Of raw scores; without their slope on length where `ppo.score_length` takes it out."""

    @staticmethod
    def start(config: PpoConfig) -> PpoState:
        """The state before the first iteration."""
        return PpoState(make_controller(config.kl.coefficient, config.kl.target, config.kl.horizon))

    def remaining(self, iterations: int) -> range:
        """The 0-based iterations still to be done."""
        return range(self.iteration, iterations)

    def trains_policy(self, config: PpoConfig) -> bool:
        """False in the first iterations that train the value model alone."""
        return self.iteration >= config.value_warmup

    def advance(self, config: PpoConfig, kl_per_response: float, samples: int, statistics: Moments) -> PpoState:
        """The state after an iteration.

        Args:
            kl_per_response: mean KL to the reference of the iteration's samples, nats.
            samples: how many there were.
            statistics: of all scores of the run, the iteration's included.
        """
        # While the policy stands still its KL is 0 by construction: nothing for a controller to steer by.
        kl = self.kl.updated(kl_per_response, samples) if self.trains_policy(config) else self.kl
        return PpoState(kl, self.iteration + 1, self.weight_version + 1, statistics)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; floats survive JSON exactly."""
        return {
            "iteration": self.iteration,
            "weight_version": self.weight_version,
            "kl": self.kl.to_dict(),
            "scores": asdict(self.scores),
        }

    @staticmethod
    def from_dict(state: dict[str, Any]) -> PpoState:
        """The inverse of `to_dict`; raises KeyError, TypeError or ValueError for anything else."""
        return PpoState(
            kl=controller_from_dict(state["kl"]),
            iteration=int(state["iteration"]),
            weight_version=int(state["weight_version"]),
            scores=Moments(**state["scores"]),
        )
