"""Whether a run asks its constitution for what it holds. Light: part of `cai-dist check`."""

from __future__ import annotations

from collections.abc import Iterator

from cai_dist.config.run import RunConfig
from cai_dist.constitution.load import run_constitution
from cai_dist.constitution.schema import Constitution
from cai_dist.errors import ConfigError


def check_constitution(config: RunConfig) -> None:
    """Read the run's constitution and refuse settings that it cannot meet.

    Raises ConfigError with one line for each problem, DataError where the constitution itself is malformed.
    """
    problems = [*_too_many(config, run_constitution(config)), *_wrong_words(config)]
    if problems:
        raise ConfigError("\n".join(problems))


def _too_many(config: RunConfig, constitution: Constitution) -> Iterator[str]:
    comparisons = len(constitution.comparison_principles)
    in_use = min(config.feedback.principles or comparisons, comparisons)
    reasoning = config.feedback.reasoning
    asked = (
        ("revise.principles", config.revise.principles, len(constitution.critique_principles), "critique principles"),
        ("revise.few_shot", config.revise.few_shot, len(constitution.few_shot_critiques), "worked critiques"),
        ("feedback.principles", config.feedback.principles, comparisons, "comparison principles"),
        ("feedback.per_pair", config.feedback.per_pair, comparisons, "comparison principles"),
        ("feedback.few_shot", config.feedback.few_shot, len(constitution.few_shot_comparisons), "worked comparisons"),
        (
            "feedback.reasoning.few_shot",
            reasoning.few_shot if reasoning else None,
            len(constitution.few_shot_reasoning),
            "worked comparisons with reasoning",
        ),
        (
            "evaluate.elo.principles",
            config.evaluate.elo.principles,
            in_use,
            "comparison principles" + (" in use (feedback.principles)" if in_use < comparisons else ""),
        ),
    )
    without = f" without {', '.join(config.without_principles)}" if config.without_principles else ""
    for key, wanted, there, what in asked:
        if wanted is not None and wanted > there:
            yield (
                f"{key}={wanted}: must be at most {there}; "
                f"constitution={config.constitution}{without} has {there} {what}"
            )


def _wrong_words(config: RunConfig) -> Iterator[str]:
    own = config.own_models
    if "world" in (own["assistant"], own.get("feedback")) and config.constitution == "default":
        yield "constitution=default: the micro-world's model does not know these words; set constitution=micro"
