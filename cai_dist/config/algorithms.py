"""What is known of each algorithm before anything runs: what it needs, and what `auto` means under it.

The equations are in `cai_dist.experience.algorithms`; this table stands here because placement, checks and the
configuration page depend on it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

AlgorithmName = Literal["gae", "rloo", "reinforce++", "reinforce++-group", "grpo", "dr-grpo"]
KlWhere = Literal["reward", "loss"]
KlEstimator = Literal["k1", "k2", "k3"]
Aggregation = Literal["token", "sequence", "constant"]


@dataclass(frozen=True, slots=True)
class AlgorithmDefaults:
    """One algorithm's needs and defaults."""

    kl_where: KlWhere
    kl_estimator: KlEstimator
    aggregate: Aggregation
    whiten: bool
    needs_value: bool = False
    """A value model is trained beside the policy."""
    needs_group: bool = False
    """The baseline is made of the other samples of the same prompt: at least two are needed."""
    discounts: bool = True
    """`gamma` has a part in it; a whole response that gets one number has no time to discount over."""


DEFAULTS: dict[AlgorithmName, AlgorithmDefaults] = {
    "gae": AlgorithmDefaults("reward", "k1", "token", whiten=True, needs_value=True),
    # The log-probability of a whole response is a sum over its tokens: nothing divides it by its length.
    "rloo": AlgorithmDefaults("reward", "k1", "constant", whiten=False, needs_group=True, discounts=False),
    "reinforce++": AlgorithmDefaults("reward", "k1", "token", whiten=True),
    "reinforce++-group": AlgorithmDefaults("loss", "k2", "token", whiten=True, needs_group=True),
    "grpo": AlgorithmDefaults("loss", "k3", "sequence", whiten=False, needs_group=True, discounts=False),
    "dr-grpo": AlgorithmDefaults("loss", "k3", "constant", whiten=False, needs_group=True, discounts=False),
}
