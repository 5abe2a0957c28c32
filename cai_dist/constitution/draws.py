"""Draws that depend on their keys alone: the same on every machine, in every process, in any order."""

from __future__ import annotations

from cai_dist.config.seeds import draw_number


def draw(seed: int, *keys: str | int, n: int) -> int:
    """A number in 0 … n-1, uniform over the keys and independent between different keys.

    Used for the principle of (seed, prompt id, round). SHA-256 of the keys as JSON, so that ("a", 1) and ("a1",)
    differ; not Python's `hash`, which changes from process to process. Raises ValueError unless n >= 1.
    """
    if n < 1:
        raise ValueError(f"cannot draw one of n={n} things")
    return draw_number(seed, *keys) % n


def draw_some(seed: int, *keys: str | int, n: int, k: int) -> list[int]:
    """`k` different numbers of 0 … n-1 in drawn order; all n of them, shuffled, where k >= n."""
    return sorted(range(n), key=lambda i: draw_number(seed, *keys, i))[:k]
