"""The prompts that an iteration of PPO uses: a pure function of (seed, iteration), so that a resumed run neither skips
nor repeats any."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

from cai_dist.config.seeds import derive_seed
from cai_dist.data.schedule import epoch_order
from cai_dist.errors import DataError
from cai_dist.types import PromptKind


@dataclass(frozen=True, slots=True)
class TokenizedPrompt:
    """A prompt as the policy sees it."""

    prompt_id: str
    kind: PromptKind
    ids: tuple[int, ...]


def choose(
    prompts: Sequence[TokenizedPrompt], count: int, helpful_fraction: float, seed: int, iteration: int
) -> list[TokenizedPrompt]:
    """The prompts of an iteration (0-based).

    Each kind is walked in epochs: every prompt once in an order of its own, then again in another. The share of helpful
    prompts is exact over the run: after i iterations round(i x count x helpful_fraction) of them have been used.

    Args:
        prompts: the whole pool, in the same order in every call.
        count: prompts per iteration.
        helpful_fraction: share of helpful prompts, 0 to 1.

    Raises: DataError if a kind is wanted of which there is no prompt.
    """
    helpful_before = _rounded(iteration * count * helpful_fraction)
    helpful_after = _rounded((iteration + 1) * count * helpful_fraction)
    red_team = _stream(
        prompts, "red_team", iteration * count - helpful_before, (iteration + 1) * count - helpful_after, seed
    )
    return red_team + _stream(prompts, "helpful", helpful_before, helpful_after, seed)


def digest(prompts: Sequence[TokenizedPrompt]) -> str:
    """Hash of the pool, by which a checkpoint knows its data."""
    total = hashlib.sha256()
    for prompt in prompts:
        total.update(repr((prompt.prompt_id, prompt.kind, prompt.ids)).encode())
    return total.hexdigest()


def _stream(
    prompts: Sequence[TokenizedPrompt], kind: PromptKind, start: int, end: int, seed: int
) -> list[TokenizedPrompt]:
    """Items start..end-1 of the endless walk through the prompts of a kind."""
    pool = [prompt for prompt in prompts if prompt.kind == kind]
    if end > start and not pool:
        raise DataError(
            f"PPO needs {kind} prompts but there are none: give some, or set ppo.helpful_fraction to "
            f"{'1' if kind == 'red_team' else '0'}"
        )
    kind_seed = derive_seed(seed, f"prompts/{kind}", 0)
    chosen = []
    for cursor in range(start, end):
        epoch, position = divmod(cursor, len(pool))
        chosen.append(pool[epoch_order(len(pool), kind_seed, epoch)[position]])
    return chosen


def _rounded(x: float) -> int:
    """To the nearest, halves up (round() goes to even, which would let neighbours differ by two)."""
    return math.floor(x + 0.5)
