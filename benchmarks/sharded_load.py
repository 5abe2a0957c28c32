"""How much memory a rank takes to load a model of which it keeps half, role by role, and whether it is the same model.

    PYTHONPATH=. python benchmarks/sharded_load.py        results/sharded-load.{json,md}

A Llama of 62 M parameters (236 MiB in fp32, six files of at most 60 MB) on two CPU ranks over gloo. Measured is the
anonymous memory of a rank above what the process had before (RssAnon, looked at every 10 ms; files that are mapped do
not count: the kernel takes them back), from the first byte read until the model is there, without an optimiser.
"""

from __future__ import annotations

import gc
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

RESULTS = Path(__file__).resolve().parent / "results"
BOUND = 0.75
"""Of the whole model: what a rank may take at most."""


def make(folder: Path) -> float:
    """Write the model; its size in MiB."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=8192,
        hidden_size=1024,
        intermediate_size=2816,
        num_hidden_layers=4,
        num_attention_heads=16,
        num_key_value_heads=4,
        head_dim=64,
        max_position_embeddings=1024,
        tie_word_embeddings=False,
    )
    model = LlamaForCausalLM(config)
    model.save_pretrained(folder, max_shard_size="60MB")
    return sum(p.numel() * p.element_size() for p in model.parameters()) / 2**20


def anonymous() -> float:
    """MiB of memory of this process that no file stands behind."""
    lines = Path("/proc/self/status").read_text("utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) / 1024


@contextmanager
def peak() -> Iterator[list[float]]:
    """MiB above the beginning: the largest seen while the block runs, and (second) at its end."""
    gc.collect()
    before, stop = anonymous(), threading.Event()
    found = [0.0, 0.0]

    def watch() -> None:
        while not stop.wait(0.01):
            found[0] = max(found[0], anonymous() - before)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    yield found
    stop.set()
    thread.join()
    found[1] = anonymous() - before
    found[0] = max(found)


def measure(info: Any, source: str, role: str, cut: bool, dtype: str) -> dict[str, Any]:
    """One rank loads the model of `role`. Logits (or scores) of 32 tokens go along as a checksum."""
    from cai_dist.config.training import LoraConfig, OptimizerConfig, ShardingConfig
    from cai_dist.engines.training.deepspeed_engine import DeepSpeedEngine
    from cai_dist.engines.training.partitioning import partition_of
    from cai_dist.models.load import load_causal, load_scalar
    from cai_dist.models.lora import add_lora

    sharding, optimizer = ShardingConfig(ranks=2, zero=3, micro_batch=1), OptimizerConfig()
    scores = role in ("reference", "reward")
    given: Any = dtype
    partition = partition_of(sharding, None if scores else optimizer, given, 300) if cut else None
    ids, lengths = torch.arange(1, 33), torch.tensor([20, 12])
    start = time.perf_counter()
    with peak() as taken:
        if role in ("value", "reward"):
            model: Any = load_scalar(source, given, 0, "packed", partition)
        else:
            model = load_causal(source, given, "packed", partition)
        if role == "policy with LoRA":
            add_lora(model, LoraConfig(rank=8), 0)
    seconds = time.perf_counter() - start
    arguments = (ids, lengths) if role in ("value", "reward") else (ids, lengths, ids > 0, 1.0, False)
    if cut:
        engine = DeepSpeedEngine(model, None, sharding, given, 1, 300)
        out = engine.infer([None], lambda live, _: live(*arguments))[0]
    else:
        with torch.no_grad():
            out = model(*arguments)
    out = out[0] if isinstance(out, tuple) else out
    return {"peak": taken[0], "after": taken[1], "seconds": seconds, "out": out.double().tolist()}


def main() -> None:
    """Every role, whole and cut."""
    from benchmarks.sharded_load import measure as by_name  # the ranks import it
    from tests.two_ranks import on_two_ranks

    rows: list[dict[str, Any]] = []
    with TemporaryDirectory() as folder:
        size = make(Path(folder))
        for dtype in ("fp32", "bf16"):
            for role in ("policy", "policy with LoRA", "value", "reference", "reward"):
                found: dict[bool, list[dict[str, Any]]] = {
                    cut: on_two_ranks(by_name, source=folder, role=role, cut=cut, dtype=dtype) for cut in (False, True)
                }
                whole = size if dtype == "fp32" else size / 2
                row = {
                    "role": role,
                    "dtype": dtype,
                    "model": whole,
                    "whole": max(one["peak"] for one in found[False]),
                    "cut": max(one["peak"] for one in found[True]),
                    "after": max(one["after"] for one in found[True]),
                    "seconds": [max(one["seconds"] for one in found[cut]) for cut in (False, True)],
                    "same": len({json.dumps(one["out"]) for some in found.values() for one in some}) == 1,
                }
                rows.append(row)
                print(row, flush=True)
    (RESULTS / "sharded-load.json").write_text(json.dumps(rows, indent=2) + "\n", "utf-8")
    (RESULTS / "sharded-load.md").write_text(page(rows), "utf-8")


def page(rows: list[dict[str, Any]]) -> str:
    """The results in Markdown."""
    head = __doc__.splitlines()[0] if __doc__ else ""
    lines = [
        "# Models cut at birth",
        "",
        f"{head} By `benchmarks/sharded_load.py`: MiB of anonymous memory of the larger of two ranks; the aim is at "
        f"most {BOUND:g} of the model.",
        "",
        "| role | precision | model | loaded whole: peak | cut: peak | of the model | cut: kept | same outputs |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        share = row["cut"] / row["model"]
        lines.append(
            f"| {row['role']} | {row['dtype']} | {row['model']:.0f} | {row['whole']:.0f} | {row['cut']:.0f} "
            f"| {share:.2f} | {row['after']:.0f} | {'yes' if row['same'] else 'NO'} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
