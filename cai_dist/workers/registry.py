"""Worker classes by kind. A class is imported when it is asked for, in the worker's own process: a driver that starts
workers imports neither torch nor transformers."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from cai_dist.workers.base import Worker

TrainedKind = Literal["language", "pm_pretraining", "preference", "dpo", "rating"]
"""Workers that learn from labels."""
WorkerKind = Literal["policy", "value", "reference", "reward", "reward_terms", "rollout"] | TrainedKind
"""Workers of PPO, by their role, and of the other stages."""


def _policy() -> type[Worker]:
    from cai_dist.workers.policy import PolicyWorker

    return PolicyWorker


def _value() -> type[Worker]:
    from cai_dist.workers.value import ValueWorker

    return ValueWorker


def _reference() -> type[Worker]:
    from cai_dist.workers.reference import ReferenceWorker

    return ReferenceWorker


def _reward() -> type[Worker]:
    from cai_dist.workers.reward import RewardWorker

    return RewardWorker


def _reward_terms() -> type[Worker]:
    from cai_dist.workers.reward_terms import RewardTermsWorker

    return RewardTermsWorker


def _rollout() -> type[Worker]:
    from cai_dist.workers.rollout import RolloutWorker

    return RolloutWorker


def _language() -> type[Worker]:
    from cai_dist.workers.language import LanguageWorker

    return LanguageWorker


def _pm_pretraining() -> type[Worker]:
    from cai_dist.workers.preference import PretrainingWorker

    return PretrainingWorker


def _preference() -> type[Worker]:
    from cai_dist.workers.preference import PreferenceWorker

    return PreferenceWorker


def _dpo() -> type[Worker]:
    from cai_dist.workers.dpo import DpoWorker

    return DpoWorker


def _rating() -> type[Worker]:
    from cai_dist.workers.rating import RatingWorker

    return RatingWorker


WORKERS: Mapping[WorkerKind, Callable[[], type[Worker]]] = {
    "policy": _policy,
    "value": _value,
    "reference": _reference,
    "reward": _reward,
    "reward_terms": _reward_terms,
    "rollout": _rollout,
    "language": _language,
    "pm_pretraining": _pm_pretraining,
    "preference": _preference,
    "dpo": _dpo,
    "rating": _rating,
}


def worker_class(target: str) -> Any:
    """The class of a kind of `WORKERS`, or the one that `package.module:Class` names. Raises ValueError for an unknown
    kind, ImportError and AttributeError for a name that is not there."""
    module, colon, name = target.partition(":")
    if colon:
        return getattr(importlib.import_module(module), name)
    for kind, load in WORKERS.items():
        if kind == target:
            return load()
    raise ValueError(f"{target!r} is no worker: give one of {', '.join(WORKERS)} or package.module:Class")
