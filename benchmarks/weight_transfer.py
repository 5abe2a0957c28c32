"""A weight transfer against a plain memory copy of the same bytes: SmolLM2-135M, 2 ZeRO-3 ranks to 2 engines, CPU.

    python benchmarks/weight_transfer.py [--rounds 9] [--bucket-mb 64] [--folder benchmarks/results]

Every round times one copy (numpy, one thread, warm pages) and one transfer by each backend, one after the other, so
that whatever else the machine does meets all of them; the medians count. Then the number of remote calls at two bucket
sizes, and for two small models of equal bytes and different numbers of parameters. The model comes from its wheel
(`models: smollm2`), its cache from CAI_DIST_CACHE. Writes weight-transfer.json and .md. Needs 5 GB of memory.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from transformers import LlamaConfig, LlamaForCausalLM

from cai_dist.cluster.group import WorkerGroup
from cai_dist.cluster.ppo.weight_transfer import WeightTransfer
from cai_dist.cluster.runtime import Cluster, GroupSpec
from cai_dist.config.ppo import PpoConfig, TransferBackend
from cai_dist.config.run import ClusterConfig, TimeoutsConfig
from cai_dist.config.training import OptimizerConfig, ShardingConfig
from cai_dist.losses.policy import PolicyObjective
from cai_dist.models.smollm2 import smollm2_folder
from cai_dist.tracking.atomic import write_json
from cai_dist.types import WorkerSpec

BACKENDS: tuple[TransferBackend, ...] = ("object_store", "broadcast", "shared_memory")
TIMEOUTS = TimeoutsConfig()
WARM_UP = 2
MIB = 2**20


@contextmanager
def groups(cluster: Cluster, model: str) -> Iterator[tuple[WorkerGroup, WorkerGroup]]:
    """Two ranks of a policy under ZeRO-3, two engines."""
    policy = {
        "model": model,
        "dtype": "fp32",
        "optimizer": OptimizerConfig(),
        "sharding": ShardingConfig(ranks=2, zero=3, micro_batch=1),
        "total_steps": 1,
        "objective": PolicyObjective(clip=0.2),
        "temperature": 1.0,
        "ppo": PpoConfig(),
    }
    rollout = {"model": model, "dtype": "fp32", "require_sync": True}
    specs = [
        GroupSpec("policy", WorkerSpec("policy", policy), 2, 0.25, distributed=True),
        GroupSpec("rollout", WorkerSpec("rollout", rollout), 2, 0.25),
    ]
    made = cluster.launch(specs)
    try:
        yield made["policy"], made["rollout"]
    finally:
        for group in made.values():
            group.close()


def copy_seconds(source: np.ndarray, target: np.ndarray) -> float:
    """One copy of memory to memory."""
    start = time.perf_counter()
    np.copyto(target, source)
    return time.perf_counter() - start


def timed(policy: WorkerGroup, rollout: WorkerGroup, bucket: int, rounds: int) -> dict[str, Any]:
    """Interleaved times of the copy and of all backends."""
    sending = {one: WeightTransfer(policy, rollout, one, bucket, TIMEOUTS.collective) for one in BACKENDS}
    version = 0
    size = int(sending["object_store"].run(version)["bytes"])
    source, target = np.ones(size, np.uint8), np.zeros(size, np.uint8)
    copies: list[float] = []
    found: dict[str, list[float]] = {one: [] for one in BACKENDS}
    for index in range(rounds + WARM_UP):
        for one in BACKENDS:
            version += 1
            copied = copy_seconds(source, target)
            seconds = sending[one].run(version)["seconds"]
            if index >= WARM_UP:
                copies.append(copied)
                found[one].append(seconds)
    copy = statistics.median(copies)
    report: dict[str, Any] = {"bytes": size, "bucket_mb": bucket / MIB, "rounds": rounds, "copy_seconds": copy}
    for one, times in found.items():
        middle = statistics.median(times)
        report[one] = {
            "seconds": middle,
            "fastest": min(times),
            "slowest": max(times),
            "ratio": middle / copy,
            "gb_per_second": size / middle / 1e9,
        }
    return report


def probed(policy: WorkerGroup, rollout: WorkerGroup, rounds: int) -> dict[str, float]:
    """Seconds of what is asked after every transfer, of the trainer and of the engines; medians."""
    found: dict[str, list[float]] = {"trainer": [], "engines": []}
    for _ in range(rounds):
        began = time.perf_counter()
        probe = policy.broadcast("probe", "probe")[0]
        middle = time.perf_counter()
        rollout.broadcast("probe", "score_labels", probe.asked)
        found["trainer"].append(middle - began)
        found["engines"].append(time.perf_counter() - middle)
    return {who: statistics.median(times) for who, times in found.items()}


def calls(policy: WorkerGroup, rollout: WorkerGroup, bucket: int) -> dict[str, int]:
    """Remote calls of one transfer by each backend, the processes having met."""
    count = {}
    for one in BACKENDS:
        sending = WeightTransfer(policy, rollout, one, bucket, TIMEOUTS.collective)
        sending.run(0)
        count[one] = int(sending.run(1)["calls"])
    return count


def small_model(folder: Path, layers: int, inner: int) -> tuple[str, int, int]:
    """A Llama of width 64: folder, number of parameters (tensors), bytes."""
    config = LlamaConfig(
        vocab_size=64, hidden_size=64, intermediate_size=inner, num_hidden_layers=layers, num_attention_heads=2,
        num_key_value_heads=2, tie_word_embeddings=True,
    )  # fmt: skip
    net = LlamaForCausalLM(config)
    net.save_pretrained(folder)
    parameters = list(net.parameters())
    return str(folder), len(parameters), sum(p.numel() * 4 for p in parameters)


def equal_bytes(cluster: Cluster) -> list[dict[str, Any]]:
    """Calls for 2 wide layers and 8 narrow ones: 2 (3 x 386 + 258) = 8 (3 x 32 + 258), so the bytes are the same."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for layers, inner in ((2, 386), (8, 32)):
            model, tensors, size = small_model(Path(folder) / str(layers), layers, inner)
            with groups(cluster, model) as (policy, rollout):
                rows.append({"tensors": tensors, "bytes": size, "calls": calls(policy, rollout, MIB)})
    return rows


def page(report: dict[str, Any]) -> str:
    """The report as a page."""
    times = report["times"]
    lines = [
        "# Weight transfer",
        "",
        f"SmolLM2-135M in fp32 ({times['bytes'] / 1e6:.0f} MB), 2 ZeRO-3 ranks to 2 engines on one machine of "
        f"{report['cores']} cores ({report['machine']}); buckets of {times['bucket_mb']:g} MiB; medians of "
        f"{times['rounds']} interleaved rounds. Written by `benchmarks/weight_transfer.py`.",
        "",
        f"One copy of these bytes (numpy, one thread, warm pages): {times['copy_seconds']:.3f} s.",
        "",
        "| backend | seconds (fastest to slowest) | times the copy | GB/s |",
        "|---|---|---|---|",
    ]
    for one in BACKENDS:
        row = times[one]
        spread = f"{row['seconds']:.3f} ({row['fastest']:.3f} to {row['slowest']:.3f})"
        lines.append(f"| {one} | {spread} | {row['ratio']:.1f} | {row['gb_per_second']:.2f} |")
    probe = report["probe"]
    lines += [
        "",
        f"Of each, the probe behind the last bucket: {probe['trainer']:.3f} s of the trainer, which gathers the model "
        f"for it under ZeRO-3, then {probe['engines']:.3f} s of the engines.",
        "",
        "Remote calls of one transfer:",
        "",
        "| model | tensors | MB | bucket, MiB | " + " | ".join(BACKENDS) + " |",
    ]
    lines += ["|---" * (4 + len(BACKENDS)) + "|"]
    for bucket, count in report["calls"].items():
        size = f"{times['bytes'] / 1e6:.0f}"
        lines.append(f"| SmolLM2-135M | {report['tensors']} | {size} | {bucket} | {_counts(count)} |")
    for row in report["equal_bytes"]:
        lines.append(f"| small | {row['tensors']} | {row['bytes'] / 1e6:.3f} | 1 | {_counts(row['calls'])} |")
    return "\n".join(lines) + "\n"


def _counts(count: dict[str, int]) -> str:
    return " | ".join(str(count[one]) for one in BACKENDS)


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--bucket-mb", type=float, default=64)
    parser.add_argument("--folder", type=Path, default=Path("benchmarks/results"))
    args = parser.parse_args()
    bucket = int(args.bucket_mb * MIB)
    model = str(smollm2_folder("fp32"))
    report: dict[str, Any] = {"cores": os.cpu_count(), "machine": platform.processor() or platform.machine()}
    config = ClusterConfig(num_cpus=4, object_store_mb=2000, timeouts=TIMEOUTS)
    with Cluster(config) as cluster:
        with groups(cluster, model) as (policy, rollout):
            report["times"] = timed(policy, rollout, bucket, args.rounds)
            report["probe"] = probed(policy, rollout, args.rounds)
            report["calls"] = {f"{b / MIB:g}": calls(policy, rollout, b) for b in (bucket, 4 * bucket)}
            plan = policy.broadcast("plan", "weight_plan", bucket, [""])[0]
            report["tensors"] = len(plan.manifest)
        report["equal_bytes"] = equal_bytes(cluster)
    args.folder.mkdir(parents=True, exist_ok=True)
    write_json(args.folder / "weight-transfer.json", report)
    (args.folder / "weight-transfer.md").write_text(page(report), "utf-8")
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
