"""Settings of `evaluate` that are fine alone and wrong together, or that name files."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from cai_dist.config.run import RunConfig
from cai_dist.config.stages import PPO, PREFERENCE


def evaluate_problems(config: RunConfig) -> Iterator[str]:
    """One line for each contradiction, with the way out."""
    judge = config.evaluate.elo.judge
    sources = {config.data.red_team.source, config.data.helpful.source}
    if judge == "oracle" and sources != {"world"}:
        yield (
            "evaluate.elo.judge=oracle: knows the micro-world's prompts alone, and data.red_team and data.helpful are "
            "not both world; set it to feedback or preference"
        )
    if judge == "preference" and config.aligned.learner != PREFERENCE:
        yield (
            f"evaluate.elo.judge=preference: with alignment={config.alignment} there is no preference model; set it to "
            "feedback or oracle"
        )
    for key, sources_named in choice_files(config):
        if "world" in sources_named and not config.uses_world:
            yield f"{key}: holds the micro-world's questions, but nothing else is of it; name a file"
        if len(set(sources_named)) < len(sources_named):
            yield f"{key}: names a file twice; name each once"
    if config.data.harm_ratings.source == "world" and "world" not in sources:
        yield (
            "data.harm_ratings.source=world: the micro-world's ratings beside prompts from files; name a file or none"
        )
    every = config.ppo.snapshot_every
    if every is not None and every >= config.ppo.iterations and PPO in config.stages:
        yield (
            f"ppo.snapshot_every={every}: must be smaller than ppo.iterations={config.ppo.iterations}; nothing would "
            "be kept on the way"
        )


def missing_choice_files(config: RunConfig) -> Iterator[str]:
    """One line for each file of questions that is not there."""
    for key, sources in choice_files(config):
        for source in sources:
            if source != "world" and not Path(source).is_file():
                what = "is a folder" if Path(source).is_dir() else "no such file"
                yield f"{key}={source!r}: {what}; must be world or a JSONL, JSON, CSV or Parquet file"


def choice_files(config: RunConfig) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """The settings that name files of questions, with the files."""
    evaluate = config.evaluate
    return (
        ("evaluate.multiple_choice", evaluate.multiple_choice),
        ("evaluate.label_questions", evaluate.label_questions),
    )
