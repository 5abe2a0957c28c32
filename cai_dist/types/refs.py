"""Rows that stay where a worker put them: what travels through the driver is where they are."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, Protocol, TypeVar, runtime_checkable

from cai_dist.types.samples import Finish

T = TypeVar("T")


@dataclass(frozen=True)
class RemoteBlock:
    """A list that a worker keeps. `ref` is a Ray reference, or (within one process) the list itself; `role`, `rank` and
    `node` say whose it is. Its identity is that of the object: a message with many rows of it holds it once."""

    ref: Any
    role: str = ""
    rank: int = 0
    node: str = ""


class RemoteRow(NamedTuple, Generic[T]):
    """Item `number` of a block. A tuple: thousands of them are pickled in every iteration."""

    block: RemoteBlock
    number: int


@dataclass(frozen=True, slots=True)
class KeepRemote(Generic[T]):
    """What a method of a worker returns to keep `rows`: the caller gets a reference of the list, and `facts`."""

    rows: Sequence[T]
    facts: Any = None


@dataclass(frozen=True, slots=True)
class SampleRef:
    """What the driver knows of a sampled response: where it is, and what does not grow with its length."""

    row: RemoteRow[Any]
    """Of a `Generation`."""
    prompt_tokens: int
    response_tokens: int
    """Tokens that the model sampled."""
    finish: Finish
    weight_version: int
    """Of the weights that made its last token."""
    oldest_version: int
    """Of the weights that made its oldest."""
    other_tokens: int = 0
    """What others said between the model's answers."""
    turns: int = 1
    """Answers of the model."""

    @property
    def tokens(self) -> int:
        """All tokens of the sequence, from the first of the prompt to the last of the response."""
        return self.prompt_tokens + self.response_tokens + self.other_tokens


@dataclass(frozen=True, slots=True)
class TrajectoryRef:
    """What the driver knows of a scored sample that is trained on."""

    row: RemoteRow[Any]
    """Of a `Trajectory`."""
    tokens: int
    """All tokens of the sequence."""
    response_tokens: int
    """Tokens that the model sampled, which are trained on."""


@runtime_checkable
class HasRemoteRows(Protocol):
    """An argument of a worker's method that may hold rows; the method sees what they stand for."""

    def rows(self) -> Iterator[RemoteRow[Any]]:
        """Every row in it."""
        ...

    def resolve(self, found: Callable[[RemoteRow[Any]], Any]) -> Any:
        """This argument with each row replaced."""
        ...


def rows_of(ref: Any, count: int, role: str = "", rank: int = 0, node: str = "") -> list[RemoteRow[Any]]:
    """All rows of a list of `count` that is kept under `ref`."""
    block = RemoteBlock(ref, role, rank, node)
    return [RemoteRow(block, number) for number in range(count)]
