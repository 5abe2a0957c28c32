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
    Mask = NDArray[np.bool_]


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


class _Response(ArrayCarrier):
    """What `Generation` and `Trajectory` share: all that comes after a prompt, which in a conversation of several turns
    is answers of the model and, between them, what somebody else said."""

    __slots__ = ()
    prompt_ids: Ids
    response_ids: Ids
    loss_mask: Mask
    weight_version: int
    versions: Ids

    @property
    def ids(self) -> Ids:
        """[P + R], prompt and response."""
        import numpy as np

        return np.concatenate([self.prompt_ids, self.response_ids])

    @property
    def model_tokens(self) -> int:
        """M, tokens of the response that the model sampled: R, less those of other parties."""
        return int(self.loss_mask.sum()) if len(self.loss_mask) else len(self.response_ids)

    @property
    def token_versions(self) -> Ids:
        """[M], `versions`, never [0]."""
        import numpy as np

        full = len(self.versions) > 0
        return self.versions if full else np.full(self.model_tokens, self.weight_version, dtype=np.int32)

    def turns(self) -> list[tuple[bool, Ids]]:
        """The response cut where the speaker changes: (whether the model speaks, token ids), in order."""
        import numpy as np

        if not len(self.loss_mask):
            return [(True, self.response_ids)]
        ends = np.flatnonzero(self.loss_mask[1:] != self.loss_mask[:-1]) + 1
        starts = [0, *ends.tolist()]
        parts = np.split(self.response_ids, ends)
        return [(bool(self.loss_mask[start]), part) for start, part in zip(starts, parts, strict=True)]


@dataclass(frozen=True, slots=True, eq=False)
class Generation(_Response):
    """One sampled response, token for token as the sampler made it (never re-tokenised). P prompt tokens, R response
    tokens, M of them the model's: all, unless there are several turns."""

    ARRAYS = {
        "prompt_ids": "int32",
        "response_ids": "int32",
        "logprobs": "float32",
        "versions": "int32",
        "loss_mask": "bool",
    }

    prompt_ids: Ids
    """[P]."""
    response_ids: Ids
    """[R]."""
    logprobs: Numbers
    """[M], log-probability (nats) of each token of the model under the distribution that it was drawn from; [0] where
    no sampler made the response."""
    finish: Finish
    weight_version: int
    """Of the weights that made its last token."""
    engine: str = "hf"
    """Backend that sampled it."""
    versions: Ids = ()  # type: ignore[assignment]
    """[M], weight version of every token of the model, where they are not all `weight_version` (a response that was
    paused and went on after an update); [0]: they are."""
    loss_mask: Mask = ()  # type: ignore[assignment]
    """[R], which tokens of the response are the model's; what others said between its answers is context, and never
    trained on. The first and the last token are the model's. [0]: all."""


@dataclass(frozen=True, slots=True, eq=False)
class Trajectory(_Response):
    """One scored sample of PPO: what the rollout phase hands to the update phase. P prompt tokens, R response tokens,
    M of them the model's: every number is of one of these."""

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
        "loss_mask": "bool",
    }

    prompt_ids: Ids
    """[P]."""
    response_ids: Ids
    """[R]."""
    old_logprobs: Numbers
    """[M], nats: the denominator of the ratio in the policy's loss."""
    ref_logprobs: Numbers
    """[M], nats, under the reference."""
    values: Numbers
    """[M], V of the state before each token."""
    rewards: Numbers
    """[M], KL-shaped reward per token; the score sits on the last token alone."""
    advantages: Numbers
    """[M]; as an algorithm made them until they are whitened on their way to the loss."""
    returns: Numbers
    """[M], targets of the value model; `values` and `returns` are [0] for an algorithm without one."""
    score: float
    """Raw preference-model score (logits)."""
    finish: Finish
    weight_version: int
    sampler_logprobs: Numbers
    """[M], as the sampler gave them; `old_logprobs` are the trainer's where `ppo.old_logprobs` says so."""
    weights: Numbers
    """[M], weight of each token in the policy loss: that of the aggregation times the truncated importance weight."""
    prompt_id: str = ""
    prompt_kind: PromptKind = "red_team"
    versions: Ids = ()  # type: ignore[assignment]
    """[M] or [0], weight versions as in `Generation`."""
    loss_mask: Mask = ()  # type: ignore[assignment]
    """[R] or [0], marks of the model's tokens as in `Generation`."""
