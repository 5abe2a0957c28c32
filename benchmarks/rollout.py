"""Tokens per second of a rollout engine: what Ray adds to it, and what slot refill saves.

    python benchmarks/rollout.py --prompts FILE.jsonl.gz [--engine hf] [--model FOLDER] [--out benchmarks/results]

Overhead: the same request, end token off, through a RolloutWorker in a Ray actor (clock in the driver) and to an engine
in a plain process with the same environment (clock around `generate`). Refill (`hf`): requests whose responses end at
the end token, by the engine and by `model.generate` of transformers on one left-padded batch of all prompts, and on
batches of `--rows`, sorted by length. All are told to sample at temperature 1 from the whole vocabulary; the random
numbers differ, so what is compared is response tokens per second. The ways alternate; ratios are within a round.
"""

from __future__ import annotations

import argparse
import gzip
import json
import multiprocessing
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from cai_dist.cluster.group import WorkerGroup
from cai_dist.cluster.runtime import Cluster, GroupSpec
from cai_dist.config.engine import EngineConfig
from cai_dist.config.run import ClusterConfig
from cai_dist.types import GenerateRequest, Generation, SamplingParams, WorkerSpec

Run = Callable[[GenerateRequest], tuple[float, list[int]]]
"""Request -> (seconds, tokens of each response)."""


class Bare:
    """The engine, and the plain model where it is needed, in this process and with nothing around them."""

    def __init__(self, model: str, config: EngineConfig, threads: int, plain: bool) -> None:
        import torch
        from transformers import AutoModelForCausalLM

        from cai_dist.engines.factory import build_rollout_engine

        torch.set_num_threads(threads)
        self.engine = build_rollout_engine(config, "fp32")
        self.engine.load(model)
        self.plain: Any = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval() if plain else None

    def generate(self, request: GenerateRequest) -> list[int]:
        """Tokens of each response, by the engine."""
        return token_counts(self.engine.generate(request))

    def transformers(self, request: GenerateRequest, rows: int) -> list[int]:
        """Tokens of each response, by `model.generate` on batches of `rows`, prompts sorted by length."""
        import torch

        torch.manual_seed(request.seed)
        prompts, stops = sorted(request.prompts, key=len), list(request.sampling.stop_ids)
        counts: list[int] = []
        for start in range(0, len(prompts), rows):
            batch = prompts[start : start + rows]
            width = max(map(len, batch))
            made = self.plain.generate(
                torch.tensor([[0] * (width - len(p)) + list(p) for p in batch]),
                attention_mask=torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in batch]),
                do_sample=True,
                temperature=1.0,
                top_k=0,
                top_p=1.0,
                max_new_tokens=request.sampling.max_new_tokens,
                eos_token_id=stops or None,
                pad_token_id=0,
            )
            for response in made[:, width:].tolist():
                end = next((i + 1 for i, token in enumerate(response) if token in stops), len(response))
                counts.append(end)
        return counts


def token_counts(made: Sequence[Generation]) -> list[int]:
    """Tokens of each response."""
    return [len(sample.response_ids) for sample in made]


def serve(pipe: Connection, *args: Any) -> None:
    """Body of the plain process: (method, arguments) -> (seconds, tokens of each response), until None comes."""
    bare = Bare(*args)
    pipe.send("ready")
    while (order := pipe.recv()) is not None:
        began = time.perf_counter()
        counts = getattr(bare, order[0])(*order[1:])
        pipe.send((time.perf_counter() - began, counts))


@contextmanager
def bare_process(*args: Any) -> Iterator[Callable[..., tuple[float, list[int]]]]:
    """A process with a `Bare`; what is given calls a method of it by name."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=serve, args=(there, *args), daemon=True)
    process.start()
    there.close()  # so that a process that dies ends the wait

    def call(*order: Any) -> tuple[float, list[int]]:
        here.send(order)
        return here.recv()

    try:
        here.recv()
        yield call
        here.send(None)
        process.join(30)
    finally:
        process.kill()


def through_ray(group: WorkerGroup) -> Run:
    """The request to a worker as in the rollout phase of PPO."""

    def run(request: GenerateRequest) -> tuple[float, list[int]]:
        began = time.perf_counter()
        (made,) = group.deal("benchmark", "generate", [request]).result()
        return time.perf_counter() - began, token_counts(made)

    return run


def alternate(ways: dict[str, Run], request: GenerateRequest, rounds: int) -> dict[str, Any]:
    """Every way once per round, in turned order; the first round warms up. Rates are response tokens per second, and
    ratios those of the first way over each other one in the same round."""
    names = list(ways)
    rates: dict[str, list[float]] = {name: [] for name in names}
    lengths: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(rounds + 1):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            seconds, counts = ways[name](request)
            if turn:
                rates[name].append(sum(counts) / seconds)
                lengths[name].append(statistics.fmean(counts))
            print(f"round {turn} {name}: {sum(counts)} tokens in {seconds:.2f} s", flush=True)
    first = rates[names[0]]
    return {
        name: {
            "tokens_per_second": statistics.median(found),
            "mean_length": statistics.fmean(lengths[name]),
            "first_over_this": [a / b for a, b in zip(first, found, strict=True)],
        }
        for name, found in rates.items()
    }


def read_prompts(path: Path, model: str, count: int, longest: int) -> tuple[tuple[tuple[int, ...], ...], int]:
    """The first `count` conversations of a file of hh-rlhf, up to the last answer, that have at most `longest` tokens
    in the model's chat format; and the end token."""
    from cai_dist.models.load import load_tokenizer

    tokenizer = load_tokenizer(model)
    prompts: list[tuple[int, ...]] = []
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        for line in lines:
            turns = json.loads(line)["chosen"].split("\n\nHuman: ")[1:]
            messages = []
            for turn in turns:
                human, _, answer = turn.partition("\n\nAssistant: ")
                messages += [{"role": "user", "content": human}, {"role": "assistant", "content": answer}]
            ids = tokenizer.apply_chat_template(messages[:-1], add_generation_prompt=True, return_dict=False)
            if messages and len(ids) <= longest:
                prompts.append(tuple(ids))
            if len(prompts) == count:
                return tuple(prompts), tokenizer.eos_token_id
    raise SystemExit(f"{path}: only {len(prompts)} prompts of at most {longest} tokens; {count} are needed")


def report(result: dict[str, Any]) -> str:
    """The result as a page."""
    setting = result["setting"]
    lines = [
        f"# Rollouts, engine `{setting['engine']}`",
        "",
        f"`{setting['model']}`, fp32, {setting['threads']} threads, torch {setting['torch']}, {setting['machine']}; "
        f"medians of {setting['rounds']} alternating rounds. Ratio: rate of the first row over that of this one, "
        "median of the rounds (least, most).",
    ]
    for title, rows in result["tables"].items():
        lines += [
            "",
            f"## {title}",
            "",
            "| way | response tokens per second | mean length | ratio |",
            "|---|---|---|---|",
        ]
        for name, row in rows.items():
            ratios = row["first_over_this"]
            ratio = f"{statistics.median(ratios):.3f} ({min(ratios):.3f}, {max(ratios):.3f})"
            lines.append(f"| {name} | {row['tokens_per_second']:,.1f} | {row['mean_length']:.1f} | {ratio} |")
    return "\n".join([*lines, ""])


def measure(args: argparse.Namespace, config: EngineConfig) -> dict[str, Any]:
    """All tables of one engine."""
    longest = args.longest
    prompts, end = read_prompts(args.prompts, args.model, max(args.overhead_prompts, args.refill_prompts), longest)
    off = GenerateRequest(prompts[: args.overhead_prompts], SamplingParams(args.new_tokens), 0)
    on = GenerateRequest(prompts[: args.refill_prompts], SamplingParams(args.new_tokens, stop_ids=(end,)), 0)
    worker = {"model": args.model, "engine": config, "threads": args.threads}
    spec = GroupSpec("rollout", WorkerSpec("rollout", worker))
    tables: dict[str, Any] = {}
    with (
        Cluster(ClusterConfig(threads=args.threads), 1) as cluster,
        bare_process(args.model, config, args.threads, config.backend == "hf") as bare,
    ):
        group = cluster.launch([spec])["rollout"]
        ways: dict[str, Run] = {
            "worker in a Ray actor": through_ray(group),
            "the engine in a bare process": lambda request: bare("generate", request),
        }
        if args.only != "refill":
            title = f"Overhead: {len(off.prompts)} prompts x {args.new_tokens} tokens, end token off"
            tables[title] = alternate(ways, off, args.rounds)
        if config.backend == "hf" and args.only != "overhead":
            ways = {
                f"engine, max_rows {args.rows}": lambda request: bare("generate", request),
                f"model.generate, batches of {args.rows}": lambda request: bare("transformers", request, args.rows),
                "model.generate, one batch": lambda request: bare("transformers", request, len(request.prompts)),
            }
            title = f"Refill: {len(on.prompts)} prompts, at most {args.new_tokens} tokens, end token on"
            tables[title] = alternate(ways, on, args.rounds)
    return tables


def main() -> None:
    """Writes rollout-ENGINE.json and .md into `--out`."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--engine", choices=["hf", "vllm"], default="hf")
    parser.add_argument("--model", help="folder; default: SmolLM2-135M from its wheel")
    parser.add_argument("--prompts", type=Path, required=True, help="a file of hh-rlhf, .jsonl.gz")
    parser.add_argument("--only", choices=["overhead", "refill"], help="keep the other table of the file in --out")
    parser.add_argument("--overhead-prompts", type=int, default=64)
    parser.add_argument("--refill-prompts", type=int, default=256)
    parser.add_argument("--new-tokens", type=int, default=128)
    parser.add_argument("--longest", type=int, default=256, help="tokens of a prompt")
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parent / "results")
    # Ray runs its workers at nice 15: on a machine that does anything else, they alone would wait.
    os.environ.setdefault("RAY_worker_niceness", "0")
    args = parser.parse_args()
    if not args.model:
        from cai_dist.models.smollm2 import smollm2_folder

        args.model = str(smollm2_folder("fp32"))
    written = args.out / f"rollout-{args.engine}.json"
    tables = json.loads(written.read_text("utf-8"))["tables"] if args.only and written.exists() else {}
    tables |= measure(args, EngineConfig(backend=args.engine, max_rows=args.rows))
    import torch

    setting = {"engine": args.engine, "model": Path(args.model).name, "threads": args.threads, "rounds": args.rounds}
    setting |= {"torch": torch.__version__, "machine": f"{os.cpu_count()} cores, {platform.machine()}"}
    result = {"setting": setting, "tables": tables}
    args.out.mkdir(parents=True, exist_ok=True)
    written.write_text(json.dumps(result, indent=1) + "\n", "utf-8")
    (args.out / f"rollout-{args.engine}.md").write_text(report(result), "utf-8")
    print(report(result))


if __name__ == "__main__":
    main()
