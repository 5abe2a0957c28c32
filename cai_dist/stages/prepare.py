"""Before stage 1: resolve the models, read the prompts, and (for the micro-world) pretrain its model from scratch.

Everything later reads from here alone: `prepare/models.json`, `red_team.parquet`, `helpful.parquet`, `human.parquet`
and, where there are ranked answers, `ranked.parquet`.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from cai_dist import constitution, world
from cai_dist.config.run import RunConfig
from cai_dist.config.seeds import stable_seed
from cai_dist.config.stages import PREPARE
from cai_dist.data.batches import loss_weight
from cai_dist.data.comparisons import load_comparison_set
from cai_dist.data.held_out import held_out_openings, without_held_out
from cai_dist.data.prompts import load_prompt_set, opening
from cai_dist.data.ranked import load_ranked_set
from cai_dist.data.reading import ReadReport
from cai_dist.data.sources import hub_settings, rows_settings, source_files
from cai_dist.errors import ConfigError
from cai_dist.models.cache import cache_root
from cai_dist.models.load import load_config
from cai_dist.models.resolve import resolve_model
from cai_dist.stages.ai_feedback.local_check import check_workers, needs_check
from cai_dist.stages.ai_feedback.option_tokens import check_feedback
from cai_dist.stages.comparisons.pm_pretraining import check_label_words
from cai_dist.stages.context import CHAT_KEYS, RunContext, chat_settings
from cai_dist.stages.execution.model_paths import path_of
from cai_dist.stages.execution.training import ds_files, total_steps, train
from cai_dist.stages.execution.worker_groups import export_model, rollout_group, trained_model
from cai_dist.stages.preflight.rehearsal import context_line, model_bytes, rehearse, room_problem, uses
from cai_dist.stages.preflight.token_counts import check_tables
from cai_dist.stages.tables.ratings import check_ratings
from cai_dist.stages.tables.records import Labelled, write_comparisons, write_prompts, write_ranked
from cai_dist.tracking.atomic import sha256_json, sha256_path, staging_dir, write_json
from cai_dist.types import Comparison, Prompt, PromptKind, RankedQuestion

NAME: Final = PREPARE
SOURCES = ("red_team", "helpful", "helpful_comparisons", "ranked_answers")
"""The sections under `data` that this stage reads."""


def settings(config: RunConfig) -> dict[str, Any]:
    """What decides the result of this stage."""
    return {
        # With the context, which every other stage depends on, too: it is checked against the models here.
        "models": config.models.model_dump(mode="json", exclude={"chat", *CHAT_KEYS}) | chat_settings(config),
        "own": sorted(config.own_models),
        # What given models are tried for: another use of them is tried, too. The micro-world's own is fit for all.
        **({"uses": uses(config)} if set(config.own_models.values()) - {"world"} else {}),
        "data": config.data.model_dump(mode="json"),
        **hub_settings({name: getattr(config.data, name).source for name in SOURCES}),
        **rows_settings({name: getattr(config.data, name).source for name in SOURCES}),
        "world": _world_settings(config) if config.uses_world else None,
    }


def inputs(ctx: RunContext) -> list[Path]:
    """The data files that the run names, and the user's DeepSpeed file for the micro-world's model."""
    sources = [getattr(ctx.config.data, name).source for name in SOURCES]
    files = [file for s in sources if s not in ("world", "none") for file in source_files(s)]
    return files + (ds_files(ctx.config.world.pretrain.sharding) if ctx.config.uses_world else [])


def execute(ctx: RunContext) -> list[Path]:
    """Write the tables and `models.json`; returns what was written."""
    folder = ctx.folder(NAME)
    written = _tables(ctx)
    if ctx.config.data.harm_ratings.source != "none":
        check_ratings(ctx)
    models, own = ctx.config.models, ctx.config.own_models
    given = {role: resolve_model(source, models.dtype, None) for role, source in own.items() if source != "world"}
    refuse_models(ctx, given)
    world_model = pretrained_world(ctx) if ctx.config.uses_world else None
    resolved = {}
    for role, source in own.items():
        path = given.get(role) or resolve_model(source, models.dtype, world_model)
        check_context(ctx, role, path)
        resolved[role] = {
            "source": source,
            "path": ctx.manifest.shown(path) if Path(path).is_dir() else path,
            "sha256": _hash_of(path),
        }
    check_label_words(ctx, path_of(ctx, resolved["pretrained"]["path"]))
    check_feedback(ctx, path_of(ctx, resolved.get("feedback", resolved["pretrained"])["path"]))
    check_tables(ctx, {role: path_of(ctx, model["path"]) for role, model in resolved.items()})
    if not ctx.config.feedback_is_sl and needs_check(ctx):
        with rollout_group(ctx, "feedback", 1) as group:
            check_workers(ctx, group, folder, path_of(ctx, resolved["feedback"]["path"]))
    write_json(ctx.paths.models, resolved)
    written.append(ctx.paths.models)
    return written + ([world_model] if world_model else [])


def refuse_models(ctx: RunContext, paths: Mapping[str, str]) -> None:
    """Try the models in `paths` (role -> folder or hub name) in small in all that the run will do with them, and look
    for room for those that it will leave. Raises ConfigError with a line for each thing that would fail."""
    found = rehearse(ctx, paths)
    for note in found.notes:
        ctx.console.say(note)
    sizes = model_bytes(ctx, paths["pretrained"]) if "pretrained" in paths else {}
    problems = [*found.problems, *([room] if (room := room_problem(ctx.run_dir, sizes)) else [])]
    if problems:
        raise ConfigError("\n".join(problems))


def check_context(ctx: RunContext, role: str, path: str) -> None:
    """Refuse a context that the model was not made for. Raises ConfigError."""
    if line := context_line(ctx.config, role, load_config(path)):
        raise ConfigError(line)


def _tables(ctx: RunContext) -> list[Path]:
    ctx.folder(NAME)
    red_team, helpful, human = ctx.paths.prompts("red_team"), ctx.paths.prompts("helpful"), ctx.paths.human
    given, people = _prompts(ctx, "red_team") + _prompts(ctx, "helpful"), _human(ctx)
    prompts, comparisons = without_held_out(given, people)
    dropped = {"prompts": len(given) - len(prompts), "comparisons": len(people) - len(comparisons)}
    write_prompts(red_team, [p for p in prompts if p.kind == "red_team"])
    write_prompts(helpful, [p for p in prompts if p.kind == "helpful"])
    nan = float("nan")
    write_comparisons(human, [Labelled(c, c.p_a, nan, nan) for c in comparisons])
    tables = [red_team, helpful, human]
    if ctx.config.data.ranked_answers.source != "none":
        tables.append(ctx.paths.ranked)
        apart, found = held_out_openings(prompts, comparisons), _ranked(ctx)
        questions = [q for q in found if opening(Prompt(q.id, q.turns, "helpful")) not in apart]
        write_ranked(tables[-1], questions)
        dropped["ranked"] = len(found) - len(questions)
    ctx.log(f"{NAME}_held_out", 0, **dropped)
    return tables


def _prompts(ctx: RunContext, kind: PromptKind) -> list[Prompt]:
    config = ctx.config
    source = config.data.red_team if kind == "red_team" else config.data.helpful
    if source.source != "world":
        found = load_prompt_set(source, kind, config.seed)
        _tell(ctx, kind, found.report)
        ctx.log(
            f"{NAME}_{kind}", 0, records=found.records, duplicates=found.duplicates, skipped=found.skipped,
            too_long=found.too_long,
        )  # fmt: skip
        return list(found.prompts)
    from cai_dist.world.prompts import helpful_prompts, red_team_prompts
    from cai_dist.world.tables import World

    world = World(config.world_seed)
    prompts = red_team_prompts(world) if kind == "red_team" else helpful_prompts(world)
    kept = sorted((p for p in prompts if p.split == "train"), key=lambda p: stable_seed(config.seed, kind, p.id))
    return kept[: source.limit] + [p for p in prompts if p.split == "heldout"]


def _human(ctx: RunContext) -> list[Comparison]:
    source = ctx.config.data.helpful_comparisons
    if source.source == "none":
        return []
    if source.source != "world":
        found = load_comparison_set(source, ctx.config.seed)
        _tell(ctx, "helpful_comparisons", found.report)
        ctx.log(f"{NAME}_human", 0, records=found.records, duplicates=found.duplicates, skipped=found.skipped)
        return list(found.comparisons)
    from cai_dist.world.comparisons import helpful_comparisons
    from cai_dist.world.tables import World

    world, seed = World(ctx.config.world_seed), ctx.config.seed
    held_out = helpful_comparisons(world, source.heldout, seed, "heldout")
    return helpful_comparisons(world, source.limit or 2000, seed) + held_out


def _ranked(ctx: RunContext) -> Sequence[RankedQuestion]:
    source = ctx.config.data.ranked_answers
    if source.source != "world":
        found = load_ranked_set(source, ctx.config.seed)
        _tell(ctx, "ranked_answers", found.report)
        ctx.log(f"{NAME}_ranked", 0, records=found.records, duplicates=found.duplicates, skipped=found.skipped)
        return found.questions
    from cai_dist.world.ranked import ranked_questions
    from cai_dist.world.tables import World

    return ranked_questions(World(ctx.config.world_seed), source.limit or 2000, ctx.config.seed)


def _tell(ctx: RunContext, name: str, report: ReadReport) -> None:
    """One line of counts; a warning where more records were left out than used."""
    tell = ctx.console.warn if report.left_out > report.used else ctx.console.say
    tell(f"data.{name}: {report.summary()}")


def pretrained_world(ctx: RunContext) -> Path:
    """The micro-world's language model, pretrained now or taken from the cache; returns its folder in the run."""
    target = ctx.paths.world_model
    if target.is_dir():
        return target
    cached = _cache_folder(ctx.config)
    if ctx.config.world.cache and cached.is_dir():
        ctx.console.say(f"the micro-world's model comes from the cache: {cached}")
        with staging_dir(target) as temporary:
            shutil.copytree(cached, temporary, dirs_exist_ok=True)
        return target
    _pretrain(ctx, target)
    if ctx.config.world.cache:
        cached.parent.mkdir(parents=True, exist_ok=True)
        with staging_dir(cached) as temporary:
            shutil.copytree(target, temporary, dirs_exist_ok=True)
    return target


def _pretrain(ctx: RunContext, target: Path) -> None:
    from cai_dist.world.build import write_initial_model
    from cai_dist.world.corpus import pretraining_sequences
    from cai_dist.world.tables import World
    from cai_dist.world.tokenizer import build_tokenizer

    config = ctx.config
    seed = config.world_seed
    initial = ctx.paths.world_initial
    if not initial.is_dir():
        with staging_dir(initial) as temporary:
            write_initial_model(config.world, seed, temporary)
    examples = pretraining_sequences(World(seed), config.world.sequences, seed, build_tokenizer())
    steps = total_steps(len(examples), config.world.pretrain, "world.pretrain")
    with trained_model(ctx, "pretrain", "language", str(initial), config.world.pretrain, steps) as group:
        train(
            ctx,
            "pretrain",
            group,
            examples,
            config.world.pretrain,
            loss_weight,
            ctx.paths.world_training,
        )
        export_model(lambda folder: group.broadcast("pretrain: export", "export", str(folder)), target)
    shutil.rmtree(ctx.paths.world_training, ignore_errors=True)


def _world_settings(config: RunConfig) -> dict[str, Any]:
    kept = config.world.model_dump(mode="json", exclude={"cache": True, "pretrain": {"checkpoint_every"}})
    made = {**kept, "seed": config.world_seed, "dtype": config.models.dtype}
    return made if config.models.head_dtype == "model" else {**made, "head_dtype": config.models.head_dtype}


def _cache_folder(config: RunConfig) -> Path:
    """Where this world's model is kept: named by its settings and by all that its text is made from."""
    sources = [*sorted(Path(world.__file__).parent.glob("*.py")), Path(constitution.__file__).with_name("micro.yaml")]
    text = [p.read_text(encoding="utf-8") for p in sources]
    return cache_root() / "world" / sha256_json({**_world_settings(config), "run_seed": config.seed, "text": text})[:16]


def _hash_of(path: str) -> str:
    """Content hash of a local model; a hub name stands for itself (its revision is not noted)."""
    return sha256_path(Path(path)) if Path(path).is_dir() else f"hub:{path}"
