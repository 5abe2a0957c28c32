"""One iteration of PPO, phase by phase, and the same work in TRL's PPOTrainer, in alternating runs.

    python benchmarks/ppo_step.py smollm2 --prompts hh-rlhf/harmless-base.sample.jsonl.gz --trl .venv-trl/bin/python
    python benchmarks/ppo_step.py world   --run runs/demo --trl .venv-trl/bin/python

`smollm2`: SmolLM2-135M, 16 prompts of at most 64 tokens, 32 response tokens, 2 epochs. `world`: the model of a finished
demo run, 64 prompts, 24 response tokens, 4 epochs. All sides: same weights, prompts, temperature, one optimiser step an
epoch, fp32, two CPU threads in all. TRL's environment is described in trl_ppo.py; without `--trl` only cai_dist runs.
`--before CHECKOUT` measures another checkout of cai_dist as a third side. Each run starts anew; its first iteration
(warm-up) is dropped. Writes benchmarks/results/ppo-step-NAME.json and .md.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch

ROOT = Path(__file__).resolve().parent.parent
THREADS = 2
SIZES: dict[str, dict[str, Any]] = {
    "smollm2": {"samples": 16, "response_tokens": 32, "epochs": 2, "iterations": 2, "temperature": 0.7, "lr": 1e-6},
    "world": {"samples": 64, "response_tokens": 24, "epochs": 4, "iterations": 6, "temperature": 1.0, "lr": 1e-4},
}
PHASES = ("rollout", "score", "advantages", "update", "policy_update", "value_update", "transfer")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("size", choices=SIZES)
    parser.add_argument("--prompts", type=Path, help="hh-rlhf JSONL.gz, for smollm2")
    parser.add_argument("--run", type=Path, help="a finished run of the demo, for world")
    parser.add_argument("--trl", type=Path, help="interpreter of TRL's environment")
    parser.add_argument("--before", type=Path, help="another checkout of cai_dist")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--name", default="", help="of the results; default: the size")
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--zero", type=int, default=0)
    parser.add_argument("--rollout-workers", type=int, default=1)
    parser.add_argument("--threads-per-worker", type=int, default=1)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        task = make_task(arguments, Path(folder))
        path = Path(folder) / "task.json"
        path.write_text(json.dumps(task))
        rounds = []
        for number in range(arguments.pairs):
            rounds.append(one_round(arguments, path))
            print(f"round {number + 1} of {arguments.pairs}: {seconds_of(rounds[-1])}", file=sys.stderr)
    report(arguments, task, rounds)


def make_task(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """What both sides are given: model folders, token ids of the prompts, and the settings."""
    from cai_dist.models.load import load_scalar, load_tokenizer

    if arguments.size == "smollm2":
        from cai_dist.models.smollm2 import smollm2_folder

        model = str(smollm2_folder("fp32"))
        tokenizer = load_tokenizer(model)
        prompts = hh_prompts(tokenizer, arguments.prompts)
        reward = str(folder / "reward")  # its head is drawn once and saved, so that both sides have the same
        load_scalar(model, "fp32", 0).hf.save_pretrained(reward)
    else:
        model, reward = str(arguments.run / "sft" / "model"), str(arguments.run / "preference" / "model")
        tokenizer = load_tokenizer(model)
        prompts = run_prompts(tokenizer, arguments.run)
    size = SIZES[arguments.size]
    return {
        **size,
        "model": str(Path(model).absolute()),
        "reward": str(Path(reward).absolute()),
        "prompts": prompts[: size["samples"] * size["iterations"]],
        "eos_id": tokenizer.eos_token_id,
        "pad_id": 0,
        "kl": 0.05,
        "seed": 0,
        "dtype": "fp32",
        "threads": THREADS,
        "threads_per_worker": arguments.threads_per_worker,
        "rollout_workers": arguments.rollout_workers,
        "ranks": arguments.ranks,
        "zero": arguments.zero,
        "micro_batch": size["samples"],
    }


def hh_prompts(tokenizer: Any, path: Path) -> list[list[int]]:
    """First human turns of hh-rlhf in the plain form, at most 64 tokens, in the file's order."""
    found = []
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        for line in lines:
            first = json.loads(line)["chosen"].split("\n\nAssistant:")[0] + "\n\nAssistant:"
            ids = tokenizer(first, add_special_tokens=False)["input_ids"]
            if len(ids) <= 64:
                found.append(ids)
    return found


def run_prompts(tokenizer: Any, run: Path) -> list[list[int]]:
    """The training prompts of a run, as its PPO stage would ask them."""
    from cai_dist.data.chat import ChatFormat
    from cai_dist.stages.tables.records import read_prompts

    chat = ChatFormat(tokenizer, "template")
    prompts = read_prompts(run / "prepare" / "red_team.parquet")
    return [list(chat.prompt_ids(p.turns)) for p in prompts if p.split == "train"]


def one_round(arguments: argparse.Namespace, task: Path) -> dict[str, Any]:
    """Every side once, and the matmul rate of the machine at that time."""
    sides = {"matmul_flops": matmul_rate(), "cai_dist": start([sys.executable, "ppo_iteration.py"], task, 1, ROOT)}
    if arguments.trl:
        sides["trl"] = start([str(arguments.trl), "trl_ppo.py"], task, THREADS, ROOT)
    if arguments.before:
        sides["before"] = start([sys.executable, "ppo_iteration.py"], task, 1, arguments.before.absolute())
    return sides


def start(command: list[str], task: Path, threads: int, checkout: Path) -> dict[str, Any]:
    """Run one side; its last line of output is its result."""
    environment = os.environ | {
        "OMP_NUM_THREADS": str(threads),
        "OMP_WAIT_POLICY": "passive",
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": str(checkout),
    }
    script = str(checkout / "benchmarks" / command[1])
    done = subprocess.run(
        [os.path.abspath(command[0]), script, str(task)], env=environment, cwd=checkout, capture_output=True, text=True,
        timeout=1200,
    )  # fmt: skip
    if done.returncode:
        sys.exit(f"{command[0]} {script} failed:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    result: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return result


def matmul_rate(seconds: float = 2.0) -> float:
    """FLOP/s of fp32 matrix products on all threads, sustained as an update sustains them."""
    torch.set_num_threads(THREADS)
    a, b = torch.randn(2048, 2048), torch.randn(2048, 2048)
    a @ b
    done, began = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - began) < seconds:
        a @ b
        done += 1
    return 2 * 2048**3 * done / elapsed


def update_flops(task: dict[str, Any], iteration: dict[str, Any]) -> float:
    """Floating-point operations of the matrix products of the update phase, forward and backward (3 x forward).

    Counted for real tokens alone: linear layers of policy and value, causal attention, the head at response tokens.
    """
    config = json.loads((Path(task["model"]) / "config.json").read_text())
    hidden, layers, vocab = config["hidden_size"], config["num_hidden_layers"], config["vocab_size"]
    heads, inner = config["num_attention_heads"], config["intermediate_size"]
    head_dim = config.get("head_dim") or hidden // heads
    kv = config.get("num_key_value_heads") or heads
    weights = layers * (hidden * head_dim * (2 * heads + 2 * kv) + 3 * hidden * inner)
    attention = layers * 2 * heads * head_dim * iteration["squares"]  # two products, causal: half of 4 n^2 d
    trunk = 2 * weights * iteration["tokens"] + attention
    head = 2 * hidden * vocab * iteration["response_tokens"]
    return float(task["epochs"] * 3 * (2 * trunk + head))


def seconds_of(sides: dict[str, Any]) -> dict[str, float]:
    """Median seconds of an iteration of each side, the first left out."""
    found = {}
    for side in ("cai_dist", "before"):
        if side in sides:
            found[side] = median(i["seconds"] for i in sides[side]["iterations"][1:])
    if "trl" in sides:
        found["trl"] = median(sides["trl"]["seconds"][1:])
    return found


def report(arguments: argparse.Namespace, task: dict[str, Any], rounds: list[dict[str, Any]]) -> None:
    """Write the table and print it."""
    kept = [i for sides in rounds for i in sides["cai_dist"]["iterations"][1:]]
    per_round = [seconds_of(sides) for sides in rounds]
    rate = median(sides["matmul_flops"] for sides in rounds)
    share = median(
        update_flops(task, i) / i["update"] / sides["matmul_flops"]
        for sides in rounds
        for i in sides["cai_dist"]["iterations"][1:]
    )
    lines = [
        f"# One PPO iteration, {arguments.size}",
        "",
        f"{time.strftime('%Y-%m-%d')}, {platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}, fp32, "
        f"{THREADS} threads in all. {task['samples']} prompts, {task['response_tokens']} response tokens, "
        f"{task['epochs']} epochs of one optimiser step; policy and value: {task['ranks']} rank(s), "
        f"ZeRO-{task['zero']}; "
        f"{len(rounds)} alternating rounds. `python benchmarks/ppo_step.py {' '.join(sys.argv[1:])}`",
        "",
        "| | " + " | ".join(per_round[0]) + " |",
        "|---|" + "---|" * len(per_round[0]),
        "| seconds an iteration, median | "
        + " | ".join(f"{median(r[side] for r in per_round):.2f}" for side in per_round[0])
        + " |",
        "| each round | " + " | ".join(", ".join(f"{r[side]:.2f}" for r in per_round) for side in per_round[0]) + " |",
    ]
    for other in ("trl", "before"):
        if other in per_round[0]:
            ratios = sorted(r[other] / r["cai_dist"] for r in per_round)
            lines += [
                "",
                f"{other} / cai_dist: median {median(ratios):.2f} (from {ratios[0]:.2f} to {ratios[-1]:.2f}).",
            ]
    tokens = median(i["tokens"] for i in kept)
    padded = median(task["samples"] * (i["longest_prompt"] + task["response_tokens"]) for i in kept)
    lines += [
        "",
        "| phase of cai_dist | " + " | ".join(PHASES) + " |",
        "|---|" + "---|" * len(PHASES),
        "| seconds, median | " + " | ".join(f"{median(i[p] for i in kept):.3f}" for p in PHASES) + " |",
        "",
        f"Tokens an iteration: {tokens:.0f} ({padded:.0f} in a batch padded to prompt and response length); "
        f"{tokens / median(i['seconds'] for i in kept):.0f} tokens/s. "
        f"Update phase: {share:.0%} of the {rate / 1e9:.0f} GFLOP/s that fp32 matrix products reach on all "
        "threads in the same round.",
    ]
    text = "\n".join(lines) + "\n"
    results = Path(__file__).parent / "results"
    (results / f"ppo-step-{arguments.name or arguments.size}.md").write_text(text)
    (results / f"ppo-step-{arguments.name or arguments.size}.json").write_text(
        json.dumps({"task": slim(task), "rounds": rounds}, indent=1)
    )
    print(text)


def slim(task: dict[str, Any]) -> dict[str, Any]:
    """The task without folders and token ids."""
    return {name: value for name, value in task.items() if name not in ("model", "reward", "prompts")}


if __name__ == "__main__":
    main()
