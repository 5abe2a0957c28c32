"""AI labels against people's choices on hh-rlhf pairs: how often does the model prefer what a person preferred?

    python benchmarks/hh_labels.py PATH_TO/hh-rlhf.jsonl.gz [--model smollm2] [--pairs 300] …

Asks by the code of the run's own stage `feedback` (real Ray workers): both orders, one drawn principle of the
constitution for each pair. The options are A and B behind an opening "(", the form in which small chat models judge
best. Writes benchmarks/results/hh-labels.json and .md. Killed, the same command goes on from its last shard.
"""

from __future__ import annotations

import argparse
import os
import platform
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from hh_preference import context, run_name

from cai_dist.config.data import ComparisonSource
from cai_dist.config.loading.load import build_run
from cai_dist.config.run import RunConfig
from cai_dist.constitution import draw
from cai_dist.data.comparisons import load_comparison_set
from cai_dist.losses.calibration import same_side
from cai_dist.models.resolve import resolve_model
from cai_dist.stages.ai_feedback.labelling import PairLabel, label_pairs
from cai_dist.stages.ai_feedback.statistics import agree
from cai_dist.stages.evaluation.refusals import Hits
from cai_dist.stages.execution.worker_groups import rollout_group
from cai_dist.stages.tables.intervals import pooled_proportion
from cai_dist.tracking.atomic import write_json, write_text
from cai_dist.types import Comparison

RESULTS = Path(__file__).parent / "results"


def main() -> None:
    arguments = parse()
    config = configuration(arguments)
    started = time.monotonic()
    with context(config) as run:
        pairs = choices(arguments, config)
        model = resolve_model(arguments.model, arguments.dtype, None)
        write_json(run.folder("prepare") / "models.json", {"feedback": {"path": model}})
        principles = run.constitution.comparison_principles
        drawn = [[principles[draw(config.seed, "hh", i, n=len(principles))].id] for i in range(len(pairs))]
        with rollout_group(run, "feedback", arguments.workers) as group:
            labels = label_pairs(run, group, run.folder("feedback"), "labels", pairs, drawn)
    result = {
        "date": time.strftime("%Y-%m-%d"),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}",
        "settings": {key: str(value) for key, value in vars(arguments).items() if key != "runs_dir"},
        "seconds": round(time.monotonic() - started, 1),
        "unanswered": sum(label is None for label in labels),
        **figures(pairs, labels),
    }
    RESULTS.mkdir(exist_ok=True)
    write_json(RESULTS / f"{arguments.name}.json", result)
    write_text(RESULTS / f"{arguments.name}.md", table(result))
    print(table(result))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="hh-rlhf pairs: JSONL, JSONL.gz or Parquet")
    parser.add_argument("--model", default="smollm2", help="smollm2, a model folder or a hub name")
    parser.add_argument("--pairs", type=int, default=300)
    parser.add_argument("--few-shot", type=int, default=0, help="worked comparisons before each question")
    parser.add_argument("--context", type=int, default=1024, help="a longer question has no answer")
    parser.add_argument("--dtype", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--runs-dir", type=Path, default=Path("runs/hh-labels"))
    parser.add_argument("--name", default="hh-labels", help="name of the files under benchmarks/results")
    return parser.parse_args()


def configuration(a: argparse.Namespace) -> RunConfig:
    """The run's settings, in a folder of their own: a killed run is gone on with."""
    short = {"sampling": {"max_new_tokens": 128}}
    return build_run(
        {
            "name": run_name(a),
            "seed": a.seed,
            "runs_dir": str(a.runs_dir),
            "models": {
                **dict.fromkeys(("assistant", "pretrained", "feedback"), a.model),
                "dtype": a.dtype,
                "context": a.context,
            },
            "feedback": {
                "prefill": "(",
                "option_labels": ["A", "B"],
                "few_shot": a.few_shot,
                "shard_size": 32,
                "workers": a.workers,
            },
            **dict.fromkeys(("revise", "ppo", "evaluate", "expand"), short),
            "tracking": {"wandb": "off", "console": "plain"},
        }
    )


def choices(a: argparse.Namespace, config: RunConfig) -> list[Comparison]:
    """The first pairs in drawn order; `p_a` is the person's choice."""
    source = ComparisonSource(source=str(a.file), limit=a.pairs)
    found = load_comparison_set(source, config.seed).comparisons
    return [c for c in found if c.prompt.split == "train"][: a.pairs]


def figures(pairs: Sequence[Comparison], labels: Sequence[PairLabel | None]) -> dict[str, Any]:
    """Agreement with the person of the first order alone, of the second alone and of their mean, and position."""
    known = answered(pairs, labels)

    def agreeing(found: Sequence[tuple[Comparison, PairLabel]], p: Callable[[PairLabel], float]) -> Hits:
        return [(c.prompt, same_side(p(label) - 0.5, c.p_a - 0.5)) for c, label in found]

    rows = {
        "one order": agreeing(known, lambda x: x.first[0]),
        "the other order": agreeing(known, lambda x: x.second[0]),
        "mean of both orders": agreeing(known, lambda x: x.p),
    }
    surest = sorted(known, key=lambda x: -abs(x[1].p - 0.5))[: len(known) // 4]
    rows["mean of both, the quarter that it is surest of"] = agreeing(surest, lambda x: x.p)
    longer = [(c.prompt, len(c.response_a) - len(c.response_b), c.p_a - 0.5, x.p - 0.5) for c, x in known]
    rows["the person chose the longer answer"] = [(p, same_side(by, human)) for p, by, human, _ in longer]
    rows["the mean of both orders chose the longer answer"] = [(p, same_side(by, ai)) for p, by, _, ai in longer]
    shown = {name: pooled_proportion(hits) for name, hits in rows.items()}
    return {
        "n": len(known),
        "agreement": {name: [figure["value"], figure["low"], figure["high"]] for name, figure in shown.items()},
        "orders_agree": fmean(agree(label.first[0], label.second[0]) for _, label in known),
        "position_bias": fmean(label.first[0] - label.second[0] for _, label in known) / 2,
        "mean_confidence": fmean(abs(label.p - 0.5) + 0.5 for _, label in known),
    }


def answered(pairs: Sequence[Comparison], labels: Sequence[PairLabel | None]) -> list[tuple[Comparison, PairLabel]]:
    """The pairs that have a label."""
    return [(c, label) for c, label in zip(pairs, labels, strict=True) if label is not None]


def table(result: dict[str, Any]) -> str:
    """Markdown."""
    settings = result["settings"]
    lines = [
        f"# AI labels against people's choices: {settings['model']}",
        "",
        f"{result['n']} pairs of hh-rlhf ({result['unanswered']} more were too long), one drawn principle each, "
        f"{settings['few_shot']} worked comparisons, {settings['dtype']}, seed {settings['seed']}; "
        f"{result['seconds']:.0f} s on {result['machine']}. Intervals: Wilson, 95%.",
        "",
        "| agreement with the person, and what goes with length | share | 95% |",
        "|---|---|---|",
        *(f"| {name} | {p:.3f} | {low:.3f}–{high:.3f} |" for name, (p, low, high) in result["agreement"].items()),
        "",
        f"Both orders agree on {result['orders_agree']:.1%} of the pairs; the answer shown first gets "
        f"{result['position_bias']:+.3f} of probability for its place; the averaged label's mean confidence is "
        f"{result['mean_confidence']:.3f}.",
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
