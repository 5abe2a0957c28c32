"""The control plane at 8 to 1,024 GPUs: the real coordinator, groups, planner and Ray, with workers that sleep.

    python benchmarks/scale.py [--gpus 8 … 1024] [--lengths 128 512 2048] [--iteration 30] [--hosts 2]

Every worker has a simulated GPU of its own: half of them are rollout workers, a quarter policy ranks, an eighth value,
the rest reference and reward. An iteration has 4 samples a GPU, 8 optimiser steps and, whatever their number and
length, `--iteration` seconds of work along its critical path: what it takes longer is the control plane's. Sizes are
measured at the first length, lengths at `--at` GPUs. Writes benchmarks/results/scale.json and .md and, where matplotlib
is installed, docs/figures/scale.png; `--draw` makes the figure from the numbers that are there. docs/scale.md says what
is simulated and what is not.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import accumulate
from pathlib import Path
from statistics import fmean
from typing import Any

os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])

import ray
from scale_workers import PROMPT, SIZES, TALLY, Costs, Done, Load, SimulatedCluster

from cai_dist.cluster.ppo.groups import PpoGroups, PpoModels
from cai_dist.config.placement import PlacementConfig, RoleShards
from cai_dist.config.ppo import PpoConfig
from cai_dist.config.run import ClusterConfig
from cai_dist.config.training import SamplingConfig, ShardingConfig
from cai_dist.coordinator.loop import train
from cai_dist.coordinator.prompt_cursor import TokenizedPrompt
from cai_dist.coordinator.score_requests import chunk_size
from cai_dist.tracking.checkpoints import CheckpointStore

ROOT = Path(__file__).resolve().parents[1]
SAMPLES = 4
"""Of an iteration, for each GPU."""
MICRO_BATCH, ROLLOUT_BATCH = 4, 8
WARM_UP = 3
GOAL, SHARE = 30.0, 0.02
"""Overhead is to be at most this share of an iteration of so many seconds, at 256 GPUs."""
SCORING = ("logprobs", "values", "scores")


@dataclass(frozen=True)
class Row:
    """Means over the measured iterations of one run."""

    gpus: int
    length: int
    """Mean tokens of a response."""
    tokens: int
    """Of all responses of an iteration."""
    start_seconds: float
    """From the first placement group to the last worker built."""
    wall: float
    critical: float
    driver_cpu: float
    """Of all threads of its process; `thread_cpu`: of the one that runs the coordinator."""
    thread_cpu: float
    hosts_cpu: float
    """Of the processes that the workers share: what would be spread over the nodes."""
    load: float
    """Runnable processes of the machine, mean of the last minute; above the number of CPUs, `wall` waits for others."""
    calls: float
    mb_out: float
    """Pickled arguments that leave the driver."""
    mb_back: float
    """Pickled results that it reads."""
    mb_of: dict[str, float]
    """Both, by method."""

    @property
    def overhead(self) -> float:
        """Seconds of an iteration in which everything waits for the control plane."""
        return self.wall - self.critical


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpus", type=int, nargs="+", default=[8, 32, 64, 128, 256, 512, 1024])
    parser.add_argument("--lengths", type=int, nargs="+", default=[128, 512, 2048])
    parser.add_argument("--iteration", type=float, default=30.0, help="seconds of work in an iteration")
    parser.add_argument("--iterations", type=int, default=2, help="that are measured, after three that are not")
    parser.add_argument("--at", type=int, default=64, help="GPUs at which the lengths are compared")
    parser.add_argument("--hosts", type=int, default=2, help="processes that the workers share")
    parser.add_argument("--start", type=float, default=2.0, help="seconds of import, and of building, of a worker")
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results")
    parser.add_argument("--figures", type=Path, default=ROOT / "docs" / "figures")
    parser.add_argument("--draw", action="store_true", help="measure nothing")
    arguments = parser.parse_args()
    if arguments.draw:
        content = json.loads((arguments.results / "scale.json").read_text())
        return draw([Row(**{k: v for k, v in row.items() if k != "overhead"}) for row in content["rows"]], arguments)
    points = [(gpus, arguments.lengths[0]) for gpus in arguments.gpus]
    points += [(arguments.at, length) for length in arguments.lengths if (arguments.at, length) not in points]
    rows = []
    for gpus, length in points:
        costs = Costs(arguments.iteration, length, start=arguments.start)
        rows.append(measure(gpus, costs, arguments.iterations, arguments.hosts))
        write(rows, arguments)
    return None


def roles_of(gpus: int) -> dict[str, int]:
    """Workers by role; their sum is `gpus`. Raises ValueError for fewer than 8."""
    if gpus < 8:
        raise ValueError(f"gpus={gpus}: five roles need 8")
    counts = {"policy": gpus // 4, "value": gpus // 8, "reference": max(1, gpus // 16), "reward": max(1, gpus // 16)}
    return {**counts, "rollout": gpus - sum(counts.values())}


def settings(gpus: int, length: int, iterations: int) -> PpoConfig:
    """PPO at this size; one logical CPU stands for nothing here, so that Ray starts no processes ahead of time."""
    workers, samples = roles_of(gpus), SAMPLES * gpus
    tiny = {role: PlacementConfig(workers=count, cpus=0.001) for role, count in workers.items()}
    return PpoConfig(
        iterations=iterations,
        prompts_per_iteration=samples,
        mini_batch=samples // 4,
        epochs=2,
        policy=ShardingConfig(ranks=workers["policy"], zero=3, micro_batch=MICRO_BATCH),
        value=ShardingConfig(ranks=workers["value"], zero=3, micro_batch=MICRO_BATCH),
        rollout_batch=ROLLOUT_BATCH,
        sampling=SamplingConfig(max_new_tokens=length * 3 // 2),
        transfer="broadcast",
        checkpoint_every=iterations,
        placement=RoleShards(**tiny),
    )


def loads(config: PpoConfig, costs: Costs, gpus: int) -> dict[str, Load]:
    """What a worker of each role does in an iteration."""
    samples, workers = SAMPLES * gpus, roles_of(gpus)
    requests = math.ceil(math.ceil(samples / ROLLOUT_BATCH) / workers["rollout"])
    found = {}
    for role, count in workers.items():
        scored = samples * (PROMPT + costs.response) / count
        found[role] = Load(requests * costs.response * 1.5, scored, config.epochs * scored)
    return found


def measure(gpus: int, costs: Costs, iterations: int, hosts: int) -> Row:
    """One run of `iterations` measured iterations, after some that are not: in those every worker is asked about its
    memory in each phase, as it is later in one iteration of ten."""
    config = settings(gpus, costs.response, iterations + WARM_UP)
    samples = SAMPLES * gpus
    prompts = [TokenizedPrompt(str(n), ("red_team", "helpful")[n % 2], _prompt(n)) for n in range(2 * samples)]
    found: list[dict[str, Any]] = []
    with SimulatedCluster(ClusterConfig(num_cpus=4)) as cluster, tempfile.TemporaryDirectory() as folder:
        cluster.host(hosts, costs, loads(config, costs, gpus))
        began = time.perf_counter()
        roles = PpoGroups(
            cluster, config, PpoModels("policy", "reference", "reward", "value"), dtype="bf16", end_id=0,
            policy_steps=1, value_steps=1, seed=0, timeouts=ClusterConfig().timeouts,
        )  # fmt: skip
        start_seconds = time.perf_counter() - began
        mark = [_now()]

        def log(step: int, **numbers: float) -> None:
            wall, cpu, thread = (b - a for a, b in zip(mark[0], _now(), strict=True))
            reports = ray.get([host.done.remote() for host in cluster.hosts])
            calls = [call for report in reports for call in report.calls]
            taken = critical_path(calls, config, samples)
            traffic = {name: (TALLY.out_of[name] + TALLY.back_of[name]) / 1e6 for name in TALLY.calls}
            found.append({"wall": wall, "cpu": cpu, "critical": taken, "calls": TALLY.calls.total(), "of": traffic})
            found[-1] |= {"thread": thread, "hosts": sum(report.cpu for report in reports), "load": os.getloadavg()[0]}
            found[-1] |= {"out": TALLY.out / 1e6, "back": TALLY.back / 1e6, "tokens": numbers["response_tokens"]}
            TALLY.__init__()  # type: ignore[misc]
            SIZES.clear()
            mark[0] = _now()

        train(
            roles, prompts, config, seed=0, stop_ids=(0,), checkpoints=CheckpointStore(Path(folder)), log=log,
            should_stop=lambda: False,
        )  # fmt: skip
    TALLY.__init__()  # type: ignore[misc]
    kept = found[WARM_UP:]
    mean = {name: fmean(item[name] for item in kept) for name in kept[0] if name != "of"}
    traffic = {name: fmean(item["of"].get(name, 0.0) for item in kept) for name in kept[0]["of"]}
    return Row(
        gpus, costs.response, round(mean["tokens"]), start_seconds, mean["wall"], mean["critical"], mean["cpu"],
        mean["thread"], mean["hosts"], mean["load"],
        mean["calls"], mean["out"], mean["back"], traffic,
    )  # fmt: skip


def critical_path(calls: Sequence[Done], config: PpoConfig, samples: int) -> float:
    """Seconds of an iteration whose control plane takes no time, from what every call was to take.

    Generation: every rollout worker answers its requests one after the other. Scoring: every worker scores the chunks
    one after the other, each as soon as its samples are there. Then the optimiser steps, each as long as its slowest
    rank, and the transfer.
    """
    of_worker: defaultdict[tuple[str, int, str], list[float]] = defaultdict(list)
    for call in calls:
        kind = "score" if call.method in SCORING else call.method
        of_worker[call.role, call.rank, kind].append(call.seconds)
    requests = math.ceil(samples / ROLLOUT_BATCH)
    workers = len([key for key in of_worker if key[2] == "sample"])
    ends = {rank: list(accumulate(of_worker["rollout", rank, "sample"])) for rank in range(workers)}
    finished = [ends[i % workers][i // workers] for i in range(requests)]
    chunk = chunk_size(config) // ROLLOUT_BATCH if config.streams else requests
    ready = sorted(max(finished[first : first + chunk]) for first in range(0, requests, chunk))
    scored = 0.0
    for durations in [seconds for key, seconds in of_worker.items() if key[2] == "score"]:
        end = 0.0
        for begin, seconds in zip(ready, durations, strict=True):
            end = max(end, begin) + seconds
        scored = max(scored, end)
    steps = [seconds for key, seconds in of_worker.items() if key[2] == "train_step"]
    updated = sum(max(of_step) for of_step in zip(*steps, strict=True))
    return scored + updated + max(call.seconds for call in calls if call.method == "take_broadcast")


def _prompt(number: int) -> tuple[int, ...]:
    """Of `PROMPT` tokens, no two the same."""
    return (number, *range(1000, 1000 + PROMPT - 1))


def _now() -> tuple[float, float, float]:
    return time.perf_counter(), time.process_time(), time.thread_time()


def table(rows: Sequence[Row]) -> str:
    """One line a run; shares are of the iteration that the goal is about."""
    head = ["GPUs", "tokens a response", "start s", "wall s", "critical path s", "overhead s", f"of {GOAL:g} s"]
    head += ["driver CPU s", "coordinator CPU s", "of it", "calls", "MB out", "MB in", "load"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---:|" * len(head)]
    for row in rows:
        cells = [f"{row.gpus:,}", f"{row.length}", f"{row.start_seconds:.1f}", f"{row.wall:.2f}", f"{row.critical:.2f}"]
        cells += [f"{row.overhead:.2f}", f"{row.overhead / GOAL:.1%}", f"{row.driver_cpu:.2f}"]
        cells += [f"{row.thread_cpu:.2f}", f"{row.thread_cpu / GOAL:.1%}", f"{row.calls:,.0f}"]
        cells += [f"{row.mb_out:.1f}", f"{row.mb_back:.1f}", f"{row.load:.0f}"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def write(rows: Sequence[Row], arguments: argparse.Namespace) -> None:
    """Table, numbers and figure."""
    arguments.results.mkdir(parents=True, exist_ok=True)
    content = {
        "date": time.strftime("%Y-%m-%d"),
        "machine": f"{platform.machine()}, {os.cpu_count()} CPUs, Ray {ray.__version__}",
        "iteration": arguments.iteration,
        "hosts": arguments.hosts,
        "rows": [asdict(row) | {"overhead": row.overhead} for row in rows],
    }
    (arguments.results / "scale.json").write_text(json.dumps(content, indent=1) + "\n")
    text = f"# The control plane by simulation\n\n{content['machine']}.\n\n{table(rows)}\n"
    (arguments.results / "scale.md").write_text(text)
    print(text)
    draw(rows, arguments)


def draw(rows: Sequence[Row], arguments: argparse.Namespace) -> None:
    """Left: seconds over GPUs. Right: megabytes over the length of a response."""
    try:
        import matplotlib
    except ImportError:
        print("matplotlib is not installed: no figure")
        return
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2), dpi=120)
    sizes = [row for row in rows if row.length == rows[0].length]
    gpus = [row.gpus for row in sizes]
    for name, seconds in (
        ("wall - critical path", [row.overhead for row in sizes]),
        ("CPU of the coordinator's thread", [row.thread_cpu for row in sizes]),
        ("time to start", [row.start_seconds for row in sizes]),
    ):
        left.loglog(gpus, seconds, marker="o", label=name)
    left.axhline(GOAL * SHARE, color="grey", linewidth=0.8, linestyle="--", label=f"{SHARE:.0%} of {GOAL:g} s")
    left.set(xlabel="simulated GPUs", ylabel="seconds", title="an iteration's control plane")
    lengths = sorted((row for row in rows if row.gpus == arguments.at), key=lambda row: row.length)
    tokens = [row.length for row in lengths]
    right.loglog(tokens, [row.mb_out for row in lengths], marker="o", label="out of the driver")
    right.loglog(tokens, [row.mb_back for row in lengths], marker="o", label="into the driver")
    right.set(xlabel="tokens of a response", ylabel="MB an iteration", title=f"{arguments.at} GPUs")
    for axes in (left, right):
        axes.legend(fontsize="small")
    right.set_xticks(tokens, map(str, tokens))
    right.minorticks_off()
    figure.tight_layout()
    arguments.figures.mkdir(parents=True, exist_ok=True)
    figure.savefig(arguments.figures / "scale.png", bbox_inches="tight")
    plt.close(figure)


if __name__ == "__main__":
    sys.exit(main())
