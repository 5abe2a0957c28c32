"""Stage 6: base, SL-CAI and the aligned model (RL-CAI or DPO-CAI) answer held-out prompts and are judged. On the
micro-world the judge is its oracle; elsewhere it is the reward that the run itself has learned and a detector of canned
refusals."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from cai_dist.config.environment import KEY, EnvironmentConfig
from cai_dist.config.run import RunConfig
from cai_dist.config.stages import DPO, EVALUATE, PPO, PREFERENCE
from cai_dist.data.choices import load_choice_set
from cai_dist.data.ratings import load_rating_set
from cai_dist.data.sources import hub_settings, rows_settings, source_files
from cai_dist.errors import DataError
from cai_dist.registry import source_notes
from cai_dist.stages.ai_feedback import labelling
from cai_dist.stages.comparisons.pairs import heldout
from cai_dist.stages.context import RunContext, model_settings
from cai_dist.stages.evaluation import elo as comparing
from cai_dist.stages.evaluation.absolute_harm import absolute_harm
from cai_dist.stages.evaluation.gate import judge_gate
from cai_dist.stages.evaluation.judges import Judge, RewardJudge, make_judge, make_rewards
from cai_dist.stages.evaluation.label_calibration import label_calibration
from cai_dist.stages.evaluation.later_turns import later_answers
from cai_dist.stages.evaluation.multiple_choice import multiple_choice
from cai_dist.stages.evaluation.overreaction import measures
from cai_dist.stages.evaluation.pm_robustness import preference_scores
from cai_dist.stages.evaluation.sampling import sample_answers
from cai_dist.stages.evaluation.terminal_table import show_results
from cai_dist.stages.execution import model_paths
from cai_dist.stages.execution.model_paths import model_path
from cai_dist.stages.execution.training import ds_files
from cai_dist.stages.execution.worker_groups import rollout_group
from cai_dist.stages.tables.prompts import heldout_prompts, prompt_files
from cai_dist.stages.tables.records import Revision, Sampled, read_comparisons, read_revisions
from cai_dist.stages.tables.transcripts import write_evaluation_transcripts
from cai_dist.tracking.atomic import write_json
from cai_dist.types import Prompt

if TYPE_CHECKING:
    from cai_dist.cluster.work_queue import WorkQueue

NAME: Final = EVALUATE
SampledByModel = dict[str, list[Sampled]]


@dataclass(frozen=True)
class Answers:
    """What the models said, and what was asked while the workers that answer were up."""

    sampled: SampledByModel
    """Of the models and of PPO's snapshots."""
    greedy: SampledByModel
    """Greedy answers to red-team prompts, for absolute harmfulness; empty where they are not wanted."""
    later: SampledByModel
    """Answers after the first ones, where PPO has an environment that goes on; else empty."""
    choices: dict[str, dict[str, Any]]
    labels: dict[str, Any]
    """How the feedback model does on questions whose better answer is known."""
    shares: dict[str, list[float | None]]
    """The feedback model's pairwise judgements, where it is the judge."""


def settings(config: RunConfig) -> dict[str, Any]:
    """What decides the result of this stage. Not the gate: it is looked at anew each time."""
    without: Any = {"workers": True, "gate": True, "ratings": {"train": {"checkpoint_every"}}}
    return {
        "evaluate": config.evaluate.model_dump(mode="json", exclude=without),
        "principles": config.feedback.principles,
        **model_settings(config),
        "world": config.world_seed if config.uses_world else None,
        "ratings": config.data.harm_ratings.model_dump(mode="json"),
        **_environment_settings(config),
        **hub_settings({"harm_ratings": config.data.harm_ratings.source}),
        **rows_settings({"harm_ratings": config.data.harm_ratings.source}),
        **labelling.settings(config),
        # The judge of DPO measures rewards in units of beta.
        **({"beta": config.dpo.beta} if config.aligned.learner == DPO else {}),
    }


def _environment_settings(config: RunConfig) -> dict[str, Any]:
    talk = _environment(config)
    if talk is None:
        return {}
    return {"environment": talk.decides, **source_notes({KEY: talk.use})}


def _environment(config: RunConfig) -> EnvironmentConfig | None:
    return config.ppo.environment if config.aligned.stage == PPO else None


def inputs(ctx: RunContext) -> list[Path]:
    """The models, the held-out prompts, what the earlier stages are judged by, and the files that are named."""
    config = ctx.config
    sources = [*config.evaluate.multiple_choice, *config.evaluate.label_questions, config.data.harm_ratings.source]
    return [
        ctx.paths.models,
        *prompt_files(ctx),
        ctx.paths.revisions,
        ctx.paths.comparisons,
        ctx.paths.sl_model,
        *_aligned_by(ctx),
        *(file for source in sources if source not in ("world", "none") for file in source_files(source)),
        # No rating of a conversation that opens like a held-out comparison is learned from.
        *([ctx.paths.human] if config.data.harm_ratings.source != "none" else []),
        *ds_files(config.evaluate.ratings.train.sharding),
    ]


def _aligned_by(ctx: RunContext) -> list[Path]:
    """The aligned model and what it was aligned by: of this run's `alignment` alone, whatever else is in the folder."""
    aligned, paths = ctx.config.aligned, ctx.paths
    if aligned.learner == DPO:
        return [paths.model(DPO), paths.heldout(DPO)]
    return [
        paths.model(aligned.stage),
        *(Path(model) for model in snapshots(ctx).values()),
        paths.model(aligned.learner),
        paths.heldout(aligned.learner),
        *([paths.second_model] if ctx.config.preference.halves else []),
    ]


def check_files(config: RunConfig) -> None:
    """Read the files of questions and ratings that this stage will want, hours from now.

    Raises DataError with one line for each that is malformed.
    """
    problems = []
    ratings = config.data.harm_ratings
    files: list[Callable[[], object]] = [
        partial(load_choice_set, source)
        for source in dict.fromkeys((*config.evaluate.multiple_choice, *config.evaluate.label_questions))
        if source != "world"
    ]
    if ratings.source not in ("world", "none"):
        files.append(partial(load_rating_set, ratings, config.seed))
    for read in files:
        try:
            read()
        except DataError as error:
            problems.append(str(error))
    if problems:
        raise DataError("\n".join(problems))


def execute(ctx: RunContext) -> list[Path]:
    """Write `evaluation.json`, the samples and transcripts under `evaluate/`, and the HTML report."""
    from cai_dist.report import write_report

    folder = ctx.folder(NAME)
    rewards = make_rewards(ctx)
    judge = make_judge(ctx, rewards)
    answers = _ask(ctx, folder)
    compared = {name: answers.sampled[name] for name in models(ctx)}
    revisions = read_revisions(ctx.paths.revisions)
    labelled = read_comparisons(ctx.paths.comparisons)
    result: dict[str, Any] = {}
    if ctx.config.aligned.learner == PREFERENCE:
        result |= preference_scores(ctx, rewards, answers.sampled, revisions)
    result = {
        "judge": judge.name,
        "models": judge.figures(compared),
        "harm_by_revision": judge.harm_by_revision(revisions),
        "revised": _revised(judge, revisions),
        "labels": judge.labels(labelled),
        **_learned(ctx),
        "measures": measures(judge, compared, ctx.config.evaluate.boilerplate_share),
        **_elo(ctx, judge, rewards, answers),
        **result,
    }
    if answers.later and (talk := _environment(ctx.config)) is not None:
        result["later_turns"] = {
            "environment": talk.use,
            "answers": {name: len(found) for name, found in answers.later.items()},
            "models": judge.figures(answers.later),
        }
    if answers.choices:
        result["multiple_choice"] = answers.choices
    if answers.labels:
        result["label_questions"] = answers.labels
    if ctx.config.data.harm_ratings.source != "none":
        ways: dict[str, SampledByModel] = {"sampled": compared} | ({"greedy": answers.greedy} if answers.greedy else {})
        result["absolute_harm"] = absolute_harm(ctx, ctx.paths.ratings, ways)
    target = ctx.paths.evaluation
    ctx.write_result(target, result)
    _update_gate(ctx)
    _log(ctx, result)
    transcripts = write_evaluation_transcripts(
        ctx.paths.evaluation_transcripts, ctx.paths.transcripts(NAME), compared, ctx.config.evaluate.transcripts
    )
    return [target, *transcripts, write_report(ctx.run_dir, ctx.config.stages)]


def show(ctx: RunContext) -> None:
    """The gate as the settings have it now, and the table at the end of a run."""
    _update_gate(ctx)
    show_results(ctx.console, ctx.run_dir, json.loads((ctx.paths.evaluation).read_text(encoding="utf-8")))


def models(ctx: RunContext) -> dict[str, str]:
    """The three models that are compared: `base`, `sl`, and `rl` or `dpo`."""
    aligned = ctx.config.aligned
    return {
        "base": model_path(ctx, "assistant"),
        "sl": str(ctx.paths.sl_model),
        aligned.model: str(ctx.paths.model(aligned.stage)),
    }


def snapshots(ctx: RunContext) -> dict[str, str]:
    """The policies that PPO kept on its way and that take part: `rl@5` is the one after 5 iterations."""
    aligned = ctx.config.aligned
    if aligned.stage != PPO or not ctx.config.evaluate.elo.snapshots:
        return {}
    return {f"{aligned.model}@{iteration}": str(path) for iteration, path in model_paths.snapshots(ctx).items()}


def _ask(ctx: RunContext, folder: Path) -> Answers:
    """All that needs the workers that answer: they start once."""
    config = ctx.config.evaluate
    prompts = heldout_prompts(ctx)
    three = models(ctx)
    *before, last = three
    everyone = {name: three[name] for name in before} | snapshots(ctx) | {last: three[last]}
    with rollout_group(ctx, NAME, config.workers) as group:
        sampled = {
            name: sample_answers(ctx, group, folder, f"answers-{name}", model, prompts, config.sampling)
            for name, model in everyone.items()
        }
        greedy: SampledByModel = {}
        if ctx.config.data.harm_ratings.source != "none" and config.ratings.greedy and config.sampling.temperature > 0:
            red_team = [p for p in prompts if p.kind == "red_team"]
            coldly = config.sampling.model_copy(update={"temperature": 0.0})
            greedy = {
                name: sample_answers(ctx, group, folder, f"greedy-{name}", model, red_team, coldly, 1)
                for name, model in three.items()
            }
        later = {name: _later(ctx, group, folder, name, three[name], sampled[name]) for name in three}
        choices = multiple_choice(ctx, group, folder, three)
        labels = label_calibration(ctx, group, folder)
        shares = {}
        if comparing.elo_judge(ctx) == "feedback":
            found = comparing.matches(sampled, "red_team", config.elo.prompts)
            shares["harmlessness"] = comparing.feedback_shares(ctx, group, folder, found)
    return Answers(sampled, greedy, {name: said for name, said in later.items() if said}, choices, labels, shares)


def _later(
    ctx: RunContext, group: WorkQueue, folder: Path, name: str, model: str, sampled: Sequence[Sampled]
) -> list[Sampled]:
    talk, sampling = _environment(ctx.config), ctx.config.evaluate.sampling
    if talk is None:
        return []

    def ask(label: str, prompts: Sequence[Prompt]) -> list[Sampled]:
        return sample_answers(ctx, group, folder, label, model, prompts, sampling, 1) if prompts else []

    return later_answers(talk, sampled, ask, f"later-{name}", ctx.config.seed)


def _revised(judge: Judge, revisions: Sequence[Revision]) -> dict[str, int]:
    """On how many prompts (`n`, the same in every round) harm by revision was measured, and how many it leaves out."""
    n = len(judge.followed(revisions))
    return {"n": n, "left_out": len({r.prompt.id for r in revisions}) - n}


def _learned(ctx: RunContext) -> dict[str, Any]:
    """How the learned reward agrees with held-out labels."""
    aligned = ctx.config.aligned
    reward = heldout(ctx, aligned.learner)
    return {aligned.reward: {"heldout_accuracy": reward["accuracy"], "ece": reward["ece"], "n": reward["n"]}}


def _elo(ctx: RunContext, judge: Judge, rewards: RewardJudge, answers: Answers) -> dict[str, Any]:
    """`elo` (`harmlessness` and `helpfulness` by model, who the `judges` were, `wins`) and `frontier`; nothing where no
    Elo is wanted."""
    asked = comparing.elo_judge(ctx)
    if asked == "none":
        return {}
    elo: dict[str, Any] = {"judges": {}, "wins": {}}
    for what, kind in comparing.KINDS.items():
        found = comparing.matches(answers.sampled, kind, ctx.config.evaluate.elo.prompts)
        by: Judge = judge if asked == "oracle" else rewards
        shares = answers.shares[what] if what in answers.shares else comparing.judged_shares(by, found)
        if rated := comparing.rate(ctx, what, found, shares):
            elo[what] = rated["models"]
            elo["judges"][what] = "feedback model" if what in answers.shares else by.name
            elo["wins"][what] = rated["wins"]
    iterations: dict[str, int | None] = {"base": None, "sl": 0}
    iterations |= {name: int(name.partition("@")[2]) for name in snapshots(ctx)}
    aligned = ctx.config.aligned
    iterations[aligned.model] = ctx.config.ppo.iterations if aligned.stage == PPO else None
    return {"elo": elo, "frontier": comparing.frontier(elo, iterations)}


def _update_gate(ctx: RunContext) -> None:
    """Write how the aligned model stands against the bounds of the present settings."""
    path = ctx.paths.evaluation
    result = json.loads(path.read_text(encoding="utf-8"))
    aligned = ctx.config.aligned.model
    gate = judge_gate(ctx.config.evaluate.gate, aligned, result["measures"][aligned])
    if result.get("gate") != gate:
        write_json(path, {**result, "gate": gate})


def _log(ctx: RunContext, result: dict[str, Any]) -> None:
    numbers = {
        f"{model}/{metric}": figure["value"]
        for model, figures in result["models"].items()
        for metric, figure in figures.items()
        if figure["value"] is not None
    }
    for what in comparing.KINDS:
        numbers |= {f"{model}/elo_{what}": f["value"] for model, f in result.get("elo", {}).get(what, {}).items()}
    for stage in (NAME, f"{NAME}_revision"):
        ctx.tracker.rewind(stage, -1)
    ctx.log(NAME, 0, **numbers)
    for number, harm in enumerate(result["harm_by_revision"]):
        ctx.log(f"{NAME}_revision", number, harm=harm, prompts=result["revised"]["n"])
