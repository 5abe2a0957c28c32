"""Sampled responses, and what PPO makes of them.

Their tokens and numbers are 1-dimensional numpy arrays, never written to: token ids int32, numbers float32, which is
what models compute and losses take (docs/architecture.md, "Precision of carriers"). numpy is imported when the first
carrier is made.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from cai_dist.types.text import PromptKind

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Ids = NDArray[np.int32]
    Numbers = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How to sample. `temperature` 0 is greedy. `stop_ids` end a response and are part of it."""

    max_new_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    stop_ids: tuple[int, ...] = ()


Finish = Literal["stop", "length"]


class ArrayCarrier:
    """Base of a frozen dataclass with arrays in the fields that `ARRAYS` names.

    Lists and tuples become arrays of the dtype there; carriers of one class are equal where all fields are. Raises
    ValueError for what is not 1-dimensional.
    """

    __slots__ = ()
    ARRAYS: ClassVar[Mapping[str, str]] = {}
    __dataclass_fields__: ClassVar[dict[str, Any]]

    def __post_init__(self) -> None:
        import numpy as np  # not above: commands that only check a configuration start without it

        for name, dtype in self.ARRAYS.items():
            array = np.asarray(getattr(self, name), dtype)
            if array.ndim != 1:
                raise ValueError(f"{type(self).__name__}.{name}: an array of {array.ndim} dimensions in place of 1")
            object.__setattr__(self, name, array)

    def __eq__(self, other: object) -> bool:
        import numpy as np

        if type(self) is not type(other):
            return NotImplemented
        pairs = ((name, getattr(self, name), getattr(other, name)) for name in self.__dataclass_fields__)
        return all(np.array_equal(a, b) if name in self.ARRAYS else a == b for name, a, b in pairs)

    __hash__ = None  # type: ignore[assignment]


@dataclass(frozen=True, slots=True, eq=False)
class Generation(ArrayCarrier):
    """One sampled response, token for token as the sampler made it (never re-tokenised). P prompt tokens, R response
    tokens."""

    ARRAYS = {"prompt_ids": "int32", "response_ids": "int32", "logprobs": "float32", "versions": "int32"}

    prompt_ids: Ids
    """[P]."""
    response_ids: Ids
    """[R]."""
    logprobs: Numbers
    """[R], log-probability (nats) of each response token under the distribution that it was drawn from; [0] where no
    sampler made the response."""
    finish: Finish
    weight_version: int
    """Of the weights that made its last token."""
    engine: str = "hf"
    """Backend that sampled it."""
    versions: Ids = ()  # type: ignore[assignment]
    """[R], weight version of every response token, where they are not all `weight_version` (a response that was paused
    and went on after an update); [0]: they are."""

    @property
    def ids(self) -> Ids:
        """[P + R], prompt and response."""
        return _concatenated(self.prompt_ids, self.response_ids)

    @property
    def token_versions(self) -> Ids:
        """[R], `versions`, never [0]."""
        return _versions(self)


@dataclass(frozen=True, slots=True, eq=False)
class Trajectory(ArrayCarrier):
    """One scored sample of PPO: what the rollout phase hands to the update phase. P prompt tokens, R response
    tokens."""

    ARRAYS = {
        "prompt_ids": "int32",
        "response_ids": "int32",
        "old_logprobs": "float32",
        "ref_logprobs": "float32",
        "values": "float32",
        "rewards": "float32",
        "advantages": "float32",
        "returns": "float32",
        "sampler_logprobs": "float32",
        "weights": "float32",
        "versions": "int32",
    }

    prompt_ids: Ids
    """[P]."""
    response_ids: Ids
    """[R]."""
    old_logprobs: Numbers
    """[R], nats: the denominator of the ratio in the policy's loss."""
    ref_logprobs: Numbers
    """[R], nats, under the reference."""
    values: Numbers
    """[R], V of the state before each token."""
    rewards: Numbers
    """[R], KL-shaped reward per token; the score sits on the last token alone."""
    advantages: Numbers
    """[R]; as an algorithm made them until they are whitened on their way to the loss."""
    returns: Numbers
    """[R], targets of the value model; `values` and `returns` are [0] for an algorithm without one."""
    score: float
    """Raw preference-model score (logits)."""
    finish: Finish
    weight_version: int
    sampler_logprobs: Numbers
    """[R], as the sampler gave them; `old_logprobs` are the trainer's where `ppo.old_logprobs` says so."""
    weights: Numbers
    """[R], weight of each token in the policy loss: that of the aggregation times the truncated importance weight."""
    prompt_id: str = ""
    prompt_kind: PromptKind = "red_team"
    versions: Ids = ()  # type: ignore[assignment]
    """As in `Generation`."""

    @property
    def ids(self) -> Ids:
        """[P + R], prompt and response."""
        return _concatenated(self.prompt_ids, self.response_ids)

    @property
    def token_versions(self) -> Ids:
        """[R], `versions`, never [0]."""
        return _versions(self)


def _concatenated(prompt: Ids, response: Ids) -> Ids:
    import numpy as np

    return np.concatenate([prompt, response])


def _versions(sample: Generation | Trajectory) -> Ids:
    import numpy as np

    full = len(sample.versions) > 0
    return sample.versions if full else np.full(len(sample.response_ids), sample.weight_version, dtype=np.int32)
