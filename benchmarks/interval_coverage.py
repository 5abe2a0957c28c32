"""How often the intervals of shares over several pairs a prompt hold the truth, by simulation.

    python benchmarks/interval_coverage.py > benchmarks/results/interval-coverage.md

Prompts have a beta-distributed chance each; `alike` is the correlation of two pairs of one prompt. A few minutes, seed
0.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

from cai_dist.losses.calibration import clustered_interval, wilson_interval

DRAWS = 1000
PAIRS = (1, 2, 4, 8)


def observations(rng: random.Random, prompts: int, pairs: int, mean: float, alike: float) -> list[list[float]]:
    """0 or 1 for each of `pairs` pairs of each prompt."""
    a = (1 - alike) / alike
    chances = [rng.betavariate(mean * a, (1 - mean) * a) for _ in range(prompts)]
    return [[float(rng.random() < chance) for _ in range(pairs)] for chance in chances]


def coverage(prompts: int, pairs: int, mean: float, alike: float) -> tuple[float, float, float]:
    """Shares of the draws whose interval holds `mean`, by prompt and counting pairs, and the mean width by prompt."""
    rng = random.Random(0)
    by_prompt = by_pair = width = 0.0
    for _ in range(DRAWS):
        found = observations(rng, prompts, pairs, mean, alike)
        low, high = clustered_interval(found)
        by_prompt += low <= mean <= high
        width += high - low
        low, high = wilson_interval(sum(map(sum, found)), prompts * pairs)
        by_pair += low <= mean <= high
    return by_prompt / DRAWS, by_pair / DRAWS, width / DRAWS


def table() -> Iterator[str]:
    yield "# Coverage of the 95% intervals over prompts with several pairs each"
    yield ""
    yield f"{DRAWS} draws a cell: share whose interval holds the truth, by prompt (in brackets: counting pairs)."
    yield "By `python benchmarks/interval_coverage.py`."
    yield ""
    yield "| prompts | truth | alike | " + " | ".join(f"{n} pair{'s' * (n > 1)}" for n in PAIRS) + " |"
    yield "|---" * (3 + len(PAIRS)) + "|"
    for prompts in (10, 30, 60, 200):
        for mean in (0.5, 0.7, 0.9):
            for alike in (0.05, 0.27, 0.6):
                cells = [coverage(prompts, pairs, mean, alike) for pairs in PAIRS]
                shown = " | ".join(f"{own:.3f} ({naive:.3f})" for own, naive, _ in cells)
                yield f"| {prompts} | {mean} | {alike} | {shown} |"


if __name__ == "__main__":
    for line in table():
        print(line, flush=True)
