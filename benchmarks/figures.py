"""The claims of the paper that the micro-world can show, as tables and pictures, over several seeds.

    python benchmarks/figures.py all --seeds 0 1 2
    python benchmarks/figures.py rounds principles

Names: rounds, principles, direct, feedback, preference, elo, pmp, labels. Each writes docs/figures/NAME.md and NAME.png
(which needs `pip install -c constraints.txt -e '.[figures]'`; without it the table alone) and
benchmarks/results/figure-NAME.json.

Runs lie in runs/figures and are those of launch/runs/demo.yaml with a few settings changed. A variant starts from a
copy of its seed's first run, so that stages whose settings are the same are not repeated; a run that is finished is not
repeated either, and an interrupted one goes on. A run that fails is named, and the next figure is tried.
"""

from __future__ import annotations

import argparse
import json
import platform
import shutil
import subprocess
import sys
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))  # the parts beside this script

from figures_measures import Measures, measures_of
from figures_pages import PAGES
from figures_writing import write_page

FILE = Path("launch/runs/demo.yaml")
BASE = (
    "tracking.wandb=off",
    "tracking.console=plain",
    "ppo.snapshot_every=5",
    "evaluate.multiple_choice=[world]",
    "data.harm_ratings.source=world",
    "data.red_team.heldout=90",
    "data.helpful_comparisons.heldout=800",
    "evaluate.samples_per_prompt=8",
)
"""What every run has beside the settings of the demo: measures that the demo does without, and all that the micro-world
holds out, so that intervals are narrower than the demo's."""
REASONING = (
    'feedback.reasoning.opening="first :"',
    'feedback.reasoning.closing="the answer is :"',
    "feedback.reasoning.sampling.max_new_tokens=32",
)
PMP = (
    "data.ranked_answers.source=world",
    "preference.pretraining.language_weight=0.1",
    "preference.pretraining.train.max_steps=400",
    "preference.pretraining.train.epochs=20",
    "preference.pretraining.train.batch_size=64",
    "preference.pretraining.train.optimizer.lr=1e-3",
    "preference.pretraining.train.optimizer.schedule=linear",
    "preference.pretraining.train.sharding.micro_batch=32",
)
NORMALIZED = ("ppo.score_normalization=running",)
"""Where labels differ in size, so do scores: without this they would weigh differently against the KL penalty."""
FEW = (
    "preference.label_fraction=0.1",
    "preference.train.epochs=1",
    "preference.train.batch_size=16",
    "preference.train.optimizer.warmup_steps=0",
    "preference.train.sharding.micro_batch=8",
)
"""One pass over the labels, as in the paper; the demo makes twelve."""


@dataclass(frozen=True)
class Variant:
    """Settings that differ from the first run's, and how far to run."""

    name: str
    changes: tuple[str, ...] = ()
    last: str = "evaluate"
    """The stage to stop after."""
    needs: tuple[str, ...] = ("prepare", "revise", "sft", "feedback", "preference", "ppo")
    """Folders of the first run that may be of use."""


FIRST = Variant("demo")
BEFORE_FEEDBACK = ("prepare", "revise", "sft")
VARIANTS: dict[str, tuple[Variant, ...]] = {
    "rounds": (FIRST,),
    "principles": (
        Variant("principles-1", ("revise.principles=1",), "revise", ("prepare",)),
        Variant("principles-4", ("revise.principles=4",), "revise", ("prepare",)),
        FIRST,
    ),
    "direct": (FIRST, Variant("direct", ("revise.critique=false",), "revise", ("prepare",))),
    "feedback": (
        # The demo's temperature is for the mean over all principles; a single question needs none.
        Variant("one-principle", ("feedback.per_pair=1", "feedback.temperature=1.0"), "feedback", BEFORE_FEEDBACK),
        FIRST,
    ),
    "preference": (FIRST,),
    "elo": (FIRST,),
    "pmp": (
        Variant("few-labels", FEW, "preference", (*BEFORE_FEEDBACK, "feedback")),
        Variant("few-labels-pmp", (*FEW, *PMP), "preference", (*BEFORE_FEEDBACK, "feedback")),
        FIRST,
    ),
    "labels": (
        Variant("soft", NORMALIZED, "evaluate", (*BEFORE_FEEDBACK, "feedback", "preference")),
        Variant("hard", (*NORMALIZED, "feedback.hard=true"), "evaluate", BEFORE_FEEDBACK),
        Variant("thought", (*NORMALIZED, *REASONING, "feedback.reasoning.clamp=null"), "evaluate", BEFORE_FEEDBACK),
        Variant("thought-clamped", (*NORMALIZED, *REASONING), "evaluate", BEFORE_FEEDBACK),
    ),
}
"""What each figure compares, in the order of its table."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="+", choices=[*VARIANTS, "all"], metavar="NAME")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--runs-dir", type=Path, default=Path("runs/figures"))
    parser.add_argument("--figures", type=Path, default=Path("docs/figures"))
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results"))
    arguments = parser.parse_args()
    names = list(VARIANTS) if "all" in arguments.names else arguments.names
    failed = []
    for name in names:
        print(f"== {name}", flush=True)
        try:
            figure(name, arguments)
        except Exception:  # one figure must not cost the others
            traceback.print_exc()
            failed.append(name)
    if failed:
        sys.exit(f"not done: {', '.join(failed)}")


def figure(name: str, arguments: argparse.Namespace) -> None:
    """Run what is missing, measure, write the page."""
    measured: dict[str, dict[int, Measures]] = {}
    for variant in VARIANTS[name]:
        folders = {seed: made(variant, seed, arguments.runs_dir) for seed in arguments.seeds}
        measured[variant.name] = {seed: measures_of(folder, seed, variant.last) for seed, folder in folders.items()}
    page = PAGES[name](measured)
    write_page(name, page, arguments.figures)
    arguments.results.mkdir(parents=True, exist_ok=True)
    result = {
        "date": time.strftime("%Y-%m-%d"),
        "machine": f"{platform.machine()}, {platform.system()}, Python {platform.python_version()}",
        "file": str(FILE),
        "settings": {v.name: [*BASE, *v.changes] for v in VARIANTS[name]},
        "claims": [{"claim": text, "holds": holds} for text, holds in page.claims],
        "measured": {v: {s: m.plain() for s, m in seeds.items()} for v, seeds in measured.items()},
    }
    (arguments.results / f"figure-{name}.json").write_text(json.dumps(result, indent=1) + "\n")


def made(variant: Variant, seed: int, runs_dir: Path) -> Path:
    """The folder of a run that is finished up to the variant's last stage. Raises CalledProcessError."""
    folder = runs_dir / f"{variant.name}-{seed}"
    if variant is not FIRST and not folder.exists():
        borrow(made(FIRST, seed, runs_dir), folder, variant.needs)
    # A variant may be at chance, which is then its result.
    ungated = ["feedback.gate=null", "preference.gate=null"]
    settings = [f"name={folder.name}", f"runs_dir={runs_dir}", f"seed={seed}", *ungated, *BASE, *variant.changes]
    stages = ("revise", "sft", "feedback", "preference", "ppo", "evaluate")
    command = [sys.executable, "-m", "cai_dist"]
    if variant.last == "evaluate":
        subprocess.run([*command, "run", str(FILE), *settings], check=True)
    else:
        for stage in stages[: stages.index(variant.last) + 1]:
            subprocess.run([*command, "stage", stage, str(FILE), *settings], check=True)
    return folder


def borrow(source: Path, target: Path, stages: Sequence[str]) -> None:
    """A new run folder with these stages of another run, and its manifest: the pipeline itself finds out which of them
    are still right."""
    partial = target.with_name(f"{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    for stage in stages:
        shutil.copytree(source / stage, partial / stage)
    manifest = json.loads((source / "manifest.json").read_text())
    manifest["stages"] = {k: v for k, v in manifest["stages"].items() if k in stages}
    manifest["name"] = target.name
    (partial / "manifest.json").write_text(json.dumps(manifest))
    partial.rename(target)


if __name__ == "__main__":
    main()
