"""What carrying tokens and their numbers costs in one iteration of PPO: arrays against tuples of Python numbers.

    python benchmarks/carriers.py [--samples 8192] [--length 512] [--ranks 8]

No model runs: tensors of the right shapes stand for what models give. Measured is what ranks do to them between models
and losses, rank after rank, with the program's own functions; and the same with tuples (`carriers_tuples.py`) on one
rank, times `--ranks`. Writes benchmarks/results/carriers.json and .md.
"""

from __future__ import annotations

import argparse
import gc
import json
import pickle
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import carriers_tuples as tuples
import numpy as np
import torch

from cai_dist.config.ppo import PpoConfig
from cai_dist.data.batches import response_rows, sample_batch, trajectory_batch
from cai_dist.experience.algorithms.registry import ALGORITHMS
from cai_dist.experience.moments import Whitening
from cai_dist.experience.sample_checks import kept_rows, kept_samples, samples_of
from cai_dist.experience.trajectories import TrajectoryRequest, make_trajectories
from cai_dist.types import Generation, rows_of

PROMPT, GROUP, MINI_BATCH = 128, 4, 512
RESULTS = Path(__file__).parent / "results"
STEPS = ("sampled", "scored", "trajectories", "learned", "dump", "load")


@dataclass
class Measured:
    """Seconds by step, and bytes pickled."""

    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(STEPS, 0.0))
    bytes: int = 0
    algorithm: float = 0.0
    """Seconds of the advantages' own arithmetic, which is the same for both: not in `seconds`."""

    def timed(self, step: str, call: Callable[[], Any]) -> Any:
        gc.collect()
        gae, spent = ALGORITHMS["gae"], 0.0

        def timed_gae(*args: Any) -> Any:
            nonlocal spent
            began = time.perf_counter()
            estimate = gae(*args)
            spent += time.perf_counter() - began
            return estimate

        ALGORITHMS["gae"] = timed_gae
        began = time.perf_counter()
        made = call()
        self.seconds[step] += time.perf_counter() - began - spent
        self.algorithm += spent
        ALGORITHMS["gae"] = gae
        return made

    def sent(self, thing: Any) -> Any:
        """Through a message to another process."""
        message = self.timed("dump", lambda: pickle.dumps(thing, protocol=5))
        self.bytes += len(message)
        return self.timed("load", lambda: pickle.loads(message))


def config_of(samples: int) -> PpoConfig:
    ranks = {"ranks": 1, "micro_batch": 1}
    return PpoConfig.model_validate(
        {"algorithm": "gae", "prompts_per_iteration": samples // GROUP, "samples_per_prompt": GROUP}
        | {"mini_batch": samples, "importance_cap": 2.0, "policy": ranks, "value": ranks}
    )


def inputs(samples: int, length: int) -> dict[str, Any]:
    draw = torch.Generator().manual_seed(0)
    prompts = [tuple(range(n % 1000 + 300, n % 1000 + 300 + PROMPT)) for n in range(samples // GROUP)]
    numbers = {
        name: -torch.rand(samples * (PROMPT + length), generator=draw) for name in ("policy", "reference", "value")
    }
    return {
        "prompts": [prompts[n // GROUP] for n in range(samples)],
        "tokens": torch.randint(0, 49_152, (samples, length), generator=draw),
        "logprobs": -torch.rand(samples, length, generator=draw),
        "scores": torch.randn(samples, generator=draw, dtype=torch.float64),
        **numbers,
    }


def with_tuples(given: dict[str, Any], config: PpoConfig, found: Measured) -> Measured:
    samples = found.timed("sampled", lambda: tuples.sampled(given["prompts"], given["tokens"], given["logprobs"]))
    here = found.sent(samples)
    rows = []
    for role, more in (("policy", 0), ("reference", 0), ("value", 1)):
        answer = found.timed("scored", lambda role=role, more=more: tuples.answered(here, given[role], more))
        rows.append(found.sent(answer))
    made, (mean, deviation) = found.timed(
        "trajectories", lambda: tuples.trajectories(here, *rows, given["scores"], config)
    )
    there = found.sent(made)
    for start in range(0, len(there), MINI_BATCH):
        part = there[start : start + MINI_BATCH]
        found.timed("learned", lambda part=part: tuples.learned(part, mean, deviation))
    return found


def with_arrays(given: dict[str, Any], config: PpoConfig, found: Measured) -> Measured:

    def sampled() -> Any:
        ids, logprobs = given["tokens"].int().numpy(), given["logprobs"].numpy()
        made = [
            Generation(np.array(prompt, np.int32), ids[n], logprobs[n], "length", 0)
            for n, prompt in enumerate(given["prompts"])
        ]
        return kept_samples(given["prompts"], made)

    kept = found.timed("sampled", sampled)
    block = found.sent(kept.rows)
    here = found.timed("load", lambda: tuple(block))
    rows = []
    for role in ("policy", "reference", "value"):

        def answered(role: str = role) -> Any:
            flat = response_rows(sample_batch(here), given[role])
            more = role == "value"
            flat = flat.appended(np.zeros(len(flat), np.float32)) if more else flat
            return kept_rows(role, here, flat, more=int(more)).rows

        rows.append(tuple(found.sent(found.timed("scored", answered))))
    scores = tuple(given["scores"].tolist())
    request = TrajectoryRequest(here, *rows, scores, scores, (("p", "red_team"),) * len(here), 0.05, 0)
    made = found.timed("trajectories", lambda: make_trajectories(request, config))
    there = found.sent(made.rows)
    white = Whitening.by(made.facts.advantages)
    for start in range(0, len(there), MINI_BATCH):
        wanted = range(start, min(start + MINI_BATCH, len(there)))

        def learned(wanted: range = wanted) -> Any:
            return trajectory_batch([there[n] for n in wanted], white.mean, white.deviation)

        found.timed("learned", learned)
    return found


def driver_seconds(given: dict[str, Any]) -> float:
    """What passes through the driver: references and facts, which hold no token."""
    made = [Generation(prompt, (1,), (-0.5,), "length", 0) for prompt in given["prompts"]]
    facts = kept_samples(given["prompts"], made).facts
    began = time.perf_counter()
    for _ in range(5):  # samples, three answers, trajectories
        refs = samples_of(rows_of("ref", len(facts)), pickle.loads(pickle.dumps(facts)))
        pickle.dumps([ref.row for ref in refs])
    return time.perf_counter() - began


def page(given: argparse.Namespace, before: Measured, after: Measured, scale: float, driver: float) -> str:
    names = {
        "sampled": "samples out of the sampler, checked",
        "scored": "three roles: batch, numbers out of the pass, checked",
        "trajectories": "rewards, advantages, weights, sums",
        "learned": "batches of the training steps, whitened",
        "dump": "pickled",
        "load": "unpickled",
    }
    lines = [
        "# Carriers",
        "",
        f"{given.samples} samples of {PROMPT} + {given.length} tokens on {given.ranks} ranks, one epoch. Seconds of "
        "all ranks together; no model runs. Tuples: one rank, times the ranks. `python benchmarks/carriers.py`.",
        "",
        "| | tuples | arrays | ratio |",
        "|---|---|---|---|",
    ]
    for step in STEPS:
        a, b = before.seconds[step] * scale, after.seconds[step]
        lines.append(f"| {names[step]}, s | {a:.2f} | {b:.3f} | {a / b:.0f} |")
    a, b = sum(before.seconds.values()) * scale, sum(after.seconds.values())
    lines.append(f"| **ranks, all of it, s** | **{a:.1f}** | **{b:.2f}** | **{a / b:.0f}** |")
    x, y = before.bytes * scale / 2**20, after.bytes / 2**20
    lines.append(f"| **pickled, MiB** | **{x:.0f}** | **{y:.0f}** | **{x / y:.1f}** |")
    a, b = before.algorithm * scale, after.algorithm
    lines.append(f"| the advantages' own arithmetic (not above), s | {a:.2f} | {b:.2f} | {a / b:.1f} |")
    lines.append(f"| driver: references and facts (the same for both), s | {driver:.2f} | {driver:.2f} | 1 |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--samples", type=int, default=8192)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--ranks", type=int, default=8)
    asked = parser.parse_args()
    for way in (with_arrays, with_tuples):  # the first call of everything is slower
        way(inputs(64, 64), config_of(64), Measured())
    share, after, before = asked.samples // asked.ranks, Measured(), Measured()
    given, config = inputs(share, asked.length), config_of(share)
    for _ in range(asked.ranks):
        with_arrays(given, config, after)
    with_tuples(given, config, before)
    driver = driver_seconds(inputs(asked.samples, 1))
    text = page(asked, before, after, asked.ranks, driver)
    print(text)
    if asked.samples == 8192:
        numbers = {"samples": asked.samples, "length": asked.length, "driver_seconds": driver}
        for name, found in (("tuples", before), ("arrays", after)):
            numbers[name] = {"seconds": found.seconds, "bytes": found.bytes}
        numbers["tuples"]["samples"] = share
        (RESULTS / "carriers.json").write_text(json.dumps(numbers, indent=2) + "\n")
        (RESULTS / "carriers.md").write_text(text)


if __name__ == "__main__":
    main()
