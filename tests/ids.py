"""Token ids of samples as tuples, which compare, hash and join."""

from __future__ import annotations

from cai_dist.types import Generation, Trajectory


def prompt_of(sample: Generation | Trajectory) -> tuple[int, ...]:
    return tuple(sample.prompt_ids.tolist())


def response_of(sample: Generation | Trajectory) -> tuple[int, ...]:
    return tuple(sample.response_ids.tolist())


def ids_of(sample: Generation | Trajectory) -> tuple[int, ...]:
    """Prompt and response."""
    return tuple(sample.ids.tolist())
