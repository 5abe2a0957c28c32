"""PPO with all roles on one GPU: MFU of training, tokens/s of each phase, peak memory, and weight transfer by backend.

    python benchmarks/gpu_ppo.py [--layers 24 ...] [--folder benchmarks/results]
    python benchmarks/gpu_ppo.py --tiny        # the same code on a CPU, a minute; shows that it runs, measures nothing

The policy is Llama-shaped with random weights in bf16 (0.65 billion parameters by default), as are value, reference and
reward; the placement is `colocated`. The real thing runs: Ray actors, DeepSpeed, the coordinator's loop. The first
iteration warms up. Phases are timed by the workers themselves; in the update policy and value train side by side on the
same GPU, afterwards the policy alone. Its size is chosen to fit 80 GB and eight minutes. Writes gpu-<device>.json and
.md.

Where packages cannot be installed, unpack them (pydantic, ray, deepspeed and what they need) into one folder and give
it to all processes: `PYTHONPATH=/path/to/packages:$PWD python benchmarks/gpu_ppo.py`. Ray's workers get PYTHONPATH from
the process that starts them. `python -m pytest tests/gpu` runs in the same way.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")  # this process looks at the GPU, it takes none of it

import ray
import torch
from gpu_flops import Work, body_parameters, forward_flops, peak, training_flops
from gpu_memory import DeviceMemory
from gpu_page import page
from ppo_iteration import Finished, NoCheckpoints
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification

from cai_dist.cluster.ppo.groups import PpoGroups, PpoModels
from cai_dist.cluster.ppo.weight_transfer import WeightTransfer
from cai_dist.cluster.runtime import Cluster
from cai_dist.config.engine import EngineConfig
from cai_dist.config.ppo import PpoConfig, TransferBackend
from cai_dist.config.run import ClusterConfig, TimeoutsConfig
from cai_dist.coordinator import loop
from cai_dist.coordinator.prompt_cursor import TokenizedPrompt
from cai_dist.errors import CaiError
from cai_dist.tracking.atomic import write_json
from cai_dist.types import Span, Trajectory, TrajectoryRef, rows_of

PHASES = {
    "rollout": ("generate",),
    "score": ("policy log-probs", "reference log-probs", "values", "scores"),
    "update": ("policy update", "value update"),
    "making room": ("make room",),
}
"""What the workers' calls are named, of which the times are; a transfer is timed by the driver."""
TIMEOUTS = TimeoutsConfig(call=300.0)
SEED = 0


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="a model of width 64 on the CPU")
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--hidden", type=int, default=1536)
    parser.add_argument("--intermediate", type=int, default=4096)
    parser.add_argument("--head-dim", type=int, default=128)
    parser.add_argument("--key-heads", type=int, default=4)
    parser.add_argument("--vocabulary", type=int, default=32_000)
    parser.add_argument("--samples", type=int, default=256, help="of one iteration")
    parser.add_argument("--prompt", type=int, default=256, help="tokens of the longest prompt; the shortest has half")
    parser.add_argument("--response", type=int, default=256, help="new tokens at most")
    parser.add_argument("--micro-tokens", type=int, default=8192, help="tokens of one forward pass")
    parser.add_argument("--zero", type=int, default=1)
    parser.add_argument("--iterations", type=int, default=3, help="the first one warms up")
    parser.add_argument("--rounds", type=int, default=5, help="transfers by each backend")
    parser.add_argument("--transfer", choices=("cuda_ipc", "object_store", "shared_memory"), default="cuda_ipc")
    parser.add_argument("--folder", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--rate", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.tiny:
        small = {"layers": 2, "hidden": 64, "intermediate": 96, "head_dim": 32, "key_heads": 1, "vocabulary": 512}
        less = {"samples": 8, "prompt": 12, "response": 8, "micro_tokens": 128, "iterations": 2, "rounds": 2}
        vars(args).update(small | less | {"transfer": "object_store"})
    args.gpu = torch.cuda.is_available() and not args.tiny
    return args


# ---- what is run


def model_config(args: argparse.Namespace) -> LlamaConfig:
    """Of the policy; the embeddings are the output layer, too."""
    return LlamaConfig(
        vocab_size=args.vocabulary,
        hidden_size=args.hidden,
        intermediate_size=args.intermediate,
        num_hidden_layers=args.layers,
        num_attention_heads=args.hidden // args.head_dim,
        num_key_value_heads=args.key_heads,
        head_dim=args.head_dim,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
        dtype="bfloat16",
    )


def make_models(args: argparse.Namespace, folder: Path) -> PpoModels:
    """Policy and reference are one random model, value and reward another with a scalar head."""
    torch.manual_seed(SEED)
    config = model_config(args)
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder / "policy")
    config.num_labels = 1
    LlamaForSequenceClassification(config).to(torch.bfloat16).save_pretrained(folder / "reward")
    policy, reward = str(folder / "policy"), str(folder / "reward")
    return PpoModels(policy=policy, reference=policy, reward=reward, value=reward)


def ppo_config(args: argparse.Namespace, transfer: TransferBackend) -> PpoConfig:
    """Five roles on one GPU (or on none)."""
    sharding = {"ranks": 1, "zero": args.zero, "max_tokens_per_micro_batch": args.micro_tokens}
    role = {"workers": 1, "gpus": 1 if args.gpu else 0}
    return PpoConfig.model_validate(
        {
            "iterations": args.iterations,
            "prompts_per_iteration": args.samples,
            "mini_batch": args.samples // 2,
            "helpful_fraction": 0,
            "epochs": 1,
            "policy": sharding,
            "value": sharding,
            "policy_optimizer": {"lr": 1e-6},
            "value_optimizer": {"lr": 1e-6},
            "sampling": {"max_new_tokens": args.response},
            "rollout_batch": args.samples,
            "checkpoint_every": args.iterations,
            "transfer": transfer,
            "transfer_bucket_mb": 256,
            "placement": {"mode": "colocated"}
            | dict.fromkeys(("policy", "value", "reference", "reward", "rollout"), role),
        }
    )


def make_prompts(args: argparse.Namespace) -> list[TokenizedPrompt]:
    """Random ids, half as long to as long as the longest."""
    rng = random.Random(SEED)
    lengths = [rng.randint(args.prompt // 2, args.prompt) for _ in range(args.samples)]
    return [
        TokenizedPrompt(str(i), "red_team", tuple(rng.randrange(3, args.vocabulary) for _ in range(n)))
        for i, n in enumerate(lengths)
    ]


@contextmanager
def started(cluster: Cluster, args: argparse.Namespace, models: PpoModels) -> Iterator[tuple[PpoGroups, PpoConfig]]:
    """The roles, with the asked-for transfer if this machine can do it, else through the object store."""
    for transfer in dict.fromkeys([args.transfer, "object_store"]):
        config = ppo_config(args, transfer)
        steps = 2 * args.iterations + args.rounds
        with PpoGroups(
            cluster, config, models, dtype="bf16", end_id=2, policy_steps=steps, value_steps=steps, seed=SEED,
            timeouts=TIMEOUTS, engine=EngineConfig(max_rows=args.samples),
        ) as roles:  # fmt: skip
            try:
                roles.enter("transfer")
                roles.sync_weights(0)
            except CaiError as error:
                if transfer == "object_store":
                    raise
                print(f"{transfer}: {error}", file=sys.stderr)
                continue
            yield roles, config
            return


# ---- what is measured


class Iterations:
    """Collects, iteration by iteration, what the loop tells."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []
        self.trajectories: Sequence[Trajectory] = ()
        self.spans: list[list[Span]] = []

    def on_rollout(self, _: int, trajectories: Sequence[Trajectory]) -> None:
        """The samples of an iteration."""
        self.trajectories = tuple(trajectories)
        self.rows.append({"work": work_of(trajectories)})

    def on_spans(self, _: int, spans: Sequence[Span]) -> None:
        """What the workers have done in it."""
        self.spans.append(list(spans))
        self.rows[-1]["seconds"] = {name: covered(spans, calls) for name, calls in PHASES.items()}

    def log(self, _: int, **numbers: float) -> None:
        """What the loop logs."""
        self.rows[-1]["metrics"] = numbers


def work_of(trajectories: Sequence[Trajectory]) -> Work:
    """What a pass over these samples is."""
    lengths = [len(t.prompt_ids) + len(t.response_ids) for t in trajectories]
    return Work(sum(lengths), sum(n * n for n in lengths), sum(len(t.response_ids) for t in trajectories))


def covered(spans: Sequence[Span], names: Sequence[str]) -> float:
    """Seconds in which at least one worker was in a call of these names."""
    total, reached = 0.0, float("-inf")
    for start, end in sorted((span.start, span.end) for span in spans if span.name in names):
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total


def run_loop(roles: PpoGroups, config: PpoConfig, args: argparse.Namespace) -> Iterations:
    """All iterations of the coordinator's own loop."""
    found = Iterations()
    with suppress(Finished):
        loop.train(
            roles,
            make_prompts(args),
            config,
            seed=SEED,
            stop_ids=(2,),
            checkpoints=NoCheckpoints(),
            log=found.log,
            should_stop=lambda: False,
            on_rollout=found.on_rollout,
            on_spans=found.on_spans,
        )
    return found


def policy_alone(roles: PpoGroups, trajectories: Sequence[Trajectory], steps: int = 2) -> float:
    """Seconds of one optimiser step of the policy on all of these samples, nothing beside it."""
    roles.enter("update")
    tokens = float(sum(len(item.response_ids) for item in trajectories))
    rows = rows_of(ray.put(list(trajectories)), len(trajectories))
    sizes = [(len(t.prompt_ids), len(t.response_ids)) for t in trajectories]
    refs = [TrajectoryRef(row, a + b, b) for row, (a, b) in zip(rows, sizes, strict=True)]
    times = []
    for _ in range(steps):
        start = time.perf_counter()
        roles.update_policy(refs, tokens, 0.05, None).result()
        times.append(time.perf_counter() - start)
    return min(times)


def transfers(roles: PpoGroups, config: PpoConfig, args: argparse.Namespace) -> dict[str, Any]:
    """Median seconds and GB/s of a whole transfer by each backend, or the line that says why there is none."""
    roles.enter("transfer")
    backends: list[TransferBackend] = ["object_store", "shared_memory", *(["cuda_ipc"] if args.gpu else [])]
    groups = roles._groups["policy"], roles._groups["rollout"]
    version, found = 1000, {}
    for backend in backends:
        sending = WeightTransfer(*groups, backend, int(config.transfer_bucket_mb * 2**20), TIMEOUTS.collective)
        reports = []
        try:
            for _ in range(args.rounds + 1):  # the first one makes what later ones use
                version += 1
                reports.append(sending.run(version))
        except CaiError as error:
            found[backend] = {"error": str(error)}
            continue
        seconds = statistics.median(report["seconds"] for report in reports[1:])
        size = reports[0]["bytes"]
        found[backend] = {"seconds": seconds, "bytes": size, "gb_per_second": size / seconds / 1e9}
        found[backend]["calls"] = reports[-1]["calls"]
    return found


def summary(found: Iterations, alone: float, config: LlamaConfig, rate: dict[str, Any]) -> dict[str, Any]:
    """Means over the iterations that count, and the shares of the device's peak."""
    rows = found.rows[1:] or found.rows
    top, source = peak(rate["device"], rate["flops"])
    seconds = {name: statistics.fmean(row["seconds"][name] for row in rows) for name in PHASES}
    seconds["transfer"] = statistics.fmean(row["metrics"]["sync_seconds"] for row in rows)
    work = [row["work"] for row in rows]
    policy = statistics.fmean(training_flops(config, one) for one in work)
    value = statistics.fmean(training_flops(config, Work(one.tokens, one.squares, 0)) for one in work)
    scoring = statistics.fmean(
        2 * forward_flops(config, one) + 2 * forward_flops(config, Work(one.tokens, one.squares, 0)) for one in work
    )
    last = work_of(found.trajectories)
    tokens, new = (statistics.fmean(getattr(one, name) for one in work) for name in ("tokens", "scored"))
    names = ("mismatch_mean", "mismatch_max", "mismatch_kl", "policy_grad_norm", "score")
    return {
        "work": [asdict(one) for one in work],
        "seconds": seconds,
        "tokens_per_second": {
            "rollout": new / seconds["rollout"],
            "score": tokens / seconds["score"],
            "update": tokens / seconds["update"],
        },
        "peak_flops": top,
        "peak_source": source,
        "mfu": {
            "update": (policy + value) / seconds["update"] / top,
            "score": scoring / seconds["score"] / top,
            "policy alone": training_flops(config, last) / alone / top,
        },
        "policy_alone": {"seconds": alone, "tokens_per_second": last.tokens / alone},
        "metrics": [{name: row["metrics"][name] for name in names if name in row["metrics"]} for row in rows],
    }


def device_rate(tiny: bool) -> dict[str, Any]:
    """Name of the device and FLOP/s of a large bf16 matrix product on it; in a process of its own."""
    device = "cuda" if torch.cuda.is_available() and not tiny else "cpu"
    size = 8192 if device == "cuda" else 512
    a, b = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    best = float("inf")
    for _ in range(10):
        start = time.perf_counter()
        a @ b
        if device == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - start)
    name = torch.cuda.get_device_name() if device == "cuda" else "cpu"
    return {"device": name, "flops": 2.0 * size**3 / best, "torch": torch.__version__}


def main() -> None:
    """Measure and write."""
    args = parse()
    if args.rate:
        print(json.dumps(device_rate(args.tiny)))
        return
    here = [sys.executable, __file__, "--rate", *(["--tiny"] if args.tiny else [])]
    rate = json.loads(subprocess.run(here, check=True, capture_output=True, text=True, timeout=120).stdout)
    config = model_config(args)
    began = time.perf_counter()
    cluster = ClusterConfig(timeouts=TIMEOUTS, threads=1 if args.tiny else 2)
    with tempfile.TemporaryDirectory() as folder, Cluster(cluster, 4) as running, DeviceMemory(args.gpu) as memory:
        models = make_models(args, Path(folder))
        with started(running, args, models) as (roles, ppo):
            found = run_loop(roles, ppo, args)
            report: dict[str, Any] = {
                "settings": {k: v for k, v in vars(args).items() if k not in ("folder", "rate")},
                "rate": rate,
                "transfer": ppo.transfer,
                "parameters": body_parameters(config) + args.vocabulary * args.hidden,
                "device_memory_mb": memory.peaks(
                    [span for spans in found.spans for span in spans], PHASES | {"transfer": ("weight transfer",)}
                ),
            }
            report |= summary(found, policy_alone(roles, found.trajectories), config, rate)
            report["transfers"] = transfers(roles, ppo, args)
            roles.memory()
            report["memory_mb"], report["notes"] = roles.memory_peaks, roles.notes
    report["total_seconds"] = time.perf_counter() - began
    args.folder.mkdir(parents=True, exist_ok=True)
    name = "gpu-" + (re.sub(r"[^a-z0-9]+", "-", rate["device"].lower()).strip("-") if args.gpu else "tiny")
    write_json(args.folder / f"{name}.json", report)
    (args.folder / f"{name}.md").write_text(page(report), "utf-8")
    print(page(report))


if __name__ == "__main__":
    main()
