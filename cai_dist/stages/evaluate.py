"""Stage 6: base, SL-CAI and the aligned model (RL-CAI or DPO-CAI) answer held-out prompts and are judged. On the
micro-world the judge is its oracle; elsewhere it is the reward that the run itself has learned and a detector of canned
refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from cai_dist.config.run import RunConfig
from cai_dist.stages import dpo, feedback, ppo, preference, prepare, revise, sft
from cai_dist.stages.chats import chat_format
from cai_dist.stages.context import RunContext, model_settings
from cai_dist.stages.generation import Ask, generate
from cai_dist.stages.judges import Judge, make_judge
from cai_dist.stages.pairs import heldout
from cai_dist.stages.records import Sampled, read_comparisons, read_prompts, read_revisions
from cai_dist.stages.results import show_results
from cai_dist.stages.transcripts import write_evaluation_transcripts
from cai_dist.tracking.atomic import write_json
from cai_dist.types import Prompt

NAME = "evaluate"
RESULT = "evaluation.json"
"""Lies in the run folder itself."""


def settings(config: RunConfig) -> dict[str, Any]:
    """What decides the result of this stage."""
    return {
        "evaluate": config.evaluate.model_dump(mode="json", exclude={"workers"}),
        **model_settings(config),
        "world": config.world_seed if config.uses_world else None,
        # The judge of DPO measures rewards in units of beta.
        **({"beta": config.dpo.beta} if config.alignment == "dpo" else {}),
    }


def inputs(run: RunContext) -> list[Path]:
    """The three models, the held-out prompts, and what the earlier stages are judged by."""
    before = run.run_dir / prepare.NAME
    return [
        before / "models.json",
        before / "red_team.parquet",
        before / "helpful.parquet",
        run.run_dir / revise.NAME / "revisions.parquet",
        run.run_dir / feedback.NAME / "comparisons.parquet",
        run.run_dir / sft.NAME / "model",
        *_aligned_by(run),
    ]


def _aligned_by(run: RunContext) -> list[Path]:
    """The aligned model and what it was aligned by: of this run's `alignment` alone, whatever else is in the folder."""
    if run.config.alignment == "dpo":
        return [run.run_dir / dpo.NAME / "model", run.run_dir / dpo.NAME / "heldout.json"]
    return [
        run.run_dir / ppo.NAME / "model",
        run.run_dir / preference.NAME / "model",
        run.run_dir / preference.NAME / "heldout.json",
    ]


def run(run: RunContext) -> list[Path]:
    """Write `evaluation.json`, the samples and transcripts under `evaluate/`, and the HTML report."""
    from cai_dist.report import write_report

    folder = run.folder(NAME)
    samples = _sample(run, folder)
    judge = make_judge(run)
    revisions = read_revisions(run.run_dir / revise.NAME / "revisions.parquet")
    labelled = read_comparisons(run.run_dir / feedback.NAME / "comparisons.parquet")
    with_dpo = run.config.alignment == "dpo"
    reward = heldout(run, dpo.NAME if with_dpo else preference.NAME)
    result = {
        "judge": judge.name,
        "models": judge.figures(samples),
        "harm_by_revision": judge.harm_by_revision(revisions),
        "labels": judge.labels(labelled),
        "implicit_reward" if with_dpo else "preference_model": {
            "heldout_accuracy": reward["accuracy"],
            "ece": reward["ece"],
            "n": reward["n"],
        },
    }
    target = run.run_dir / RESULT
    write_json(target, result)
    _log(run, judge, result)
    transcripts = write_evaluation_transcripts(folder, samples, run.config.evaluate.transcripts)
    return [target, *transcripts, write_report(run.run_dir, run.config.stages)]


def show(run: RunContext) -> None:
    """The table at the end of a run."""
    show_results(run.console, run.run_dir, json.loads((run.run_dir / RESULT).read_text()))


def models(run: RunContext) -> dict[str, str]:
    """The three models that are compared: `base`, `sl`, and `rl` or `dpo`."""
    aligned, stage = ("dpo", dpo.NAME) if run.config.alignment == "dpo" else ("rl", ppo.NAME)
    return {
        "base": prepare.model_path(run, "assistant"),
        "sl": str(run.run_dir / sft.NAME / "model"),
        aligned: str(run.run_dir / stage / "model"),
    }


def _sample(run: RunContext, folder: Path) -> dict[str, list[Sampled]]:
    """Answers of each model to every held-out prompt, `samples_per_prompt` times."""
    config = run.config.evaluate
    prompts = _heldout(run)
    samples = {}
    with run.generators(NAME, config.workers) as group:
        for name, model in models(run).items():
            chat = chat_format(run, model)
            repeated = [p for p in prompts for _ in range(config.samples_per_prompt)]
            asks = [
                Ask(f"{p.id}/{i % config.samples_per_prompt}", chat.prompt_ids(p.turns)) for i, p in enumerate(repeated)
            ]
            answers = generate(
                run, group, folder, f"answers-{name}", asks, model=model, chat=chat, sampling=config.sampling,
                shard_size=config.shard_size,
            )  # fmt: skip
            samples[name] = [
                Sampled(p, a.text) for p, a in zip(repeated, answers, strict=True) if a.finish != "too_long"
            ]
    return samples


def _heldout(run: RunContext) -> list[Prompt]:
    folder = run.run_dir / prepare.NAME
    both = read_prompts(folder / "red_team.parquet") + read_prompts(folder / "helpful.parquet")
    return [p for p in both if p.split == "heldout"]


def _log(run: RunContext, judge: Judge, result: dict[str, Any]) -> None:
    numbers = {
        f"{model}/{metric}": figure["value"]
        for model, figures in result["models"].items()
        for metric, figure in figures.items()
        if figure["value"] is not None
    }
    for stage in (NAME, f"{NAME}_revision"):
        run.tracker.rewind(stage, -1)
    run.log(NAME, 0, **numbers)
    for number, harm in enumerate(result["harm_by_revision"]):
        run.log(f"{NAME}_revision", number, harm=harm)
