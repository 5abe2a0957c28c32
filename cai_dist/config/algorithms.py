"""What is known of each algorithm before anything runs: what it needs, and what `auto` means under it.

The equations are in `cai_dist.experience.algorithms`; this table stands here because placement, checks and the
configuration page depend on it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, cast

from cai_dist.errors import ConfigError
from cai_dist.registry import Signature, find_object, is_path

AlgorithmName = Literal["ppo", "rloo", "reinforce++", "reinforce++-group", "grpo", "dr-grpo", "gspo"]
SYNONYMS: dict[str, AlgorithmName] = {"gae": "ppo"}
"""Names that are accepted for another: GAE is PPO's estimator."""
KlWhere = Literal["reward", "loss"]
KlEstimator = Literal["k1", "k2", "k3"]
Aggregation = Literal["token", "sequence", "constant"]
Ratio = Literal["token", "sequence"]
KEY = "ppo.algorithm"
SIGNATURE = Signature(("batch", "config"))
F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True)
class AlgorithmDefaults:
    """One algorithm's needs and defaults: those of a critic-free policy gradient, where nothing is said."""

    kl_where: KlWhere = "loss"
    kl_estimator: KlEstimator = "k3"
    aggregate: Aggregation = "token"
    whiten: bool = False
    needs_value: bool = False
    """A value model is trained beside the policy."""
    needs_group: bool = False
    """The baseline is made of the other samples of the same prompt: at least two are needed."""
    discounts: bool = True
    """`gamma` has a part in it; a whole response that gets one number has no time to discount over."""
    ratio: Ratio = "token"
    """What the loss clips: the ratio of every token, or the geometric mean over a whole response (2507.18071)."""


DEFAULTS: dict[AlgorithmName, AlgorithmDefaults] = {
    "ppo": AlgorithmDefaults("reward", "k1", "token", whiten=True, needs_value=True),
    # The log-probability of a whole response is a sum over its tokens: nothing divides it by its length.
    "rloo": AlgorithmDefaults("reward", "k1", "constant", whiten=False, needs_group=True, discounts=False),
    "reinforce++": AlgorithmDefaults("reward", "k1", "token", whiten=True),
    "reinforce++-group": AlgorithmDefaults("loss", "k2", "token", whiten=True, needs_group=True),
    "grpo": AlgorithmDefaults("loss", "k3", "sequence", whiten=False, needs_group=True, discounts=False),
    "dr-grpo": AlgorithmDefaults("loss", "k3", "constant", whiten=False, needs_group=True, discounts=False),
    "gspo": AlgorithmDefaults(
        "loss", "k3", "sequence", whiten=False, needs_group=True, discounts=False, ratio="sequence"
    ),
}


def algorithm(defaults: AlgorithmDefaults) -> Callable[[F], F]:
    """A decorator that gives an algorithm of one's own its needs and defaults."""

    def mark(function: F) -> F:
        function.defaults = defaults  # type: ignore[attr-defined]
        return function

    return mark


def defaults_of(name: str) -> AlgorithmDefaults:
    """The needs and defaults of an algorithm. One of one's own (`package.module:object`) is imported for them; without
    the decorator `algorithm` it has those of `AlgorithmDefaults()`. Raises ConfigError."""
    if not is_path(name):
        return DEFAULTS[cast(AlgorithmName, name)]
    found = getattr(find_object(name, KEY, SIGNATURE), "defaults", AlgorithmDefaults())
    if not isinstance(found, AlgorithmDefaults):
        raise ConfigError(f"{KEY}={name}: its defaults must be AlgorithmDefaults, and are a {type(found).__name__}")
    return found
