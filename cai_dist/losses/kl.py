"""KL divergence between policy and reference: estimators from samples, and controllers of its coefficient.

For x drawn from p, with log_ratio = log p(x) - log q(x), the mean of k1 and of k3 is KL(p || q), that of k2 is close to
it where p and q are close (Schulman 2020, "Approximating KL divergence"). As a *reward* (held fixed, weighing
grad log p) only k1 gives the gradient of KL(p || q). As a term of the *loss* (differentiated itself) only k2 does: k1's
expected gradient is zero, k3's is that of KL(q || p).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

MAX_EXPONENT = 20.0
"""exp() of much more would soon overflow."""


def k1(log_ratio: Tensor) -> Tensor:
    """Log p - log q: unbiased, high variance, may be negative. Same shape as the input, nats."""
    return log_ratio


def k2(log_ratio: Tensor) -> Tensor:
    """(log p - log q)^2 / 2: biased, low variance, never negative. Same shape as the input."""
    return 0.5 * log_ratio**2


def k3(log_ratio: Tensor) -> Tensor:
    """q/p - 1 - log(q/p): unbiased, low variance, never negative. Same shape as the input, nats.

    Where log(q/p) is above `MAX_EXPONENT`, q/p goes on as the tangent of exp there: finite, and its gradient still
    pulls p towards q, which that of a constant would not.
    """
    exponent = (-log_ratio).clamp(max=MAX_EXPONENT)
    beyond = torch.relu(-log_ratio - MAX_EXPONENT)
    return torch.expm1(exponent) + log_ratio + math.exp(MAX_EXPONENT) * beyond


ESTIMATORS: dict[str, Callable[[Tensor], Tensor]] = {"k1": k1, "k2": k2, "k3": k3}
"""By the name that settings give them."""


@dataclass(frozen=True, slots=True)
class FixedKl:
    """A coefficient that never moves."""

    coefficient: float

    def updated(self, kl_per_response: float, samples: int) -> FixedKl:
        """The controller after an iteration: itself."""
        return self

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready state for a checkpoint."""
        return {"kind": "fixed", "coefficient": self.coefficient}


@dataclass(frozen=True, slots=True)
class AdaptiveKl:
    """Proportional control of the coefficient in log space (Ziegler et al. 2019, 1909.08593, section 2.2).

    e = clip(KL / target - 1, -0.2, 0.2); coefficient *= 1 + e * samples / horizon.
    """

    coefficient: float
    target: float
    """Wanted KL in nats per response."""
    horizon: int
    """Samples over which an error of e changes the coefficient by a factor of about exp(e)."""

    def updated(self, kl_per_response: float, samples: int) -> AdaptiveKl:
        """The controller after an iteration of `samples` responses with this mean KL (nats per response)."""
        error = min(max(kl_per_response / self.target - 1.0, -0.2), 0.2)
        # A batch longer than the horizon must not turn the coefficient negative.
        factor = 1.0 + error * min(samples / self.horizon, 1.0)
        return replace(self, coefficient=self.coefficient * factor)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready state for a checkpoint."""
        return {
            "kind": "adaptive",
            "coefficient": self.coefficient,
            "target": self.target,
            "horizon": self.horizon,
        }


KlController = FixedKl | AdaptiveKl


def make_controller(coefficient: float, target: float | None, horizon: int) -> KlController:
    """The fixed controller without a target, else the adaptive one."""
    return FixedKl(coefficient) if target is None else AdaptiveKl(coefficient, target, horizon)


def controller_from_dict(state: dict[str, Any]) -> KlController:
    """The inverse of `to_dict`; raises ValueError for an unknown kind."""
    if state["kind"] == "fixed":
        return FixedKl(float(state["coefficient"]))
    if state["kind"] == "adaptive":
        return AdaptiveKl(float(state["coefficient"]), float(state["target"]), int(state["horizon"]))
    raise ValueError(f"KL controller of unknown kind {state['kind']!r}")
