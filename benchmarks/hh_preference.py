"""A preference model from human comparisons alone: how often is it right on comparisons that it has not seen?

    python benchmarks/hh_preference.py PATH_TO/hh-rlhf.jsonl.gz [--model smollm2] [--train 1500] [--dtype bf16] …

Reads hh-rlhf pairs, learns from --train of them and measures on the rest (no conversation is on both sides), with the
code of the run's own stage `preference`: real Ray workers and DeepSpeed. Writes benchmarks/results/hh-preference.json
and .md. Killed, the same command goes on from its last checkpoint (under --runs-dir).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cai_dist.config.data import ComparisonSource
from cai_dist.config.loading.load import build_run
from cai_dist.config.run import RunConfig
from cai_dist.constitution import load_constitution
from cai_dist.data.comparisons import load_comparison_set
from cai_dist.models.resolve import resolve_model
from cai_dist.stages import preference
from cai_dist.stages.comparisons import pm_calibration
from cai_dist.stages.comparisons.pairs import token_pairs
from cai_dist.stages.context import RunContext
from cai_dist.stages.execution.chat_format import chat_format
from cai_dist.tracking.atomic import sha256_json, sha256_path, write_json, write_text
from cai_dist.tracking.console import Console
from cai_dist.tracking.manifest import Manifest
from cai_dist.tracking.metrics import Tracker

RESULTS = Path(__file__).parent / "results"


def main() -> None:
    arguments = parse()
    config = configuration(arguments)
    print(f"run folder: {Path(config.runs_dir) / config.name}")
    started = time.monotonic()
    with context(config) as run:
        figures = measure(run, arguments)
    result = {
        "date": time.strftime("%Y-%m-%d"),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}",
        "settings": {key: str(value) for key, value in vars(arguments).items() if key != "runs_dir"},
        "seconds": round(time.monotonic() - started, 1),
        **figures,
    }
    RESULTS.mkdir(exist_ok=True)
    name = RESULTS / arguments.name
    write_json(name.with_suffix(".json"), result)
    write_text(name.with_suffix(".md"), table(result))
    print(table(result))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="hh-rlhf pairs: JSONL, JSONL.gz or Parquet")
    parser.add_argument("--model", default="smollm2", help="smollm2, a model folder or a hub name")
    parser.add_argument("--train", type=int, default=1500, help="comparisons to learn from; the rest is held out")
    parser.add_argument("--heldout", type=int, default=100_000, help="measure on at most so many")
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--steps", type=int, default=None, help="stop after this many optimiser steps")
    parser.add_argument("--lr", type=float, default=2e-5)
    parser.add_argument("--warmup", type=int, default=5)
    parser.add_argument("--batch", type=int, default=32, help="comparisons per optimiser step")
    parser.add_argument("--micro-tokens", type=int, default=4096, help="tokens of one forward pass")
    parser.add_argument("--max-tokens", type=int, default=512, help="a comparison with a longer side is left out")
    parser.add_argument("--dtype", choices=("fp32", "bf16"), default="bf16", help="bf16: faster with AMX")
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--zero", type=int, choices=(0, 1, 2, 3), default=2)
    parser.add_argument("--threads", type=int, default=max(1, (os.cpu_count() or 1)))
    parser.add_argument("--chat", choices=("template", "plain"), default="template")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--runs-dir", type=Path, default=Path("runs/hh-preference"))
    parser.add_argument("--name", default="hh-preference", help="name of the files under benchmarks/results")
    return parser.parse_args()


def configuration(arguments: argparse.Namespace) -> RunConfig:
    """The run's settings, in a folder of their own: a killed run is gone on with."""
    a = arguments
    sharding = {"ranks": a.ranks, "zero": a.zero, "max_tokens_per_micro_batch": max(a.micro_tokens, 2 * a.max_tokens)}
    short = {"sampling": {"max_new_tokens": min(128, a.max_tokens // 2)}}
    return build_run(
        {
            "name": run_name(a),
            "seed": a.seed,
            "runs_dir": str(a.runs_dir),
            "models": {
                **dict.fromkeys(("assistant", "pretrained", "feedback"), a.model),
                "dtype": a.dtype,
                "context": a.max_tokens,
                "chat": a.chat,
            },
            "preference": {
                "helpful_fraction": 0.0,
                "train": {
                    "batch_size": a.batch,
                    "epochs": a.epochs,
                    "max_steps": a.steps,
                    "checkpoint_every": 10,
                    "optimizer": {"lr": a.lr, "schedule": "linear", "warmup_steps": a.warmup},
                    "sharding": sharding,
                },
            },
            **dict.fromkeys(("revise", "feedback", "ppo", "expand"), short),
            "evaluate": {"workers": 1, **short},
            "cluster": {"threads": a.threads},
            "tracking": {"wandb": "off", "console": "plain"},
        }
    )


def run_name(arguments: argparse.Namespace) -> str:
    """Named by the model and by a hash of all settings and of the file's content: other settings or another file never
    go on from what these have left."""
    settings = {key: str(value) for key, value in vars(arguments).items() if key not in ("file", "runs_dir", "name")}
    model = re.sub(r"[^A-Za-z0-9._-]", "", Path(arguments.model).name)[:40] or "model"
    return f"m-{model}-{sha256_json({**settings, 'sha256': sha256_path(arguments.file)})[:16]}"


@contextmanager
def context(config: RunConfig) -> Iterator[RunContext]:
    """A run folder with its services, as the pipeline opens it."""
    folder = (Path(config.runs_dir) / config.name).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    console = Console(config.tracking.console)
    tracker = Tracker(folder, config.tracking, config.model_dump(mode="json"), console.warn)
    constitution = load_constitution(config.constitution)
    run = RunContext(config, folder, Manifest(folder), tracker, console, constitution, lambda: False)
    try:
        yield run
    finally:
        run.close()
        tracker.close()


def measure(ctx: RunContext, arguments: argparse.Namespace) -> dict[str, Any]:
    """Train unless it is done, score what was held out."""
    source = ComparisonSource(source=str(arguments.file), limit=arguments.train, heldout=arguments.heldout)
    found = load_comparison_set(source, ctx.config.seed).comparisons
    sides = {split: [c for c in found if c.prompt.split == split] for split in ("train", "heldout")}
    model = resolve_model(arguments.model, arguments.dtype, None)
    chat = chat_format(ctx, model)
    target = ctx.folder(preference.NAME) / "model"
    pairs = token_pairs(ctx, preference.NAME, chat, sides["train"])
    if not target.is_dir():
        preference.fit(ctx, preference.NAME, model, pairs, target)
    scored = pm_calibration.score_comparisons(ctx, chat, target, sides["heldout"], "held-out")
    return {
        "train": len(pairs),
        "train_too_long": len(sides["train"]) - len(pairs),
        "heldout_too_long": len(sides["heldout"]) - len(scored),
        "heldout": pm_calibration.source_figures(scored, calibrate=True),
        "curve": curve(ctx),
    }


def curve(ctx: RunContext) -> list[dict[str, float]]:
    """Loss and training accuracy by step."""
    lines = (json.loads(line) for line in (ctx.run_dir / "metrics.jsonl").read_text().splitlines())
    return [
        {key: line[key] for key in ("step", "loss", "accuracy")} for line in lines if line["stage"] == preference.NAME
    ]


def table(result: dict[str, Any]) -> str:
    """Markdown."""
    held, settings = result["heldout"], result["settings"]
    length, temperature = held["length"], held["temperature"] or {}
    rows = {
        "held-out comparisons": held["n"],
        "accuracy": f"{held['accuracy']:.3f} ({held['low']:.3f}–{held['high']:.3f})",
        "ECE, Brier": f"{held['ece']:.3f}, {held['brier']:.3f}",
        "temperature; ECE before, after": "–"
        if not temperature
        else f"{temperature['temperature']:.2f}; {temperature['ece_before']:.3f}, {temperature['ece_after']:.3f}",
        "accuracy of “the longer is better”": number(length["longer_wins"]),
        "accuracy where the longer is worse": number(length["accuracy_longer_worse"]),
        "correlation of score and length": number(length["score_correlation"]),
    }
    last = result["curve"][-10:]
    trained = sum(x["accuracy"] for x in last) / len(last) if last else float("nan")
    return "\n".join(
        [
            f"# Preference model on human comparisons: {settings['model']}",
            "",
            f"{result['train']} comparisons to learn from ({result['train_too_long']} too long, "
            f"{result['heldout_too_long']} of the held-out ones), {len(result['curve'])} steps of {settings['batch']}, "
            f"lr {settings['lr']}, {settings['dtype']}, at most {settings['max_tokens']} tokens, seed "
            f"{settings['seed']}; {result['seconds']:.0f} s on {result['machine']}. Interval: Wilson, 95%.",
            "",
            "| | |",
            "|---|---|",
            *(f"| {name} | {value} |" for name, value in rows.items()),
            f"| training accuracy, last {len(last)} steps | {number(trained)} |",
            "",
        ]
    )


def number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


if __name__ == "__main__":
    main()
