"""Whether a run asks its constitution for what it holds. Light: part of `cai-dist check`."""

from __future__ import annotations

from collections.abc import Iterator

from cai_dist.config.run import RunConfig
from cai_dist.constitution.load import load_constitution
from cai_dist.constitution.schema import Constitution
from cai_dist.errors import ConfigError


def check_constitution(config: RunConfig) -> None:
    """Read the run's constitution and refuse settings that it cannot meet.

    Raises ConfigError with one line for each problem, DataError where the constitution itself is malformed.
    """
    problems = [*_too_many(config, load_constitution(config.constitution)), *_wrong_words(config)]
    if problems:
        raise ConfigError("\n".join(problems))


def _too_many(config: RunConfig, constitution: Constitution) -> Iterator[str]:
    asked = (
        ("revise.principles", config.revise.principles, len(constitution.critique_principles), "critique principles"),
        ("revise.few_shot", config.revise.few_shot, len(constitution.few_shot_critiques), "worked critiques"),
        (
            "feedback.principles",
            config.feedback.principles,
            len(constitution.comparison_principles),
            "comparison principles",
        ),
        ("feedback.few_shot", config.feedback.few_shot, len(constitution.few_shot_comparisons), "worked comparisons"),
    )
    for key, wanted, there, what in asked:
        if wanted is not None and wanted > there:
            yield f"{key}={wanted}: must be at most {there}; constitution={config.constitution} has {there} {what}"


def _wrong_words(config: RunConfig) -> Iterator[str]:
    models = (config.models.assistant, config.models.feedback)
    if "world" in models and config.constitution == "default":
        yield "constitution=default: the micro-world's model does not know these words; set constitution=micro"
