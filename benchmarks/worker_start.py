"""Seconds until workers of a local cluster have imported what they need: forks against new processes.

    python benchmarks/worker_start.py

Alternating rounds, each on a Ray cluster of its own: from before Ray starts until four workers of the policy are there,
and the same again once they have ended. Writes benchmarks/results/worker-start.md.
"""

from __future__ import annotations

import platform
import time
from datetime import date
from pathlib import Path
from statistics import median

from cai_dist.cluster.futures import Call, gather
from cai_dist.cluster.runtime import Cluster, GroupSpec
from cai_dist.config.run import ClusterConfig
from cai_dist.types import WorkerSpec

ROUNDS, WORKERS = 3, 4
RESULT = Path(__file__).parent / "results" / "worker-start.md"


class Nothing:
    """A worker that does nothing."""

    def __init__(self, info: object) -> None:
        pass


def one_round(fork: bool) -> tuple[float, float]:
    """Seconds of the first start, Ray's included, and of the second."""
    began = time.perf_counter()
    with Cluster(ClusterConfig(object_store_mb=100, fork_workers=fork)) as cluster:
        return _start(cluster, began), _start(cluster, time.perf_counter())


def _start(cluster: Cluster, began: float) -> float:
    spec = GroupSpec("policy", WorkerSpec("worker_start:Nothing", {}), workers=WORKERS, cpus=0.1)
    group = cluster.launch([spec])["policy"]
    calls = [
        Call(member.actor.prepare.remote("policy", None, True), "start", "policy", rank, member.node)
        for rank, member in enumerate(group.members)
    ]
    gather(calls, 300.0)
    seconds = time.perf_counter() - began
    group.close()
    return seconds


def main() -> None:
    found: dict[bool, list[tuple[float, float]]] = {True: [], False: []}
    for _ in range(ROUNDS):
        for fork in found:
            found[fork].append(one_round(fork))
            print(f"{'forks' if fork else 'processes'}: {found[fork][-1]}", flush=True)
    lines = ["# Start of four workers", ""]
    lines += [
        f"{date.today()}, {platform.processor() or platform.machine()}, {ROUNDS} alternating rounds, seconds: median "
        "(lowest to highest). `python benchmarks/worker_start.py`",
        "",
        "| | new processes | forks | ratio of the medians |",
        "|---|---|---|---|",
    ]
    for index, name in enumerate(("Ray and the first four", "the next four")):
        plain, forks = ([pair[index] for pair in found[fork]] for fork in (False, True))
        shown = [f"{median(s):.1f} ({min(s):.1f} to {max(s):.1f})" for s in (plain, forks)]
        lines.append(f"| {name} | {shown[0]} | {shown[1]} | {median(plain) / median(forks):.1f} |")
    RESULT.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
